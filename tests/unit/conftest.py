from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from grid import Grid
from hypothesis import settings
from sqlite_file import FAST, Jobs

from synmanager.backends import base
from synmanager.settings import VARIABLES

# No deadline per example: the machine may be busy. No database: a run leaves nothing behind. The
# same examples each time, so that no change is blamed for what was there; others in the long form.
is_long = os.environ.get("SYNMANAGER_TEST_FORM") == "long"
settings.register_profile("unit", deadline=None, database=None, derandomize=not is_long)
settings.load_profile("unit")


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def grid(monkeypatch: pytest.MonkeyPatch) -> Iterator[Grid]:
    """A memory broker of the test's own, whose consumers notice ``stop()`` sooner."""
    monkeypatch.setattr(base, "_SLICE", 0.05)
    made = Grid()
    yield made
    made.close()


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    """An SQLite file of the test's own, and its clients."""
    with tempfile.TemporaryDirectory(dir=FAST) as directory:
        made = Jobs(Path(directory) / "jobs.db")
        yield made
        made.close()

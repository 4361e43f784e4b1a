from __future__ import annotations

from collections.abc import Iterator

import pytest
from grid import Grid
from hypothesis import settings

from synmanager.backends import base
from synmanager.settings import VARIABLES

# No deadline per example: the machine may be busy. No database: a run leaves nothing behind.
settings.register_profile("unit", deadline=None, database=None)
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

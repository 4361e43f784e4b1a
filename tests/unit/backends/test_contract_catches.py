"""The contract catches bad drivers: each of ``mutants.py`` fails a test that is meant for it."""

from __future__ import annotations

from pathlib import Path

import pytest
from mutants import MUTANTS

from synmanager.testing import BackendContract

HERE = Path(__file__).parent


def test_there_are_enough_of_them() -> None:
    assert len(MUTANTS) >= 30


def test_no_topic_hides_what_another_has_under_the_same_name() -> None:
    owners: dict[str, list[str]] = {}
    for topic in BackendContract.__mro__[1:-1]:
        for name in vars(topic):
            if not name.startswith("__"):
                owners.setdefault(name, []).append(topic.__name__)
    assert {name: those for name, those in owners.items() if len(those) > 1} == {}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_it_is_caught(mutant: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [f"{HERE / 'mutants.py'}::{mutant}", "-k", MUTANTS[mutant].tests, "--exitfirst"]
    # The plugins that cost time, or would take this for a run of its own.
    for plugin in ("cacheprovider", "xdist", "timeout", "hypothesispytest", "faulthandler"):
        arguments += ["-p", f"no:{plugin}"]
    code = pytest.main([*arguments, "-q"])
    printed = capsys.readouterr().out
    assert code is pytest.ExitCode.TESTS_FAILED, f"nothing catches it:\n{printed}"
    assert "failed" in printed, printed  # and is not just an error of the setup

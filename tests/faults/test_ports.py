"""No two servers of the suite are given one port."""

from __future__ import annotations

import ports
import pytest
from ports import free_port


def test_no_port_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven nodes of a cluster are set up before the first of them takes its ports."""
    monkeypatch.setattr(ports, "_given", set())
    assert len({free_port() for _ in range(1000)}) == 1000


def test_processes_that_run_beside_each_other_are_given_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[set[int]] = []
    for worker in ("gw0", "gw1", "gw15"):
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        monkeypatch.setattr(ports, "_given", set())
        given.append({free_port() for _ in range(300)})
    assert len(set.union(*given)) == 900

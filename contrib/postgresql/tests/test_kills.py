"""``kill -9`` of workers, producers and the server while jobs flow."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.brokers import CANARY
from harness.director import Director
from harness.processes import Processes
from harness.waiting import wait_until
from server import PostgreSQL
from test_kill_cycles import BROKER_EVERY, Cycles

CYCLES, JOBS = 5, 150
SEED = 20200


@pytest.fixture
def processes(server: PostgreSQL, tmp_path: Path) -> Iterator[Processes]:
    server.reset()
    started = Processes(tmp_path, server.url())
    try:
        yield started
    finally:
        started.end()
    for path in (*tmp_path.glob("*.out"), *tmp_path.glob("*.jsonl")):
        assert CANARY not in path.read_text(errors="replace"), f"the password is in {path.name}"


def test_no_kill_loses_a_job(server: PostgreSQL, processes: Processes) -> None:
    director = Director(server.url(), processes.journal)
    grid = Cycles(processes, server, random.Random(SEED))
    for number in range(CYCLES):
        grid.run(number, JOBS, with_broker=number % BROKER_EVERY == BROKER_EVERY - 2)
    grid.await_the_end()
    history = processes.history()
    assert set(history.confirmed) == grid.keys
    history.check_nothing_lost(dead=director.dead_keys())
    history.check_extra_runs()
    assert history.extra_runs <= history.redeliveries + history.repeated_publishes
    starts = sorted(run.began for run in history.runs)
    assert max(min(at for at in starts if at >= back) - back for back in grid.backs) <= 10
    wait_until(lambda: director.counts().ready == 0, 10, "the queue is empty")

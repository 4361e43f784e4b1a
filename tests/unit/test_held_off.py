"""What a cluster hands out again, while whoever ran it may not know yet that it is lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from grid import Bench, Grid, in_thread, until

from synmanager import current_job
from synmanager.backends import Delivery

JOB = {"run": 1}
SECONDS = 2.0


@pytest.fixture
def bench(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """On a connection whose every delivery is to be held off when it comes again."""
    bench = Bench(grid)
    receive = bench.backend.receive

    def receive_late(queues: Sequence[str], wait: float, done: Any = None) -> Delivery | None:
        delivery = receive(queues, wait, done)
        if delivery is not None and delivery.attempt > 1:
            delivery.hold_off = SECONDS
        return delivery

    monkeypatch.setattr(bench.backend, "receive", receive_late)
    return bench


def lost_once(grid: Grid) -> None:
    grid.put(JOB)
    assert grid.client().receive(["train"], 0) is not None
    grid.crash_holders()


def test_it_begins_once_they_have_passed(grid: Grid, bench: Bench) -> None:
    lost_once(grid)
    begun: list[tuple[int, float]] = []
    before = grid.clock.now()

    def work(kwargs: Any) -> None:
        begun.append((current_job().attempt, grid.clock.now() - before))

    join = in_thread(lambda: bench.run(work))
    until(lambda: bool(bench.runner._keeper._held), "it is held")
    assert begun == []
    grid.clock.advance(SECONDS)
    join()
    ((attempt, seconds),) = begun
    assert attempt == 2
    assert seconds >= SECONDS
    assert grid.count() == {}


def test_told_to_stop_meanwhile_a_worker_gives_it_back_uncounted(grid: Grid, bench: Bench) -> None:
    lost_once(grid)
    ran: list[Any] = []
    join = in_thread(lambda: bench.run(ran.append))
    until(lambda: bool(bench.runner._keeper._held), "it is held")
    bench.runner.stop()
    join()
    assert ran == []
    assert grid.count() == {"ready": 1}
    again = grid.client().receive(["train"], 0)
    assert again is not None
    assert again.attempt == 2


def test_lost_meanwhile_it_does_not_run_here(grid: Grid, bench: Bench) -> None:
    lost_once(grid)
    ran: list[Any] = []
    counts: list[int] = []
    join = in_thread(lambda: counts.append(bench.run(ran.append, idle_timeout=600)))
    until(lambda: bool(bench.runner._keeper._held), "it is held")
    grid.crash_holders()
    assert grid.client().receive(["train"], 0) is not None  # another worker has it now
    bench.runner._keeper._renew_all()
    until(lambda: not bench.runner._keeper._held, "it is let go")
    bench.runner.stop()
    join()
    assert (ran, counts) == ([], [0])
    assert grid.count() == {"leased": 1}


def test_what_has_run_here_is_settled_without_a_wait(
    grid: Grid, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "SECONDS", 60.0)  # which no machine stands still for
    grid.put(JOB)

    def work(kwargs: Any) -> None:
        grid.crash_holders()

    before = grid.clock.now()
    assert bench.run(work) == 2  # it came, ran, was taken back, and came again
    assert grid.clock.now() - before < SECONDS
    assert grid.count() == {}

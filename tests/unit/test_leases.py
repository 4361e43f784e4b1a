"""Keeping a job for as long as its callback takes, and learning that it was lost.

The broker's clock stands still until a test moves it, while leases are renewed in real time: a
busy machine cannot make a lease run out, only a test can.
"""

from __future__ import annotations

import gc
import itertools
import logging
import threading
import time
from contextlib import suppress
from typing import Any

import pytest
from grid import Bench, Grid, in_thread, until

from synmanager import current_job
from synmanager.backends import Delivery
from synmanager.clock import ManualClock
from synmanager.engine import forks
from synmanager.engine.leases import LeaseKeeper
from synmanager.engine.results import Results
from synmanager.errors import BrokerUnavailable, LeaseLost, SynmanagerError, TopologyError
from synmanager.message import DEFAULT_MAX_BYTES, Message
from synmanager.phases import EVALUATE

#: Seconds. Renewals come three times as often, in real time.
LEASE = 0.006


@pytest.fixture
def clock(grid: Grid) -> ManualClock:
    grid.broker.clock = ManualClock()
    return grid.broker.clock


def renewals(bench: Bench) -> int:
    return bench.backend.calls.count("renew")


def await_renewal(bench: Bench) -> None:
    seen = renewals(bench)
    # The second is surely one that began after this was called.
    until(lambda: renewals(bench) >= seen + 2, "the lease is renewed")


def keepers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "synmanager-leases"]


def test_a_job_a_hundred_times_its_lease_runs_once(grid: Grid, clock: ManualClock) -> None:
    bench, other = Bench(grid, lease=LEASE), grid.client()
    grid.put({})
    runs: list[Any] = []

    def work(kwargs: Any) -> None:
        runs.append(current_job())
        for _ in range(200):
            await_renewal(bench)
            clock.advance(LEASE / 2)
            assert other.receive(["train"], 0) is None

    assert bench.run(work) == 1
    assert len(runs) == 1
    assert not runs[0].lease_lost
    assert grid.count() == {}


def test_other_threads_that_go_on_during_a_renewal_do_not_end_it(grid: Grid) -> None:
    """Before CPython 3.12 the collector may begin at any step of C's, and let them."""
    bench = Bench(grid)
    leases = LeaseKeeper(bench.session, 60.0)
    job: Any = None

    def settled() -> Delivery:
        return Delivery(Message(b"{}"), "train", 1, None, settled=True)

    for _ in range(50):  # more than a tuple that CPython has at hand
        leases._held[settled()] = job
    left = 100

    def let_in(phase: str, _: Any) -> None:
        nonlocal left
        if phase == "start" and left:
            left -= 1
            leases._held[settled()] = job

    before = gc.get_threshold()
    gc.callbacks.append(let_in)
    try:
        for allocations in range(1, 20):
            gc.set_threshold(allocations)
            leases._renew_all()
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(let_in)


def test_a_worker_that_was_frozen_past_its_lease_learns_it(
    grid: Grid, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    results = Results(EVALUATE.exchange.name, EVALUATE.routing_key, DEFAULT_MAX_BYTES)
    bench = Bench(grid, lease=LEASE, results=results)
    other = grid.client()
    grid.put({})

    def work(kwargs: Any) -> dict[str, Any]:
        job = current_job()
        assert job is not None
        with grid.broker.changed:  # frozen: nothing gets to the broker meanwhile
            clock.advance(LEASE * 1.1)
            assert other.receive(["train"], 0) is not None
        until(lambda: job.lease_lost)
        return {"loss": 0.5}

    with caplog.at_level(logging.WARNING, "synmanager"):
        bench.run(work)
    assert grid.ready("evaluate") == []
    assert grid.count() == {"leased": 1}  # the other worker's
    assert "lost its lease while running" in caplog.text


def test_a_lease_that_is_lost_is_not_renewed_again(grid: Grid, clock: ManualClock) -> None:
    bench = Bench(grid, lease=LEASE)
    grid.put({})
    held: list[int] = []

    def work(kwargs: Any) -> None:
        job = current_job()
        assert job is not None
        bench.backend.fail("renew", LeaseLost("taken back"))
        until(lambda: job.lease_lost)
        held.append(len(bench.runner._keeper._held))

    bench.run(work)
    assert held == [0]


@pytest.mark.parametrize(
    "error", [BrokerUnavailable("gone"), TopologyError("moved"), RuntimeError("a defect")]
)
def test_a_renewal_that_fails_is_tried_again(
    error: Exception, grid: Grid, clock: ManualClock
) -> None:
    bench = Bench(grid, lease=LEASE, reconnect=0)
    grid.put({})

    def work(kwargs: Any) -> bool:
        bench.backend.fail("renew", error, error)
        for _ in range(3):
            await_renewal(bench)
        clock.advance(LEASE / 2)
        job = current_job()
        assert job is not None
        return job.lease_lost

    lost: list[bool] = []
    bench.run(lambda kwargs: lost.append(work(kwargs)))
    assert lost == [False]
    assert grid.count() == {}


def test_a_defect_in_renewals_gives_nothing_back(
    grid: Grid, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Elsewhere the connection is dropped when the unexpected comes twice. Here a job runs.
    monkeypatch.setattr("synmanager.engine.session._backoff", lambda: itertools.repeat(0.001))
    bench = Bench(grid, lease=60)
    monkeypatch.setattr(bench.runner._keeper, "_interval", 0.1)
    grid.put({})

    def work(kwargs: Any) -> bool:
        bench.backend.fail("renew", *(RuntimeError("a defect") for _ in range(5)))
        for _ in range(4):
            await_renewal(bench)
        job = current_job()
        assert job is not None
        return job.lease_lost

    lost: list[bool] = []
    assert bench.run(lambda kwargs: lost.append(work(kwargs))) == 1
    assert lost == [False]
    assert "open" not in bench.backend.calls
    assert grid.count() == {}


def test_a_defect_in_a_renewal_is_logged_with_its_traceback(
    grid: Grid, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(grid, lease=LEASE)
    grid.put({})
    bench.backend.fail("renew", RuntimeError("a defect"))
    with caplog.at_level(logging.WARNING, "synmanager"):
        bench.run(lambda kwargs: await_renewal(bench))
    record = caplog.records[0]
    assert "unexpected trouble with the broker" in record.getMessage()
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "a defect"


def test_every_running_job_is_kept_by_one_thread(grid: Grid, clock: ManualClock) -> None:
    before = set(keepers())
    bench = Bench(grid, lease=LEASE)
    grid.put(*({} for _ in range(8)))
    together = threading.Barrier(8, timeout=10)

    def work(kwargs: Any) -> None:
        together.wait()
        for _ in range(4):
            for _ in range(8):
                await_renewal(bench)
            if together.wait() == 0:
                clock.advance(LEASE / 2)
            together.wait()
        assert len(set(keepers()) - before) == 1
        together.wait()

    joins = [in_thread(bench.run, work, max_jobs=1) for _ in range(8)]
    for join in joins:
        assert join() == 1
    assert grid.count() == {}
    bench.runner.close()
    until(lambda: not set(keepers()) - before, "the thread ends")


def test_the_keeper_can_start_again(grid: Grid, clock: ManualClock) -> None:
    before = set(keepers())
    bench = Bench(grid, lease=LEASE)
    for _ in range(3):
        grid.put({})
        bench.session.open()
        assert bench.run(lambda kwargs: await_renewal(bench)) == 1
        bench.runner.close()
        until(lambda: not set(keepers()) - before, "the thread ends")


def test_in_a_fork_nothing_of_the_parent_s_is_renewed(
    grid: Grid, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(grid, lease=LEASE)
    keeper = bench.runner._keeper
    grid.put({}, {})
    kept: list[int] = []

    def in_the_child(kwargs: Any) -> None:
        kept.append(len(keeper._held))

    def in_the_parent(kwargs: Any) -> None:
        kept.append(len(keeper._held))
        with monkeypatch.context() as child:
            child.setattr(forks, "_generation", forks.generation() + 1)
            bench.run(in_the_child)

    bench.run(in_the_parent, max_jobs=1)
    assert kept == [1, 1]


def test_the_lease_is_an_argument_and_a_setting(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNMANAGER_LEASE", "600")
    for consumer, lease in ((grid.consumer(), 600), (grid.consumer(lease=100), 100)):
        session = consumer._session
        assert session is not None
        grid.put({})
        delivery = session.call(lambda backend: backend.receive(["train"], 0))
        grid.clock.advance(lease - 5)
        assert grid.count() == {"leased": 1}
        grid.clock.advance(10)
        assert grid.count() == {"ready": 1}
        assert delivery is not None
        grid.client().purge("train")


def test_connecting_and_disconnecting_beside_the_work_leaves_no_threads(grid: Grid) -> None:
    before = set(keepers())
    consumer = grid.consumer()
    most: list[int] = []
    is_over = threading.Event()

    def poll() -> None:
        while not is_over.is_set():
            grid.put({})
            with suppress(SynmanagerError):
                consumer.poll_message(lambda **_: None)

    join = in_thread(poll)
    for _ in range(100):
        consumer.disconnect()
        consumer.connect()
        most.append(len(set(keepers()) - before))
        time.sleep(0.002)
    is_over.set()
    join()
    assert max(most) < 50  # and if none ended, up to 100
    consumer.disconnect()
    until(lambda: not set(keepers()) - before, "the threads end")

"""Row: queue or group deleted while in use. Recreated, or raised."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from harness.brokers import Broker
from harness.director import Director
from harness.processes import Process, Processes
from harness.redis_server import RedisServer
from harness.waiting import wait_until


def _goes_on_or_says_why(
    worker: Process, director: Director, processes: Processes, since: float
) -> str:
    """The worker runs a new job, or has ended with an error that names the trouble."""
    keys = director.submit([{"key": "after"}])
    wait_until(
        lambda: worker.status is not None or keys <= processes.history().done,
        20,
        "the worker runs the next job or raises",
    )
    seconds = time.monotonic() - since
    if worker.status is None:
        return f"recreated; the next job ran after {seconds:.2f} s"
    assert "TopologyError" in worker.output
    assert "queue" in worker.output
    return f"raised TopologyError after {seconds:.2f} s"


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "with a job"])
def test_queue_deleted_while_in_use(
    busy: bool,
    broker: Broker,
    director: Director,
    processes: Processes,
    figures: Callable[[str], None],
) -> None:
    worker = processes.worker("worker")
    director.submit([{"key": "before", "work": 2 if busy else 0}])
    processes.await_event("started" if busy else "acked", 30)
    broker.delete_queue("train")
    deleted = time.monotonic()
    if busy:
        processes.await_event("finished", 30)
    what = _goes_on_or_says_why(worker, director, processes, deleted)
    figures(f"{'busy' if busy else 'idle'}: {what}")


@pytest.mark.only("redis", "valkey")
def test_group_destroyed_while_in_use(
    broker: RedisServer,
    director: Director,
    processes: Processes,
    figures: Callable[[str], None],
) -> None:
    """XGROUP DESTROY: what was queued is still in the streams and must run."""
    worker = processes.worker("worker", env={"SYNMANAGER_LEASE": "2"})
    keys = director.submit({"key": f"job-{n}", "work": 1} for n in range(3))
    processes.await_event("started", 30)
    assert broker.destroy_groups("train")
    destroyed = time.monotonic()
    what = _goes_on_or_says_why(worker, director, processes, destroyed)
    if worker.status is None:
        processes.await_done(keys, 30)
        processes.history().check_nothing_lost()
    figures(what)

"""Row: job outlives lease, heartbeat and the broker's acknowledgement timeout. X, one run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from harness.director import Director
from harness.processes import Processes
from harness.rabbitmq import RabbitMQ
from harness.waiting import wait_until


@pytest.mark.limit(120)
def test_job_outlives_lease_and_heartbeat(
    director: Director, processes: Processes, figures: Callable[[str], None]
) -> None:
    """Ten leases long, ten heartbeats, with another worker waiting for it."""
    lease = 3.0  # renewed three times in that: a busy machine may come late by two seconds
    env = {"SYNMANAGER_LEASE": str(lease), "SYNMANAGER_HEARTBEAT": str(lease)}
    keys = director.submit([{"key": "long", "work": 30}])
    processes.worker("first", env=env)
    processes.await_event("started", 30)
    processes.worker("second", env=env)
    processes.await_done(keys, 50)
    processes.await_event("acked", 30)
    history = processes.history()
    history.check_nothing_lost()
    history.check_no_overlap()
    assert len(history.runs) == 1
    assert [result["key"] for result in director.results()] == ["long"]
    (run,) = history.runs
    figures(f"{run.ended - run.began:.1f} s = {(run.ended - run.began) / lease:.0f} leases: 1 run")


TIMEOUT = 3.0
JOB = 12.0


@pytest.mark.only("rabbitmq")
@pytest.mark.limit(120)
@pytest.mark.parametrize("consumers", [1, 2])
@pytest.mark.parametrize("queue", ["ours", "of 0.1.0"])
def test_job_outlives_the_acknowledgement_timeout(
    queue: str,
    consumers: int,
    broker: RabbitMQ,
    director: Director,
    processes: Processes,
    figures: Callable[[str], None],
) -> None:
    """The broker's patience is 3 s, its look at it every second, and the job takes 12 s.

    A queue of ours carries ``x-consumer-timeout``, which RabbitMQ knows from 3.12, and from 4.3 on
    classic queues, as all of these are, are waited for without end. Where neither
    that nor the configuration helps, one consumer still runs the job once: it settles what comes
    back by its id. A second idle consumer may be given the job meanwhile, which nothing on the
    client's side can prevent: then two runs are counted as redelivered, and no more than that.
    """
    broker.set_acknowledgement_timeout(TIMEOUT)
    if queue == "of 0.1.0":
        broker.declare_queue_of_010("train")
    keys = director.submit([{"key": "long", "work": JOB}])
    waits_for_ever = broker.name == "rabbitmq-4.3"  # on classic queues
    helped = waits_for_ever or (queue == "ours" and broker.name == "rabbitmq-4.0")
    for number in range(consumers):
        processes.worker(f"worker-{number}")
    processes.await_done(keys, 4 * JOB)
    processes.await_event("acked", 2 * JOB)
    wait_until(lambda: director.counts().ready == 0, 30, "the queue is empty")
    # Whoever else has it runs it to its end.
    wait_until(lambda: all(run.finished for run in processes.history().runs), 30, "all runs end")
    history = processes.history()
    history.check_nothing_lost()
    history.check_extra_runs()
    figures(
        f"queue {queue}, {consumers} consumers: {len(history.runs)} runs, "
        f"{len(history.said('no longer ours to settle'))} acks refused, "
        f"{len(director.results())} results"
    )
    if helped or consumers == 1:
        assert len(history.runs) == 1
        history.check_no_overlap()

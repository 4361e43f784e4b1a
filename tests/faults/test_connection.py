"""Rows: silent drop of the connection; reset before the publish's reply; slow, lossy link."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from harness.brokers import Broker
from harness.director import Director
from harness.processes import Processes
from harness.waiting import wait_until

from synmanager.testing.proxy import Proxy

pytestmark = pytest.mark.server

HEARTBEAT = 3.0

#: Seconds for a machine that stands still: less than another heartbeat.
SLACK = 2.5

ENV = {
    "SYNMANAGER_HEARTBEAT": str(HEARTBEAT),
    "SYNMANAGER_TIMEOUT": "2",
    "SYNMANAGER_LEASE": "2",
}


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "with a job"])
def test_silent_drop_of_the_connection(
    busy: bool,
    broker: Broker,
    director: Director,
    processes: Processes,
    figures: Callable[[str], None],
) -> None:
    """The proxy stops forwarding, as a firewall that forgot the connection. T <= 2 heartbeats."""
    with Proxy(broker.port) as proxy:
        processes.worker("worker", url=broker.url(proxy.port), env=ENV)
        processes.await_event("ready", 30)
        keys = director.submit([{"key": "first", "work": 10 if busy else 0}])
        processes.await_event("started" if busy else "acked", 30)
        connections = proxy.accepted
        dropped = time.monotonic()
        proxy.silence()
        if not busy:
            keys |= director.submit([{"key": "second"}])
        # A new connection is how the proxy sees that the worker has noticed; it may find before
        # that that its lease is over.
        wait_until(
            lambda: (
                proxy.accepted > connections
                or (busy and processes.history().said("lost its lease"))
            ),
            20,
            "the worker notices",
        )
        noticed = time.monotonic() - dropped
        processes.await_done(keys, 30)
        wait_until(lambda: director.counts().ready == 0, 30, "the queue is empty")
        processes.await_event("acked", 30, count=1 if busy else 2)
    history = processes.history()
    history.check_nothing_lost()
    history.check_extra_runs()
    history.check_no_overlap()
    figures(
        f"{'busy' if busy else 'idle'}: noticed after {noticed:.2f} s "
        f"(2 heartbeats are {2 * HEARTBEAT:g} s), {history.extra_runs} extra runs"
    )
    assert noticed <= 2 * HEARTBEAT + SLACK


def test_a_publish_in_a_silent_drop(
    broker: Broker, director: Director, processes: Processes, figures: Callable[[str], None]
) -> None:
    director.declare()
    gate = processes.directory / "gate"
    with Proxy(broker.port) as proxy:
        processes.producer(
            "producer",
            keys=[0, 40],
            pace=0.05,
            gate={"number": 5, "file": str(gate)},
            url=broker.url(proxy.port),
            env=ENV,
        )
        processes.await_event("waits", 30)
        proxy.silence()
        dropped = time.monotonic()
        gate.touch()
        processes.await_event("left", 30)
    processes.worker("worker", burst=True).wait(30)
    history = processes.history()
    assert len(history.confirmed) == 40
    history.check_nothing_lost()
    history.check_extra_runs()
    after = min(e["at"] for e in history.events if e["event"] == "confirmed" if e["at"] > dropped)
    assert after - dropped <= 2 * HEARTBEAT + SLACK
    figures(f"confirmed again {after - dropped:.2f} s after the drop")


@pytest.mark.parametrize("batch", [1, 10])
def test_reset_before_the_publishs_reply(
    batch: int,
    broker: Broker,
    director: Director,
    processes: Processes,
    figures: Callable[[str], None],
) -> None:
    """The broker has the message, the producer does not know. The retry has the same id. L."""
    director.declare()
    gate = processes.directory / "gate"
    with Proxy(broker.port) as proxy:
        processes.producer(
            "producer",
            keys=[0, 5 * batch],
            batch=batch,
            gate={"number": 2 * batch, "file": str(gate)},
            url=broker.url(proxy.port),
            env={"SYNMANAGER_JOURNAL": "off"},  # or a reply to it is held, and not a publish's
        )
        processes.await_event("waits", 30)
        proxy.hold_replies()
        gate.touch()
        wait_until(lambda: director.counts().ready == 3 * batch, 30, "the broker has the next")
        proxy.reset()
        processes.await_event("left", 30)
    copies = director.counts().ready
    processes.worker("worker", burst=True).wait(30)
    history = processes.history()
    assert len(history.confirmed) == 5 * batch
    history.check_nothing_lost()
    history.check_extra_runs()
    ids: dict[str, set[str]] = {}
    for event in history.events:
        if event["event"] == "started":
            ids.setdefault(event["key"], set()).add(event["job_id"])
    assert all(len(found) == 1 for found in ids.values()), "both copies have the same id"
    assert history.repeated_publishes == batch
    figures(f"batch of {batch}: {copies} copies of {5 * batch} jobs, each with one id")


@pytest.mark.limit(120)
def test_slow_lossy_link(
    is_long: bool,
    broker: Broker,
    director: Director,
    processes: Processes,
    figures: Callable[[str], None],
) -> None:
    """200 ms there and back, and every twentieth segment sent again. L O."""
    count = 200 if is_long else 15
    with Proxy(broker.port) as proxy:
        proxy.delay, proxy.loss = 0.1, 0.05
        url = broker.url(proxy.port)
        began = time.monotonic()
        processes.producer("singly", keys=[0, count], url=url)
        processes.worker("worker", url=url)
        processes.await_event("left", 20 * count, who="singly")
        processes.await_done({f"singly-{n}" for n in range(count)}, 20 * count)
        seconds = time.monotonic() - began
        processes.producer("batch", keys=[0, count], batch=count, url=url)
        processes.await_done({f"batch-{n}" for n in range(count)}, 20 * count)
        processes.await_event("left", 20 * count, who="batch")
        connections = proxy.accepted
    history = processes.history()
    assert len(history.confirmed) == 2 * count
    history.check_nothing_lost()
    history.check_order()
    history.check_extra_runs()
    assert history.extra_runs == 0
    figures(f"{count} jobs singly through both in {seconds:.1f} s; {connections} connections")

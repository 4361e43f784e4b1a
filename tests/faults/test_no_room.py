"""Rows: disk or memory alarm on RabbitMQ; Redis out of memory; an eviction policy."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from harness.director import Director
from harness.processes import Processes
from harness.rabbitmq import RabbitMQ
from harness.redis_server import RedisServer
from harness.waiting import wait_until

from synmanager.errors import BrokerUnavailable, PublishRefused, SynmanagerError
from synmanager.train import TrainConsumerOperator, TrainProducerOperator

TIMEOUT = 2.0
PATIENCE = 1.0

#: Seconds for a machine that stands still; without those two, a call takes a minute.
SLACK = 10.0


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of operators in the test's own process."""
    monkeypatch.setenv("SYNMANAGER_TIMEOUT", str(TIMEOUT))
    monkeypatch.setenv("SYNMANAGER_RECONNECT", str(PATIENCE))


@pytest.mark.only("rabbitmq")
@pytest.mark.parametrize("resource", ["disk", "memory"])
def test_alarm_on_rabbitmq(
    resource: str,
    broker: RabbitMQ,
    director: Director,
    processes: Processes,
    figures: Callable[[str], None],
    settings: None,
) -> None:
    """Publish fails in bounded time, close() returns; work goes on when there is room again."""
    director.submit([{"key": "before"}])
    producer = TrainProducerOperator(url=broker.url())
    producer.connect()
    producer.process(key="routine")
    if resource == "disk":
        broker.raise_disk_alarm()
    else:
        broker.raise_memory_alarm()
    began = time.monotonic()
    with pytest.raises((BrokerUnavailable, PublishRefused)) as caught:
        producer.process(key="refused")
    refused = time.monotonic() - began
    began = time.monotonic()
    producer.disconnect()
    closed = time.monotonic() - began
    processes.worker("worker", results=False)
    broker.end_alarms()
    keys = director.submit([{"key": "after"}])
    processes.await_done({"before", "routine"} | keys, 30)
    figures(
        f"{resource} alarm: {type(caught.value).__name__} after {refused:.2f} s, "
        f"close() in {closed:.2f} s"
    )
    assert refused <= 2 * TIMEOUT + PATIENCE + SLACK
    assert closed <= SLACK


@pytest.mark.only("rabbitmq")
def test_a_worker_outlives_an_alarm(
    broker: RabbitMQ, director: Director, processes: Processes, figures: Callable[[str], None]
) -> None:
    """Its result cannot be published: it waits, and neither loses the job nor runs it again."""
    keys = director.submit({"key": f"job-{n}", "work": 1} for n in range(2))
    processes.worker("worker", env={"SYNMANAGER_TIMEOUT": "2", "SYNMANAGER_HEARTBEAT": "2"})
    processes.await_event("started", 30)
    broker.raise_disk_alarm()
    processes.await_event("finished", 30)
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 5, 6, "the alarm has lasted")
    broker.end_alarms()
    ended = time.monotonic()
    processes.await_done(keys, 30)
    processes.await_event("acked", 30, count=2)
    history = processes.history()
    history.check_nothing_lost()
    history.check_extra_runs()
    results = [result["key"] for result in director.results()]
    assert sorted(results) == sorted(keys), "what was on its way is not sent again"
    acked = [event["at"] for event in history.events if event["event"] == "acked"]
    figures(
        f"acked {acked[0] - ended:.2f} s after the alarm's end; {history.extra_runs} extra runs, "
        f"{len(results)} results of 2 jobs"
    )


def _fill(broker: RedisServer) -> None:
    broker.configure("maxmemory", int(broker.command("INFO", "memory")["used_memory"]) + 200_000)


@pytest.mark.only("redis", "valkey")
def test_out_of_memory(
    broker: RedisServer,
    director: Director,
    processes: Processes,
    figures: Callable[[str], None],
    settings: None,
) -> None:
    keys = director.submit([{"key": "before"}])
    with TrainProducerOperator(url=broker.url()) as producer:
        _fill(broker)
        began = time.monotonic()
        with pytest.raises(PublishRefused, match="memory") as caught:
            producer.submit_many({"key": f"refused-{n}", "x": "x" * 100_000} for n in range(20))
        refused = time.monotonic() - began
        # What is there can be worked off: that is what makes room.
        processes.worker("worker", results=False)
        processes.await_done(keys, 30)
        processes.await_event("acked", 30, count=1)
        broker.configure("maxmemory", 0)
        producer.process(key="after")
    processes.await_done({"after"}, 30)
    figures(f"{type(caught.value).__name__} after {refused:.3f} s")


@pytest.mark.only("redis", "valkey")
def test_an_eviction_policy_is_refused(broker: RedisServer) -> None:
    broker.configure("maxmemory", 100_000_000)
    broker.configure("maxmemory-policy", "allkeys-lru")
    for kind in (TrainProducerOperator, TrainConsumerOperator):
        with pytest.raises(SynmanagerError, match=r"noeviction|maxmemory-policy"):
            kind(url=broker.url()).connect()

"""Several hosts in one URL."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
from exchange import fresh_queues
from ports import free_port
from threads import in_thread, until
from wire import Wire

from synmanager import Worker
from synmanager.errors import BrokerUnavailable
from synmanager.train import TrainProducerOperator


@pytest.fixture
def url(amqp_url: str) -> Iterator[str]:
    with fresh_queues(amqp_url, "this project"):
        yield amqp_url


def joined(url: str, ports: list[int]) -> str:
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return parts._replace(netloc=f"{login}@{hosts}").geturl()


def test_nobody_at_the_other_hosts(url: str) -> None:
    here = urlsplit(url).port
    assert here is not None
    for _ in range(5):  # whatever comes first
        with TrainProducerOperator(url=joined(url, [free_port(), here, free_port()])) as producer:
            producer.process(run=0)


def test_nobody_at_any(url: str) -> None:
    ports = [free_port(), free_port()]
    with pytest.raises(BrokerUnavailable) as failed:
        TrainProducerOperator(url=joined(url, ports)).connect()
    assert all(f"127.0.0.1:{port}" in str(failed.value) for port in ports)


def test_when_one_is_lost_the_next_is_taken_at_once(url: str) -> None:
    ran: list[int] = []
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(url)) for _ in range(3)]
        ports = [urlsplit(wire.url).port or 0 for wire in wires]
        worker = Worker({"train": lambda run: ran.append(run)}, url=joined(url, ports))
        join = in_thread(worker.run)
        producer = stack.enter_context(TrainProducerOperator(url=url))
        try:
            for run in range(2):
                until(lambda: any(wire.sent["basic.consume"] for wire in wires), "it waits")
                used = next(wire for wire in wires if wire.connections)
                wires.remove(used)
                used.__exit__(None, None, None)  # for good: nobody listens there any more
                began = time.monotonic()
                producer.process(run=run)
                until(lambda run=run: ran == list(range(run + 1)), "it has run")  # type: ignore[misc]
                assert time.monotonic() - began < 10
        finally:
            worker.stop()
            join()

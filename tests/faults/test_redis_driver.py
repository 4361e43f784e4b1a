"""Rows of the Redis driver: a failover, no room, a frozen server, alarms, bodies too large."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace

import pytest
from harness.redis_server import RedisServer

from synmanager.backends.base import ExchangeSpec, QueueSpec
from synmanager.backends.redis import RedisBackend
from synmanager.errors import BrokerUnavailable, InvalidJob, PublishRefused
from synmanager.message import Message
from synmanager.settings import parse_url
from synmanager.testing.steps import in_thread, publish, take

pytestmark = pytest.mark.only("redis", "valkey")

SPEC = QueueSpec("train", ExchangeSpec("exchange", "topic"), "key")

#: Seconds. Nobody who is ended before the second was so by his patience.
TIMEOUT, LONG = 1.0, 60.0


@pytest.fixture
def connect(broker: RedisServer) -> Iterator[Callable[..., RedisBackend]]:
    clients: list[RedisBackend] = []

    def connect(timeout: float = LONG) -> RedisBackend:
        client = RedisBackend(replace(parse_url(broker.url()), timeout=timeout, heartbeat=timeout))
        clients.append(client)
        client.open()
        client.declare(SPEC)
        return client

    yield connect
    for client in clients:
        client.close()


def test_a_primary_that_becomes_a_replica(
    broker: RedisServer, connect: Callable[[], RedisBackend]
) -> None:
    """As in a planned failover: for who works, who waits and who submits alike."""
    worker, idle, producer = connect(), connect(), connect()
    publish(producer, SPEC)
    held = take(worker, SPEC)
    waiting = in_thread(idle.receive, [SPEC.name], 60.0)
    while not broker.command("INFO", "clients")["blocked_clients"]:
        time.sleep(0.01)
    broker.command("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(BrokerUnavailable, match="UNBLOCKED"):
            waiting.result(30)
        with pytest.raises(BrokerUnavailable, match="primary"):
            publish(producer, SPEC)
        with pytest.raises(BrokerUnavailable, match="primary"):
            worker.ack(held)
        for client in (worker, idle, producer):
            assert not client.is_open
            with pytest.raises(BrokerUnavailable, match="primary"):
                client.open()
    finally:
        broker.command("REPLICAOF", "NO", "ONE")
    for client in (worker, idle, producer):
        client.open()
    worker.ack(held)
    publish(producer, SPEC)
    idle.ack(take(idle, SPEC))
    assert worker.count(SPEC.name).leased == 0


@pytest.mark.parametrize("state", ["memory", "disk", "replicas"])
def test_a_server_that_takes_no_new_jobs_keeps_what_is_held(
    broker: RedisServer, connect: Callable[[], RedisBackend], state: str
) -> None:
    """Out of memory all else works; where nothing can be written, it is repeated when it can."""
    client = connect()
    publish(client, SPEC, *(Message(b"{}", id=str(number)) for number in range(5)))
    held = [take(client, SPEC) for _ in range(4)]
    settle: list[Callable[[], object]] = [
        lambda: client.ack(held[0]),
        lambda: client.nack(held[1]),
        lambda: client.nack(held[2], delay=3600),
        lambda: client.bury(held[3], "a reason", "a traceback"),
        lambda: client.receive([SPEC.name], 0),
    ]
    if state == "memory":
        broker.configure("maxmemory", 1)
    elif state == "disk":
        broker.fail_snapshot()
    else:
        broker.configure("min-replicas-to-write", 1)
    try:
        batch = [Message(b"x" * 600_000, id=f"refused-{number}") for number in range(3)]
        with pytest.raises(PublishRefused, match=state) as caught:
            publish(client, SPEC, *batch)
        assert list(caught.value.unconfirmed) == batch
        for use in settle:
            if state == "memory":
                use()
                continue
            with pytest.raises(BrokerUnavailable, match="takes no writes"):
                use()
        assert client.is_open
    finally:
        broker.configure("maxmemory", 0)
        broker.configure("min-replicas-to-write", 0)
        if state == "disk":
            broker.mend_snapshot()
    for use in settle[: 0 if state == "memory" else None]:
        use()
    counts = client.count(SPEC.name)
    assert (counts.ready, counts.leased, counts.delayed, counts.dead) == (1, 1, 1, 1)


def test_a_body_that_the_server_never_takes(
    broker: RedisServer, connect: Callable[[], RedisBackend]
) -> None:
    client = connect()
    broker.configure("proto-max-bulk-len", 2_000_000)
    try:
        with pytest.raises(InvalidJob, match="2,000,000"):
            publish(client, SPEC, Message(b"x" * 3_000_000))
        publish(client, SPEC, Message(b"x" * 1_900_000))
    finally:
        broker.configure("proto-max-bulk-len", 512 * 1024 * 1024)
    assert client.count(SPEC.name).ready == 1


def test_sixteen_threads_on_a_frozen_server(
    broker: RedisServer, connect: Callable[..., RedisBackend]
) -> None:
    """None waits for another one's patience, and all end with close()."""
    client, patient = connect(TIMEOUT), connect()
    patient.close()

    def submit_for_ever() -> float:
        """As a session does; how long the longest call took."""
        longest = 0.0
        for _ in range(4):
            began = time.monotonic()
            try:
                client.open()
                publish(client, SPEC)
            except BrokerUnavailable:
                pass
            longest = max(longest, time.monotonic() - began)
        return longest

    broker.launcher.freeze()
    try:
        threads = [in_thread(submit_for_ever) for _ in range(16)]
        # Twice his own, and not that of sixteen.
        assert max(thread.result(60) for thread in threads) < 8 * TIMEOUT
        endless: list[Future[None]] = [in_thread(patient.open) for _ in range(16)]
        began = time.monotonic()
        while not all(one.done() for one in endless):
            time.sleep(TIMEOUT / 4)  # until they wait: no call tells that
            patient.close()
        for one in endless:
            assert isinstance(one.exception(), BrokerUnavailable)
        assert time.monotonic() - began < LONG / 2
    finally:
        broker.launcher.thaw()


def test_an_alarm_while_the_server_is_frozen(
    broker: RedisServer, connect: Callable[..., RedisBackend]
) -> None:
    """The caller's own TimeoutError comes out, at once, and what follows is not off by one."""
    client = connect()
    publish(client, SPEC)

    def ring(number: int, frame: object) -> None:
        raise TimeoutError("the caller's own")

    def call_in_time(call: Callable[[], object]) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        call()

    before = signal.signal(signal.SIGALRM, ring)
    calls: list[Callable[[], object]] = [
        lambda: publish(client, SPEC),
        lambda: client.count(SPEC.name),
        lambda: client.receive([SPEC.name], 0),
        client.open,
    ]
    try:
        for number, call in enumerate(calls):
            if number == 3:
                client.close()
            broker.launcher.freeze()
            began = time.monotonic()
            with pytest.raises(TimeoutError, match="the caller's own"):
                call_in_time(call)
            assert time.monotonic() - began < LONG / 2
            broker.launcher.thaw()
            client.open()
            client.declare(SPEC)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        broker.launcher.thaw()
    publish(client, SPEC)  # what there was may be with one of those who were interrupted
    delivery = take(client, SPEC)
    client.ack(delivery)
    assert client.delete(SPEC.name, "nobody") is False

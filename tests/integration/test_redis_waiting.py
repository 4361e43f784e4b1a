"""Whom a bell on Redis or Valkey wakes: few, whoever else waits, and yet for each job somebody."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
import redis
from threads import WAIT, in_thread, until

from synmanager.backends.base import Delivery, QueueSpec
from synmanager.backends.redis import RedisBackend, backend
from synmanager.backends.redis.keys import Keys
from synmanager.settings import parse_url
from synmanager.testing.steps import make_message, make_spec, publish, take

FIRST, SECOND = make_spec(), make_spec()


class Waiting:
    """Clients of their own that wait for jobs, as a rule of both queues, each in a thread.

    Attributes:
        asleep: those that wait for a bell.
        looks: one of each look at the queues.
        found: the jobs.
    """

    def __init__(
        self, connect: Callable[[], RedisBackend], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.asleep: list[RedisBackend] = []
        self.looks: list[RedisBackend] = []
        self.found: list[Delivery] = []
        self._connect = connect
        self._joins: list[Callable[[], object]] = []
        look, listen = RedisBackend._look, RedisBackend._listen

        def note_look(client: RedisBackend, *args: Any) -> Any:
            self.looks.append(client)
            return look(client, *args)

        def note_listen(client: RedisBackend, *args: Any) -> Any:
            self.asleep.append(client)
            try:
                return listen(client, *args)
            finally:
                self.asleep.remove(client)

        monkeypatch.setattr(RedisBackend, "_look", note_look)
        monkeypatch.setattr(RedisBackend, "_listen", note_listen)

    def add(self, count: int, *specs: QueueSpec) -> None:
        clients = [self._connect() for _ in range(count)]
        specs = specs or (FIRST, SECOND)
        self._joins += [in_thread(self._take, client, *specs) for client in clients]
        until(lambda: set(clients) <= set(self.asleep))

    def _take(self, client: RedisBackend, *specs: QueueSpec) -> None:
        self.found.append(take(client, *specs, wait=WAIT))

    def find_all(self) -> None:
        """Each of them has got a job."""
        for join in self._joins:
            join()


@pytest.fixture
def prefix() -> str:
    return f"synmanager-{uuid4().hex}"


@pytest.fixture
def server(redis_url: str, prefix: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client
        client.delete("nothing", *client.scan_iter(f"{{{prefix}}}*", count=10_000))
    client.connection_pool.disconnect()  # which close() leaves to itself in older versions


@pytest.fixture
def connect(
    redis_url: str, prefix: str, server: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], RedisBackend]]:
    """Connects those who do not look by themselves for a minute."""
    monkeypatch.setattr(backend, "_LOOK_AT_LEAST", 60.0)
    address = replace(
        parse_url(redis_url),
        options={"prefix": prefix},
        timeout=120.0,
        heartbeat=120.0,
        lease=600.0,
    )
    with ExitStack() as stack:

        def connect() -> RedisBackend:
            client = RedisBackend(address)
            stack.callback(client.close)
            client.open()
            client.declare(FIRST, SECOND)
            return client

        yield connect


@pytest.fixture
def waiting(connect: Callable[[], RedisBackend], monkeypatch: pytest.MonkeyPatch) -> Waiting:
    return Waiting(connect, monkeypatch)


@contextmanager
def frozen(server: redis.Redis, prefix: str, count: int) -> Iterator[None]:
    """Clients that wait, and do nothing about it when they are woken."""
    bell = f"{Keys(prefix).base(FIRST.name)}:bell"
    with ExitStack() as stack:
        for _ in range(count):
            connection: Any = server.connection_pool.make_connection()
            stack.callback(connection.disconnect)
            connection.connect()
            connection.send_command("CLIENT", "ID")
            ours = connection.read_response()
            connection.send_command(
                *("XREADGROUP", "GROUP", "synmanager", "waiting", "COUNT", 1, "BLOCK", 60_000),
                *("NOACK", "STREAMS", bell, ">"),
            )
            until(lambda ours=ours: is_asleep(server, ours))  # type: ignore[misc]
        yield


def is_asleep(server: redis.Redis, client: int) -> bool:
    (found,) = server.client_list(client_id=[client])
    return "b" in found["flags"]


def test_a_job_wakes_a_few_of_many(connect: Callable[[], RedisBackend], waiting: Waiting) -> None:
    client = connect()
    waiting.add(24)
    waiting.looks.clear()
    publish(client, FIRST)
    until(lambda: len(waiting.found) == 1 and len(waiting.asleep) == 23)
    assert len(waiting.looks) <= 5
    publish(client, FIRST, *(make_message(number) for number in range(23)))
    waiting.find_all()


def test_a_batch_wakes_as_many_as_it_has_jobs(
    connect: Callable[[], RedisBackend], waiting: Waiting
) -> None:
    client = connect()
    waiting.add(8)
    publish(client, FIRST, *(make_message(number) for number in range(4)))
    publish(client, SECOND, *(make_message(number) for number in range(4)))
    waiting.find_all()


def test_one_that_is_frozen_keeps_no_job_from_the_others(
    connect: Callable[[], RedisBackend], waiting: Waiting, server: redis.Redis, prefix: str
) -> None:
    client = connect()
    with frozen(server, prefix, 1):
        waiting.add(1)
        publish(client, FIRST)
        waiting.find_all()


def test_who_looks_by_himself_wakes_the_others_too(
    connect: Callable[[], RedisBackend],
    waiting: Waiting,
    server: redis.Redis,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = connect()
    with frozen(server, prefix, 2):  # for whom the bell rings
        waiting.add(2)
        with monkeypatch.context() as hasty:
            hasty.setattr(backend, "_LOOK_AT_LEAST", 1.0)
            waiting.add(1)
        publish(client, FIRST, *(make_message(number) for number in range(3)))
        waiting.find_all()


def test_who_was_woken_for_one_queue_and_takes_from_another_wakes_the_next(
    connect: Callable[[], RedisBackend], waiting: Waiting, server: redis.Redis, prefix: str
) -> None:
    connect()
    waiting.add(1)
    waiting.add(1, SECOND)
    first, second = (Keys(prefix).base(spec.name) for spec in (FIRST, SECOND))
    with server.pipeline() as strangers:  # whose bell wakes one
        strangers.xadd(f"{first}:normal", {"body": "{}"})
        strangers.xadd(f"{second}:normal", {"body": "{}"})
        strangers.xadd(f"{second}:bell", {"ring": ""})
        strangers.execute()
    waiting.find_all()
    assert {each.queue for each in waiting.found} == {FIRST.name, SECOND.name}


def test_who_is_woken_while_he_is_called_off_looks_all_the_same(
    connect: Callable[[], RedisBackend],
) -> None:
    client, waiter = connect(), connect()
    asked: list[None] = []

    def called_off() -> bool:
        asked.append(None)
        if len(asked) == 1:  # while it waits
            publish(client, FIRST)
        return len(asked) > 1

    taken = waiter.await_job([FIRST.name], 20.0, called_off=called_off)
    assert taken is not None
    waiter.ack(taken)


def test_a_bell_that_is_deleted_is_hung_up_again(
    connect: Callable[[], RedisBackend], waiting: Waiting, server: redis.Redis, prefix: str
) -> None:
    client = connect()
    waiting.add(2)
    server.delete(f"{Keys(prefix).base(FIRST.name)}:bell")
    publish(client, FIRST, *(make_message(number) for number in range(2)))
    waiting.find_all()

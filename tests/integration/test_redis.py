"""What only a real Redis or Valkey can show of the driver."""

from __future__ import annotations

import gc
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from strangers import JUNK, KINDS, SPEC, assert_all_goes_on, assert_it_is_named

from synmanager.backends.base import Delivery
from synmanager.backends.redis import RedisBackend, checks
from synmanager.backends.redis.keys import Keys
from synmanager.errors import AccessRefused, TopologyError
from synmanager.message import Message
from synmanager.settings import parse_url
from synmanager.testing.steps import make_message, publish, take


@pytest.fixture
def prefix() -> str:
    return f"synmanager-{uuid4().hex}"


@pytest.fixture
def stranger(redis_url: str, prefix: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(redis_url)
    yield client
    client.delete("nothing", *client.scan_iter(f"{{{prefix}}}*", count=10_000))
    client.connection_pool.disconnect()  # which close() leaves to itself in older versions


@pytest.fixture
def connect(redis_url: str, prefix: str) -> Iterator[Callable[[], RedisBackend]]:
    clients: list[RedisBackend] = []

    def connect() -> RedisBackend:
        client = RedisBackend(replace(parse_url(redis_url), options={"prefix": prefix}))
        clients.append(client)
        client.open()
        client.declare(SPEC)
        return client

    yield connect
    for client in clients:
        client.close()


def use_all(client: RedisBackend) -> None:
    """Every script, and every command of the driver's own."""
    publish(client, SPEC, make_message(1), make_message(2))
    publish(client, SPEC, delay=0.01)
    settlements: list[Callable[[Delivery], None]] = [
        lambda taken: client.nack(taken),
        lambda taken: client.nack(taken, delay=0.01),
        lambda taken: client.bury(taken, "a reason", "a traceback"),
        lambda taken: client.renew(taken),
        lambda taken: client.ack(taken),
    ]
    for settle in settlements:
        settle(take(client, SPEC))
    client.count(SPEC.name)
    client.dead_letters(SPEC.name, 10)
    client.redrive(SPEC.name, 10)
    client.bury(take(client, SPEC), "a reason")
    client.purge_dead_letters(SPEC.name)
    client.delete(SPEC.name, "nobody")
    client.purge(SPEC.name)
    client.receive([SPEC.name], 0.01)
    client.record("events", [b"1"])
    client.replay("events", client.replay("events")[-1].position, wait=0.01)
    publish(client, SPEC, make_message(), delay=3600)


def test_no_key_expires(
    connect: Callable[[], RedisBackend], stranger: redis.Redis, prefix: str
) -> None:
    """So that an eviction policy of the volatile ones takes none."""
    client = connect()
    use_all(client)
    publish(client, SPEC)
    client.bury(take(client, SPEC), "a reason")
    publish(client, SPEC)
    take(client, SPEC)
    keys = list(stranger.scan_iter(f"{{{prefix}}}*", count=10_000))
    assert len(keys) >= 11
    assert {stranger.ttl(key) for key in keys} == {-1}


def rights() -> list[str]:
    """What ``docs/backends.md`` says that a user needs."""
    text = (Path(__file__).parents[2] / "docs" / "backends.md").read_text("utf-8")
    (line,) = re.findall(r"^ACL SETUSER synmanager on >PASSWORD (.+)$", text, re.MULTILINE)
    return str(line).split()


@pytest.mark.parametrize("without", ["nothing", "info", "stream"])
def test_the_rights_that_are_documented_are_enough(
    redis_url: str,
    stranger: redis.Redis,
    prefix: str,
    without: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(checks, "_warned", set())
    words = [word.replace("{synmanager}", f"{{{prefix}}}") for word in rights()]
    assert {"+info", "+@stream"} <= set(words)
    words = [word for word in words if word.strip("+@") != without]
    acl: Any = partial(stranger.execute_command, "ACL")
    acl("SETUSER", prefix, "reset", "on", ">secret", *words)
    address = replace(parse_url(redis_url), username=prefix, password="secret")
    client = RedisBackend(replace(address, options={"prefix": prefix}))
    try:
        client.open()
        if without == "stream":
            with pytest.raises(AccessRefused, match="ACL"):
                client.declare(SPEC)
            return
        client.declare(SPEC)
        use_all(client)
        acl("SETUSER", prefix, "-xadd")
        with pytest.raises(AccessRefused, match="ACL"):
            publish(client, SPEC)
    finally:
        client.close()
        acl("DELUSER", prefix)
    assert ("(INFO)" in caplog.text) == (without == "info")


def test_who_may_not_use_the_journal_can_use_the_queues(
    redis_url: str, stranger: redis.Redis, prefix: str
) -> None:
    words = " ".join(rights()).replace("{synmanager}", f"{{{prefix}}}")
    root = f"~{{{prefix}}}:"
    queues = [f"{root}{name}" for name in ("exchanges", "queues", "route:*", "queue:*")]
    acl: Any = partial(stranger.execute_command, "ACL")
    acl(
        "SETUSER", prefix, "reset", "on", ">secret", *words.replace(f"{root}*", "").split(), *queues
    )
    address = replace(parse_url(redis_url), username=prefix, password="secret")
    client = RedisBackend(replace(address, options={"prefix": prefix}))
    try:
        client.open()
        client.declare(SPEC)
        publish(client, SPEC)
        held = take(client, SPEC)
        for _ in range(2):
            with pytest.raises(AccessRefused, match="ACL"):
                client.record("events", [b"1"])
            with pytest.raises(AccessRefused, match="ACL"):
                client.replay("events", wait=1.0)
        assert client.is_open
        client.ack(held)
        publish(client, SPEC)
        client.ack(take(client, SPEC))
    finally:
        client.close()
        acl("DELUSER", prefix)


@pytest.mark.usefixtures("unraisable_is_dropped")
def test_a_caller_s_own_alarm_passes_through_wherever_it_comes(
    connect: Callable[[], RedisBackend], stranger: redis.Redis
) -> None:
    """It is an OSError, as many a driver's own; and what follows is answered for itself."""
    client = connect()

    def ring(number: int, frame: object) -> None:
        raise TimeoutError("the caller's own")

    before = signal.signal(signal.SIGALRM, ring)
    rung, sent, rounds = 0, 0, 100
    try:
        for number in range(rounds):
            stranger.script_flush()  # so that it also comes while an error is dealt with
            end = time.monotonic() + 0.5
            with suppress(TimeoutError):
                signal.setitimer(signal.ITIMER_REAL, 0.0001 + number % 30 * 0.0001)
                while time.monotonic() < end:
                    sent += 1
                    publish(client, SPEC, Message(b"{}"))
                    client.count(SPEC.name)
                    client.receive([SPEC.name], 0.001)
            rung += time.monotonic() < end
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rung > rounds * 0.8
    client.declare(SPEC)
    assert client.is_open
    counts = client.count(SPEC.name)
    assert counts.leased is not None
    assert counts.ready + counts.leased <= sent
    assert not client._taking
    connections = client._connections
    assert connections is not None
    gc.collect()
    assert not [known for known, _ in connections._busy.values() if known() is not None]


def test_a_signal_handler_may_publish_in_the_middle_of_a_publish(
    connect: Callable[[], RedisBackend],
) -> None:
    client = connect()
    inner = 0

    def ring(number: int, frame: object) -> None:
        nonlocal inner
        publish(client, SPEC, make_message())
        inner += 1

    before = signal.signal(signal.SIGALRM, ring)
    outer = 0
    try:
        while inner < 150:
            rung = inner
            signal.setitimer(signal.ITIMER_REAL, 0.0001 + outer % 20 * 0.0001)
            while inner == rung:
                publish(client, SPEC, make_message())
                outer += 1
            if outer % 10 == 0:
                client.close()
                client.open()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert client.count(SPEC.name).ready == inner + outer


A_DAEMON = """\
import os
os.close(0), os.close(1), os.close(2)
from synmanager.backends.redis import RedisBackend, checks
from synmanager.message import Message
from synmanager.settings import parse_url
from dataclasses import replace
from synmanager.testing.steps import make_spec, publish, take
client = RedisBackend(replace(parse_url({url!r}), options={{"prefix": {prefix!r}}}))
client.open()
spec = make_spec()
client.declare(spec)
for number in range(3):
    for standard in range(3):
        try:
            os.write(standard, b"PING\\r\\n")
        except OSError:
            pass
    (sent,) = publish(client, spec)
    delivery = take(client, spec)
    assert delivery.message.id == sent.id
    client.ack(delivery)
client.close()
os._exit(42)
"""


@pytest.mark.usefixtures("stranger")
def test_nothing_that_a_daemon_prints_gets_between(redis_url: str, prefix: str) -> None:
    program = A_DAEMON.format(url=redis_url, prefix=prefix)
    done = subprocess.run([sys.executable, "-c", program], timeout=30, check=False)
    assert done.returncode == 42


@pytest.mark.parametrize("junk", JUNK)
def test_junk_in_a_key(
    connect: Callable[[], RedisBackend],
    stranger: redis.Redis,
    prefix: str,
    junk: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert_all_goes_on(connect, stranger, Keys(prefix), junk, caplog)


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_of_another_type(
    connect: Callable[[], RedisBackend], stranger: redis.Redis, prefix: str, kind: str
) -> None:
    assert_it_is_named(connect, stranger, Keys(prefix), kind)


def test_a_log_that_is_none_is_named(
    connect: Callable[[], RedisBackend], stranger: redis.Redis, prefix: str
) -> None:
    client = connect()
    key = Keys(prefix).log("events")
    stranger.set(key, "a string")
    with pytest.raises(TopologyError, match=re.escape(key)):
        client.record("events", [b"1"])
    with pytest.raises(TopologyError, match=re.escape(key)):
        client.replay("events")
    assert client.is_open
    stranger.delete(key)
    client.record("events", [b"2"])

"""Rows: message corrupted, foreign, not JSON, not an object; fuzzed bodies on the wire."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable

import pytest
from harness.brokers import Broker
from harness.director import Director
from harness.processes import Processes
from harness.rabbitmq import RabbitMQ
from harness.redis_server import RedisServer
from harness.sqlite_file import SQLiteFile
from harness.waiting import wait_until

#: What it is: (the body, a word of the reason)
BODIES = {
    "not UTF-8": (b'{"key": "\xff\xfe"}', "UTF-8"),
    "UTF-16": ('{"key": "a"}'.encode("utf-16"), "UTF-8"),
    "not JSON": (b"key=a&host=b", "JSON"),
    "pickle": (b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.", "UTF-8"),
    "empty": (b"", "JSON"),
    "cut short": (b'{"key": "a", "work"', "JSON"),
    "scalar": (b"42", "int"),
    "string": (b'"key"', "str"),
    "null": (b"null", "NoneType"),
    "array": (b'[{"key": "a"}]', "list"),
    "100,000 deep": (b"[" * 100_000, "deep"),
    "deep in an object": (b'{"key": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep"),
    "over the size limit": (b'{"key": "' + b"x" * 9 * 1024 * 1024 + b'"}', "limit"),
}


@pytest.mark.parametrize("listen", [False, True], ids=["Worker", "listen_message"])
def test_bodies_that_are_no_jobs(
    listen: bool,
    broker: Broker,
    director: Director,
    processes: Processes,
    figures: Callable[[str], None],
) -> None:
    """Each ends as a dead letter with its bytes and a reason; the consumer lives."""
    director.declare()
    for body, _ in BODIES.values():
        broker.publish_raw("train", body)
    broker.publish_raw("train", b'{"key": "foreign but sound"}')
    processes.worker("worker", listen=listen)
    processes.await_done({"foreign but sound"}, 30)
    assert len(processes.history().runs) == 1
    letters = {letter.message.body: letter.reason for letter in director.dead_letters()}
    assert set(letters) == {body for body, _ in BODIES.values()}
    for what, (body, word) in BODIES.items():
        assert word in letters[body], what
    figures(f"{len(letters)} dead letters, and the next job ran")


def _newer(broker: Broker) -> bytes:
    """A message of a schema that is not known yet."""
    body = b'{"key": "newer"}'
    if isinstance(broker, RedisServer):
        broker.publish_fields("train", {"body": body, "id": "newer", "schema": "99"})
    elif isinstance(broker, SQLiteFile):
        broker.publish_raw("train", body)
        broker.execute("UPDATE jobs SET schema = 99")
    else:
        assert isinstance(broker, RabbitMQ)
        broker.publish_with_headers("train", body, {"x-synmanager-schema": 99})
    return body


def test_a_newer_schema(broker: Broker, director: Director, processes: Processes) -> None:
    director.declare()
    body = _newer(broker)
    processes.worker("worker")
    letters = wait_until(director.dead_letters, 30, "a dead letter")
    assert [letter.message.body for letter in letters] == [body]
    assert "newer synmanager (schema 99" in letters[0].reason
    assert not processes.history().runs


@pytest.mark.only("redis", "valkey")
def test_an_entry_without_a_body(
    broker: RedisServer, director: Director, processes: Processes
) -> None:
    director.declare()
    broker.publish_fields("train", {"payload": '{"key": "a"}', "binary": b"\xff"})
    broker.publish_fields("train", {"body": '{"key": "b"}', "id": b"\xff", "schema": "one"})
    broker.publish_raw("train", b'{"key": "sound"}')
    processes.worker("worker")
    processes.await_done({"sound"}, 30)
    letters = director.dead_letters()
    assert len(letters) == 2
    assert "no field 'body'" in letters[0].reason
    assert b"payload" in letters[0].message.body
    assert "id" in letters[1].reason
    assert "schema" in letters[1].reason


@pytest.mark.limit(180)
def test_fuzzed_bodies(
    is_long: bool,
    rng: random.Random,
    broker: Broker,
    director: Director,
    processes: Processes,
    figures: Callable[[str], None],
) -> None:
    """Without a crash or a hang: each body is run, if it is a job, or a dead letter."""
    count = 100_000 if is_long else 2_000
    director.declare()
    worker = processes.worker("worker", log="ERROR", env={"SYNMANAGER_MAX_ATTEMPTS": "1"})
    processes.await_event("ready", 30)
    began = time.monotonic()
    sound = 0
    for start in range(0, count, 1000):
        bodies = [_fuzzed(rng) for _ in range(start, min(start + 1000, count))]
        sound += sum(_is_job(body) for body in bodies)
        broker.publish_many_raw("train", bodies)
    broker.publish_raw("train", b'{"key": "the end"}')
    processes.await_done({"the end"}, 60 + count / 100)
    wait_until(lambda: director.counts().ready == 0, 30, "the queue is empty")
    seconds = time.monotonic() - began
    assert worker.status is None
    history = processes.history()
    ran = len(history.runs) - 1
    dead = director.counts().dead
    failed = sum(event["event"] == "failed" for event in history.events)
    assert ran == sound
    assert dead - failed + ran == count
    figures(f"{count:,} bodies in {seconds:.1f} s: {ran} were jobs, {dead} dead letters")


def _is_job(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body.decode()), dict)
    except (ValueError, RecursionError):
        return False


_SEEDS = (
    b'{"key": "a", "work": 0, "nested": {"list": [1, 2.5, null, true, "\\u00e9"]}}',
    b'[1, 2, {"a": []}]',
    '{"κλειδί": "値", "emoji": "🙂"}'.encode(),
    b'{"a": 1e400, "b": NaN, "c": -Infinity}',
    b"\x00\x01\x02 not text",
)


def _fuzzed(rng: random.Random) -> bytes:
    """A body made from a sound one by some edits, or of bytes at random."""
    if rng.random() < 0.2:
        return rng.randbytes(rng.randrange(200))
    body = bytearray(rng.choice(_SEEDS))
    for _ in range(rng.randrange(4)):
        place = rng.randrange(len(body) + 1)
        match rng.randrange(4):
            case 0:
                body[place:place] = rng.randbytes(rng.randrange(1, 4))
            case 1:
                del body[place : place + rng.randrange(1, 8)]
            case 2:
                body[place:place] = rng.choice((b"{", b"[", b'"', b"\\", b"}", b"]", b":", b","))
            case 3:
                body[place:place] = body[: rng.randrange(20)]
    return bytes(body)

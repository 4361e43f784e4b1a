"""What strangers may have put in the keys of a Redis backend, and what must come of it.

For fakeredis and for servers: what a script does with an error differs between them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from synmanager.backends.base import ExchangeSpec, QueueSpec
from synmanager.backends.redis import RedisBackend
from synmanager.backends.redis.keys import Keys
from synmanager.errors import TopologyError
from synmanager.message import Message

__all__ = ["JUNK", "KINDS", "SPEC", "assert_all_goes_on", "assert_it_is_named"]

SPEC = QueueSpec("train", ExchangeSpec("exchange", "topic"), "key")
AN_ID = "9-9"
THE_LAST_ID = "18446744073709551615-18446744073709551615"

Put = Callable[[Any, Keys, str], object]


def _lease(member: str, score: float = 1.0) -> Put:
    return lambda redis, keys, base: redis.zadd(f"{base}:leases", {member: score})


def _due(member: str | bytes, score: float = 1.0) -> Put:
    return lambda redis, keys, base: redis.zadd(f"{base}:due", {member: score})


def _index(place: str) -> Put:
    """In the place of the job ``next``, which is submitted later."""
    return lambda redis, keys, base: redis.hset(f"{base}:ids", "next", place)


def _entry(stream: str, fields: dict[Any, Any], entry: str = "*") -> Put:
    return lambda redis, keys, base: redis.xadd(f"{base}:{stream}", fields, id=entry)


def _delayed(fields: dict[Any, Any]) -> Put:
    def put(redis: Any, keys: Keys, base: str) -> None:
        redis.xadd(f"{base}:delayed", fields, id=AN_ID)
        redis.zadd(f"{base}:due", {"9-" + "9".rjust(20, "0"): 1})

    return put


#: By name: how it is put there, and whether it is removed, with a warning.
JUNK: dict[str, tuple[Put, bool]] = {
    "due: no entry": (_due("junk"), True),
    "due: bytes": (_due(b"\xff\x00"), True),
    "due: empty": (_due(""), True),
    "due: an id beyond all ids": (_due("9" * 40 + "-" + "9" * 40), False),
    "due: an entry that is not there": (_due(AN_ID), False),
    "due: never": (_due("junk", float("inf")), False),
    "due: always": (_due("junk", float("-inf")), True),
    "leases: no lease": (_lease("junk"), True),
    "leases: an entry that is not there": (_lease(f"normal/{AN_ID}/1/token"), False),
    "leases: an id beyond all ids": (_lease("normal/" + "9" * 40 + "-1/1/token"), False),
    "leases: no rank": (_lease(f"dead/{AN_ID}/1/token"), True),
    "leases: for ever": (_lease(f"normal/{AN_ID}/{10**30}/token"), True),
    "leases: never ends": (_lease("junk", float("inf")), True),
    "ids: no place": (_index("junk"), False),
    "ids: no stream of jobs": (_index(f"dead/{AN_ID}"), False),
    "ids: no entry": (_index("normal/junk"), False),
    "ids: an entry that is not there": (_index(f"normal/{AN_ID}"), False),
    "ids: an id beyond all ids": (_index("delayed/" + "9" * 40 + "-1"), False),
    "bell: a string": (lambda redis, keys, base: redis.set(f"{base}:bell", "ding"), True),
    "bell: the last id": (_entry("bell", {"ring": ""}, THE_LAST_ID), False),
    "bell: fields": (_entry("bell", {b"\xff": b"\x00"}), False),
    "dead: no letter": (_entry("dead", {"some": "thing"}), False),
    "dead: half a letter": (_entry("dead", {"rank": "high", "id": "x"}), False),
    "dead: no numbers": (
        _entry(
            "dead",
            {
                "rank": "vip",
                "id": b"\xff",
                "reason": b"\xff",
                "attempts": "many",
                "died_at": "nan",
                "traceback": "",
            },
        ),
        False,
    ),
    "delayed: no delay": (_entry("delayed", {"some": "thing"}), False),
    "delayed: no fields of ours": (_delayed({"body": "{}"}), False),
    "delayed: no rank": (_delayed({"rank": "vip", "id": "x", "attempts": "0", "body": ""}), False),
    "delayed: no number": (
        _delayed({"rank": "low", "id": "x", "attempts": "x", "body": ""}),
        False,
    ),
    "delayed: no bounds": (
        _delayed({"rank": "low", "id": "x", "attempts": "9" * 40, "body": ""}),
        False,
    ),
    "normal: no body": (_entry("normal", {b"\xff": b"\xff"}), False),
    "normal: many fields": (_entry("normal", {str(n): "" for n in range(9000)}), False),
    "normal: no bounds": (_entry("normal", {"body": "", "attempts": "9" * 40}), False),
    "queues: a name": (lambda redis, keys, base: redis.sadd(keys.queues, b"\xff"), False),
    "exchanges: a type": (
        lambda redis, keys, base: redis.hset(keys.exchanges, "x", b"\xff"),
        False,
    ),
    "route: a name": (
        lambda redis, keys, base: redis.sadd(keys.route("exchange", "key"), b"\xff"),
        False,
    ),
}

#: The keys that may be of a wrong type; the bell is made anew.
KINDS = ["high", "normal", "low", "delayed", "dead", "due", "leases", "ids"]
KINDS += ["exchanges", "queues", "route"]


def _key(keys: Keys, kind: str) -> str:
    route = keys.route(SPEC.exchange.name, SPEC.routing_key)
    others = {"exchanges": keys.exchanges, "queues": keys.queues, "route": route}
    return others.get(kind, f"{keys.base(SPEC.name)}:{kind}")


def _publish(client: RedisBackend, name: str, delay: float = 0.0) -> int:
    message = Message(b"{}", id=name)
    return client.publish(SPEC.exchange.name, SPEC.routing_key, [message], delay=delay)


def _drain(client: RedisBackend) -> set[str]:
    """Run everything, as a worker would; what was done."""
    done = set()
    while delivery := client.receive([SPEC.name], 0.1):
        if delivery.defect:
            client.bury(delivery, delivery.defect)
        else:
            done.add(delivery.message.id)
            client.ack(delivery)
    return done


def assert_all_goes_on(
    connect: Callable[[], RedisBackend],
    redis: Any,
    keys: Keys,
    junk: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    put, removed = JUNK[junk]
    client = connect()
    _publish(client, "before")
    put(redis, keys, keys.base(SPEC.name))
    newcomer = connect()
    with caplog.at_level(logging.WARNING, "synmanager"):
        assert _publish(newcomer, "next") == 0
        assert _publish(newcomer, "next") == 1
        held = [newcomer.receive([SPEC.name], 0) for _ in range(2)]
        for delivery in held:
            assert delivery is not None
            newcomer.renew(delivery)
            newcomer.nack(delivery, delay=0.001)
        assert {"before", "next"} <= _drain(newcomer)
        _publish(newcomer, "letter")
        delivery = newcomer.receive([SPEC.name], 0)
        assert delivery is not None
        newcomer.bury(delivery, "a reason", "a traceback")
        newcomer.count(SPEC.name)
        assert "letter" in {each.message.id for each in newcomer.dead_letters(SPEC.name, 100)}
        assert newcomer.redrive(SPEC.name, 100) >= 1
        assert newcomer.delete(SPEC.name, "letter")
        _publish(newcomer, "later", delay=3600)
        newcomer.purge(SPEC.name)
        newcomer.purge_dead_letters(SPEC.name)
        newcomer.declare(SPEC)
        assert newcomer.receive([SPEC.name], 0) is None
    assert client.is_open
    assert newcomer.is_open
    warnings = [record.getMessage() for record in caplog.records if "removed" in record.msg]
    # A bell is made anew by whoever rings it first.
    assert len(warnings) == removed or (not warnings and junk.startswith("bell"))


def _refused(use: Callable[[], object]) -> str | None:
    try:
        use()
    except TopologyError as error:
        return str(error)
    return None


def assert_it_is_named(
    connect: Callable[[], RedisBackend], redis: Any, keys: Keys, kind: str
) -> None:
    """A key of another type: what needs it says so, and nothing is lost or done twice."""
    client = connect()
    _publish(client, "first")
    _publish(client, "second")
    _publish(client, "delayed", delay=0.01)
    held = client.receive([SPEC.name], 0)
    assert held is not None
    key = _key(keys, kind)
    before = redis.dump(key)
    redis.delete(key)
    redis.set(key, "a stranger's")
    uses: list[Callable[[], object]] = [
        lambda: client.declare(SPEC),
        lambda: _publish(client, "third"),
        lambda: _publish(client, "fourth", delay=0.01),
        lambda: client.receive([SPEC.name], 0.02),
        lambda: client.renew(held),
        lambda: client.nack(held, delay=0.01),
        lambda: client.count(SPEC.name),
        lambda: client.delete(SPEC.name, "nobody"),
        lambda: client.redrive(SPEC.name, 10),
        lambda: client.dead_letters(SPEC.name, 10),
        lambda: client.receive([SPEC.name], 0, held),
        lambda: client.bury(held, "a reason"),
    ]
    named, published = 0, {"first", "second", "delayed"}
    for number, use in enumerate(uses):
        for _ in range(2):  # what was refused once is refused again, and leaves nothing behind
            said = _refused(use)
            if said is None:
                published |= {"third"} if number == 1 else {"fourth"} if number == 2 else set()
            else:
                assert f"{key!r} is of type string" in said
                named += 1
    assert named
    assert client.is_open
    redis.delete(key)
    if before is not None:
        redis.restore(key, 0, before)
    client.close()
    client = connect()
    client.redrive(SPEC.name, 10)
    done: list[str] = []
    while delivery := client.receive([SPEC.name], 0.1):
        done.append(delivery.message.id)
        client.ack(delivery)
    with suppress(ValueError):
        done.remove("first")  # it may have been settled by what held it
    assert sorted(done) == sorted(published - {"first"})

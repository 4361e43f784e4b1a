"""RabbitMQ's queues: of all kinds, full, worn; and what strangers put into messages."""

from __future__ import annotations

import functools
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pika
import pytest
from conftest import connecting, stranded, version
from threads import WAIT, until

from synmanager.backends import DeadLetter, ExchangeSpec, QueueSpec
from synmanager.backends.rabbitmq import RabbitMQBackend, backend
from synmanager.backends.rabbitmq.frames import Content
from synmanager.backends.rabbitmq.lane import Lane
from synmanager.backends.rabbitmq.properties import fresh
from synmanager.engine.session import Session
from synmanager.errors import SynmanagerError, TopologyError, Unroutable
from synmanager.message import Message, encode

LIMITS = {"x-max-length": 1, "x-overflow": "reject-publish"}


@pytest.fixture
def connect(amqp_url: str) -> Iterator[Callable[[], RabbitMQBackend]]:
    with connecting(amqp_url) as connect_one:
        yield connect_one


@pytest.fixture
def make_spec(plain: Any) -> Iterator[Callable[..., QueueSpec]]:
    made: list[QueueSpec] = []

    def make_one(arguments: dict[str, Any] | None = None, **flags: bool) -> QueueSpec:
        """A queue that the test declares; with arguments, one that a stranger has made."""
        name = f"topology-{uuid4().hex}"
        made.append(QueueSpec(name, ExchangeSpec(f"{name}-exchange", "topic"), "key"))
        if arguments is not None:
            plain.queue_declare(name, arguments=arguments, **{"durable": True, **flags})
        return made[-1]

    yield make_one
    for spec in made:
        for name in (spec.name, f"{spec.name}.dead", f"~{spec.name}.due"):
            plain.queue_delete(name)
        for name in (spec.exchange.name, f"~{spec.name}.due"):
            plain.exchange_delete(name)


@pytest.fixture
def spec(make_spec: Callable[..., QueueSpec]) -> QueueSpec:
    return make_spec()


def publish(
    client: RabbitMQBackend, spec: QueueSpec, number: int = 1, **options: Any
) -> list[Message]:
    jobs = [Message(encode({"number": n})) for n in range(number)]
    client.publish(spec.exchange.name, spec.routing_key, jobs, **options)
    return jobs


def take(client: RabbitMQBackend, spec: QueueSpec) -> Any:
    delivery = client.receive([spec.name], WAIT)
    assert delivery is not None
    return delivery


def bury(client: RabbitMQBackend, spec: QueueSpec, number: int) -> None:
    publish(client, spec, number)
    for n in range(number):
        client.bury(take(client, spec), f"reason {n}")


def has_count(plain: Any, queue: str, count: int) -> bool:
    return bool(plain.queue_declare(queue, passive=True).method.message_count == count)


# Reconnections.


def test_who_comes_back_to_what_stands_changes_nothing(
    client: RabbitMQBackend, spec: QueueSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand workers do, when a broker is back, and each binding costs that a transaction."""
    asked: list[str] = []
    call = Lane.call

    def note(lane: Lane, method: str, *arguments: Any, **options: Any) -> Any:
        asked.append(method if options.get("passive") is not True else "look")
        return call(lane, method, *arguments, **options)

    client.declare(spec)
    client.close()
    client.open()
    monkeypatch.setattr(Lane, "call", note)
    client.declare(spec)
    assert {*asked} == {"confirm_delivery", "look", "queue_declare"}
    assert len(asked) <= 6


@pytest.mark.parametrize("gone", ["exchange", "queue", "dead", "due", "bindings", "all"])
def test_what_went_while_nobody_was_connected_is_made_again(
    client: RabbitMQBackend, plain: Any, spec: QueueSpec, gone: str
) -> None:
    dead, due = f"{spec.name}.dead", f"~{spec.name}.due"
    session = Session(client)
    session.open(spec)
    client.close()
    for name, kinds in ((spec.name, "queue all"), (dead, "dead all"), (due, "due all")):
        if gone in kinds.split():
            plain.queue_delete(name)
    if gone in ("exchange", "all"):
        plain.exchange_delete(spec.exchange.name)
    if gone == "bindings":
        plain.queue_unbind(spec.name, spec.exchange.name, spec.routing_key)

    def send(delay: float) -> None:
        message = Message(b"{}")
        session.publish(spec.exchange.name, spec.routing_key, [message], delay=delay)
        first = take(client, spec)
        session.call(lambda backend: backend.nack(first, delay=0.1))
        second = take(client, spec)
        assert second.message.id == message.id
        session.call(lambda backend: backend.bury(second, "planted"))

    send(delay=0)
    send(delay=0.1)
    assert [letter.reason for letter in client.dead_letters(spec.name, 9)] == ["planted"] * 2


# Delays.


def test_what_a_full_queue_refuses_holds_up_no_other_delay(
    client: RabbitMQBackend, plain: Any, make_spec: Callable[..., QueueSpec]
) -> None:
    """More of it than RabbitMQ dead-letters at a time."""
    full, other = make_spec(LIMITS), make_spec()
    client.declare(full, other)
    publish(client, full, 40, delay=0.1)
    until(lambda: has_count(plain, full.name, 1), "the first of them has come")
    publish(client, other, delay=0.3)
    client.nack(take(client, other), delay=0.1)  # held up, it would come after three minutes
    client.ack(take(client, other))


def test_the_longest_delay_is_taken(client: RabbitMQBackend, spec: QueueSpec) -> None:
    client.declare(spec)
    publish(client, spec)
    client.nack(take(client, spec), delay=client.features.longest_delay)
    publish(client, spec, delay=client.features.longest_delay)
    assert client.receive([spec.name], 0.3) is None


def test_what_0_2_0_delayed_arrives(client: RabbitMQBackend, plain: Any, spec: QueueSpec) -> None:
    """Its cascade had other names, and ended in the queues themselves; strays were put aside."""
    client.declare(spec)
    otherwise = {"alternate-exchange": "synmanager.delay.stranded"}
    plain.exchange_declare("synmanager.delay.due", "headers", durable=True, arguments=otherwise)
    old = {"synmanager-exchange": spec.exchange.name, "synmanager-key": spec.routing_key}
    plain.queue_bind(spec.name, "synmanager.delay.due", arguments={"x-match": "all", **old})
    stray = {"synmanager-queue": spec.name, "synmanager-delay-3": True, "CC": [spec.name]}
    for exchange, key, headers in (
        ("synmanager.delay.due", "", old),
        ("", "synmanager.delay.stranded", stray),
    ):
        properties = pika.BasicProperties(headers=headers, message_id=key or "due")
        plain.basic_publish(exchange, key, b"{}", properties)
    assert take(client, spec).message.id == "due"
    plain.queue_purge(spec.name)  # what the stray's CC was good for
    plain.queue_delete(spec.name)
    with pytest.raises(TopologyError):
        client.count(spec.name)
    client.declare(spec)
    delivery = take(client, spec)
    assert delivery.message.id == "synmanager.delay.stranded"
    client.ack(delivery)
    assert client.receive([spec.name], 0.2) is None


def test_a_queue_that_comes_back_gets_its_own_delayed_jobs_once(
    client: RabbitMQBackend, plain: Any, make_spec: Callable[..., QueueSpec]
) -> None:
    """And nobody else's: the others on its exchange have had their copies, or wait for them."""
    kept = make_spec()
    exchange = ExchangeSpec(f"{kept.exchange.name}-fanout", "fanout")
    kept, *gone = (replace(each, exchange=exchange) for each in (kept, make_spec(), make_spec()))
    client.declare(kept, *gone)
    for spec in gone:
        plain.queue_delete(spec.name)
    ids = {message.id for message in publish(client, kept, 3, delay=0.1)}
    for _ in range(3):
        client.ack(take(client, kept))
    until(lambda: sum(each in ids for each in stranded(plain)) == 6, "they are put aside")
    client.close()
    client.open()
    for spec in gone:
        client.declare(spec)
        taken = [take(client, spec) for _ in range(3)]
        assert [each.message.body for each in taken] == [encode({"number": n}) for n in range(3)]
        for delivery in taken:
            client.ack(delivery)
    assert client.receive([kept.name, *(spec.name for spec in gone)], 0.2) is None
    plain.exchange_delete(exchange.name)


# Kinds of queues.

UNFIT: dict[str, tuple[dict[str, Any], dict[str, bool], str]] = {
    "stream": ({"x-queue-type": "stream"}, {}, "is a stream"),
    "single active": ({"x-single-active-consumer": True}, {}, "single active consumer"),
    "single active, with more": (
        {
            "x-single-active-consumer": True,
            "x-max-length": 9,
            "x-dead-letter-exchange": "other",
        },
        {},
        "single active consumer",
    ),
    "single active quorum": (
        {"x-single-active-consumer": True, "x-queue-type": "quorum"},
        {},
        "single active consumer",
    ),
    "deleted with its last consumer": ({}, {"auto_delete": True}, "auto-delete"),
    "exclusive": ({}, {"exclusive": True, "durable": False}, "exclusive"),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_queue_that_cannot_carry_jobs_is_named(
    client: RabbitMQBackend, make_spec: Callable[..., QueueSpec], kind: str
) -> None:
    arguments, flags, reason = UNFIT[kind]
    spec = make_spec(arguments, **flags)
    with pytest.raises(TopologyError, match=reason) as error:
        client.declare(spec)
    assert spec.name in str(error.value)
    assert client.is_open


def test_dead_letters_in_a_stream_are_refused(
    client: RabbitMQBackend, plain: Any, spec: QueueSpec
) -> None:
    plain.queue_declare(f"{spec.name}.dead", durable=True, arguments={"x-queue-type": "stream"})
    with pytest.raises(TopologyError, match=r"\.dead' .* is a stream"):
        client.declare(spec)


@pytest.mark.parametrize("wait", [0, 0.2])
def test_a_stream_is_refused_by_who_only_receives(
    client: RabbitMQBackend, make_spec: Callable[..., QueueSpec], wait: float
) -> None:
    spec = make_spec({"x-queue-type": "stream"})
    with pytest.raises(TopologyError, match="stream"):
        client.receive([spec.name], wait)


def test_a_queue_that_somebody_else_has_to_himself(
    client: RabbitMQBackend, plain: Any, spec: QueueSpec
) -> None:
    client.declare(spec)
    plain.basic_consume(spec.name, lambda *_: None, exclusive=True)
    with pytest.raises(TopologyError, match=f"{spec.name}.*exclusive use"):
        client.receive([spec.name], 1)


@pytest.mark.parametrize(
    ("arguments", "flags", "what"),
    [
        ({"x-expires": 60_000_000}, {}, "x-expires"),
        ({"x-message-ttl": 60_000_000, "x-max-length": 9}, {}, "x-message-ttl and x-max-length"),
        ({}, {"durable": False}, "durability"),
        (LIMITS, {}, ""),
        ({"x-max-priority": 10, "x-queue-mode": "lazy"}, {}, ""),
    ],
    ids=["expires", "drops", "transient", "refuses", "of its own"],
)
def test_a_queue_that_may_lose_jobs_is_taken_with_a_warning(
    client: RabbitMQBackend,
    make_spec: Callable[..., QueueSpec],
    caplog: pytest.LogCaptureFixture,
    arguments: dict[str, Any],
    flags: dict[str, bool],
    what: str,
) -> None:
    spec = make_spec(arguments, **flags)
    client.declare(spec)
    publish(client, spec)
    client.ack(take(client, spec))
    warnings = [r.getMessage() for r in caplog.records if "may lose" in r.getMessage()]
    assert len(warnings) == bool(what)
    assert what in "".join(warnings)
    assert ("cannot rank" in caplog.text) == ("x-max-priority" not in arguments)


# Quorum queues, which throw away what was handed out too often.


@pytest.fixture(params=[1, None], ids=["limit 1", "the broker's limit"])
def quorum(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The arguments of one; where the broker has no limit, that of 4.0."""
    return {"x-queue-type": "quorum", "x-delivery-limit": request.param or 20}


def puts_back_in_place(plain: Any) -> bool:
    """Whether a quorum queue has what was only looked at where it was; from 4.3 on, at its end."""
    return version(plain) < (4, 3)


def bodies_of(letters: list[DeadLetter]) -> list[bytes]:
    return sorted(letter.message.body for letter in letters)


@pytest.mark.parametrize("how", ["workers that die", "get and give back"])
def test_a_quorum_queue_drops_no_job_that_comes_back_often(
    connect: Callable[[], RabbitMQBackend],
    plain: Any,
    make_spec: Callable[..., QueueSpec],
    quorum: dict[str, Any],
    how: str,
) -> None:
    spec = make_spec(quorum)
    client = connect()
    client.declare(spec)
    publish(client, spec)
    # From 4.3 on, the broker tells what was only given back from what its holder did not survive.
    counts = how != "get and give back" or version(plain) < (4, 3)
    for attempt in range(1, 25):
        worker = connect()
        delivery = take(worker, spec)
        assert delivery.attempt == (attempt if counts else 1)
        if how == "get and give back":
            with worker._link as link:  # type: ignore[union-attr]
                delivery.receipt.arrival.lane.close()
                link.wait(functools.partial(getattr, delivery.receipt.arrival.lane, "is_lost"))
        else:
            worker.close()
    last = take(client, spec)
    client.bury(last, "enough")
    (letter,) = client.dead_letters(spec.name, 10)
    assert letter.attempts == (25 if counts else 1)


@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_what_a_cluster_hands_out_again_is_held_off(
    amqp_url: str,
    make_spec: Callable[..., QueueSpec],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    """It does so in the moment in which it loses a worker's node, and the worker does not know."""
    spec = make_spec({"x-queue-type": kind})
    parts = urlsplit(amqp_url)
    several = parts._replace(netloc=f"{parts.netloc},localhost:{parts.port}").geturl()
    with connecting(amqp_url) as one, connecting(several) as connect:
        one().declare(spec)
        publish(one(), spec)
        assert lose(one(), spec) == (1, 0.0)
        assert lose(one(), spec) == (2, 0.0)  # it lost the connection itself
        monkeypatch.setattr(backend, "_HOLD_OFF", 600.0)
        attempt, seconds = lose(connect(), spec)
        assert attempt == 3
        assert 0 < seconds <= 600
        attempt, left = lose(connect(), spec)
        assert attempt == 3  # so nobody has begun it
        assert 0 < left < seconds
        worker = connect()
        worker.nack(take(worker, spec), count=False)
        attempt, left = lose(connect(), spec)
        assert attempt == 3
        assert left > 0
        monkeypatch.setattr(backend, "_HOLD_OFF", 0.01)  # and that is past
        assert lose(connect(), spec)[0] == 4


def lose(worker: RabbitMQBackend, spec: QueueSpec) -> tuple[int, float]:
    """Take the job and lose it; which attempt it was, and for how long it was to be held off."""
    delivery = take(worker, spec)
    worker.close()
    return delivery.attempt, delivery.hold_off


def test_looking_at_dead_letters_in_a_quorum_queue_loses_nothing(
    client: RabbitMQBackend,
    plain: Any,
    make_spec: Callable[..., QueueSpec],
    quorum: dict[str, Any],
) -> None:
    spec, full = make_spec(), make_spec(LIMITS)
    plain.queue_declare(f"{spec.name}.dead", durable=True, arguments=quorum)
    client.declare(spec, full)
    bury(client, spec, 5)
    strange = pika.BasicProperties(headers={"x-death": [{"count": 1}], "score": 1}, type="kept")
    plain.basic_publish("", f"{spec.name}.dead", b"foreign", strange)
    until(lambda: has_count(plain, f"{spec.name}.dead", 6), "all are there")
    before = client.dead_letters(spec.name, 10)
    for _ in range(25):
        assert len(client.dead_letters(spec.name, 3)) == 3
        if puts_back_in_place(plain):
            assert client.dead_letters(spec.name, 3) == before[:3]
    after = client.dead_letters(spec.name, 10)
    assert bodies_of(after) == bodies_of(before)
    if not puts_back_in_place(plain):
        return
    assert after[:5] == before[:5]
    until(lambda: has_count(plain, f"{spec.name}.dead", 6), "all are back")
    plain.queue_purge(spec.name)
    assert client.redrive(spec.name, 5) == 5
    taken = [take(client, spec) for _ in range(5)]
    assert [each.message.id for each in taken] == [letter.message.id for letter in before[:5]]
    _, properties, body = plain.basic_get(f"{spec.name}.dead", auto_ack=True)
    assert (properties.type, body) == ("kept", b"foreign")
    assert {"x-death", "score"} <= set(properties.headers)


def test_what_cannot_be_redriven_stays_dead_however_often(
    client: RabbitMQBackend,
    plain: Any,
    make_spec: Callable[..., QueueSpec],
    quorum: dict[str, Any],
) -> None:
    spec = make_spec()
    plain.queue_declare(f"{spec.name}.dead", durable=True, arguments=quorum)
    client.declare(spec)
    bury(client, spec, 3)
    before = client.dead_letters(spec.name, 10)
    plain.queue_delete(spec.name)
    for _ in range(25):
        with pytest.raises(Unroutable):
            client.redrive(spec.name, 10)
    assert client.dead_letters(spec.name, 10) == before


# Many dead letters.


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_many_letters_that_are_picked_are_gone(
    client: RabbitMQBackend,
    plain: Any,
    make_spec: Callable[..., QueueSpec],
    kind: str,
    every: int,
) -> None:
    """A quorum queue hears of thirty at a time; the rest must not be forgotten as all ends."""
    spec = make_spec()
    plain.queue_declare(f"{spec.name}.dead", durable=True, arguments={"x-queue-type": kind})
    client.declare(spec)
    ids = [message.id for message in publish_letters(client, spec, 400)][::every]
    assert client.redrive_letters(spec.name, ids[:100]) == 100
    assert client.purge_letters(spec.name, ids[100:]) == len(ids) - 100
    left = 400 - len(ids)
    until(lambda: client.count(spec.name).dead == left, "the others are back")
    assert len(client.dead_letters(spec.name, 1000)) == left
    assert client.count(spec.name).ready == 100


def publish_letters(client: RabbitMQBackend, spec: QueueSpec, number: int) -> list[Message]:
    letters = [Message(b"%d" % n) for n in range(number)]
    client.publish("", f"{spec.name}.dead", letters)
    return letters


def test_many_dead_letters_are_listed_and_redriven_whole(
    client: RabbitMQBackend, spec: QueueSpec
) -> None:
    client.declare(spec)
    letters = publish_letters(client, spec, 3000)
    for limit in (10, 2500, 10_000):
        listed = client.dead_letters(spec.name, limit)
        assert [x.message.body for x in listed] == [x.body for x in letters[:limit]]
        assert len(client.dead_letters(spec.name, 7)) == 7
    client.dead_letters(spec.name, 10_000)
    assert client.redrive(spec.name, 1_000_000) == len(letters)
    assert client.count(spec.name).ready == len(letters)
    assert client.redrive(spec.name, 1_000_000) == 0


def test_what_dies_again_meanwhile_is_not_redriven_again(
    client: RabbitMQBackend, monkeypatch: pytest.MonkeyPatch, spec: QueueSpec
) -> None:
    monkeypatch.setattr("synmanager.backends.rabbitmq.backend._REDRIVEN_AT_ONCE", 2)
    client.declare(spec)
    dead = f"{spec.name}.dead"
    client.publish("", dead, [Message(b"{}") for _ in range(5)])
    moved = []

    def redrive_and_die(lane: Any, queue: str, arrivals: Any) -> None:
        lane.publish("", dead, [fresh(Message(each.body)) for each in arrivals])
        lane.ack(arrivals[-1].tag, multiple=True)
        moved.extend(arrivals)

    monkeypatch.setattr(client, "_redrive", redrive_and_die)
    assert client.redrive(spec.name, 1000) == len(moved) == 5


# What strangers send.


def test_no_header_of_a_stranger_sends_copies_elsewhere(
    client: RabbitMQBackend, plain: Any, make_spec: Callable[..., QueueSpec]
) -> None:
    spec, other = make_spec(), make_spec()
    client.declare(spec, other)
    headers = {"CC": [other.name], "BCC": [other.name], "tenant": "a"}
    plain.basic_publish("", spec.name, b"{}", pika.BasicProperties(headers=headers))
    until(lambda: has_count(plain, other.name, 1), "the broker copies it once")
    client.nack(take(client, spec))
    client.nack(take(client, spec), delay=0.1)
    client.close()  # a crash, of which the copy bears the count
    client.open()
    held = take(client, spec)
    client.close()
    client.open()
    assert take(client, spec).attempt == held.attempt + 1
    client.close()
    client.open()
    client.bury(take(client, spec), "a reason")
    client.redrive(spec.name, 10)
    client.bury(take(client, spec), "a reason")
    _, properties, _ = plain.basic_get(f"{spec.name}.dead", auto_ack=True)
    assert properties.headers["tenant"] == "a"
    assert plain.queue_purge(other.name).method.message_count == 1


def table(*fields: bytes) -> bytes:
    content = b"".join(fields)
    return struct.pack(">I", len(content)) + content


def nested(depth: int) -> bytes:
    inner = table()
    for _ in range(depth):
        inner = table(b"\x01aF" + inner)
    return inner


def field(name: bytes, kind: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + kind + value


def short(value: bytes) -> bytes:
    return bytes([len(value)]) + value


_NUMBERS = {
    b"b": b"\x80",
    b"B": b"\xff",
    b"u": b"\xff\xff",
    b"s": b"\x80\0",
    b"I": b"\x80\0\0\0",
    b"i": b"\xff\xff\xff\xff",
    b"l": b"\x7f" + b"\xff" * 7,
    b"L": b"\x80" + b"\0" * 7,
    b"f": struct.pack(">f", 1e30),
    b"d": struct.pack(">d", 1e300),
    b"D": b"\xff\x7f\xff\xff\xff",
    b"t": b"\x02",
    b"T": struct.pack(">Q", 1 << 40),
    b"V": b"",
    b"S": struct.pack(">I", 3) + b"\xff\0\xfe",
    b"x": struct.pack(">I", 3) + b"\xff\0\xfe",
    b"A": struct.pack(">I", 5) + b"VVVVV",
    b"F": table(field(b"a", b"d", struct.pack(">d", -1e300))),
}

_OURS = (
    b"x-synmanager-attempts",
    b"x-synmanager-submitted-at",
    b"x-synmanager-schema",
    b"x-synmanager-header-a",
    b"x-synmanager-reason",
    b"x-synmanager-died-at",
    b"x-delivery-count",
)

P = pika.BasicProperties

#: Flags and what follows them, by what is strange about it.
HOSTILE: dict[str, tuple[int, bytes]] = {
    f"{name.decode()} as {kind.decode()}": (P.FLAG_HEADERS, table(field(name, kind, value)))
    for name in (*_OURS, b"other", b"CC")
    for kind, value in _NUMBERS.items()
    if not (name == b"CC" and kind != b"A")  # the broker takes no other
}
HOSTILE |= {
    "nested": (P.FLAG_HEADERS, nested(150)),
    "nested deep": (P.FLAG_HEADERS, nested(1500)),
    "large": (P.FLAG_HEADERS, table(field(b"a", b"x", struct.pack(">I", 99_000) + b"x" * 99_000))),
    "large header of ours": (
        P.FLAG_HEADERS,
        table(field(_OURS[3], b"S", struct.pack(">I", 99_000) + b"x" * 99_000)),
    ),
    "large reason": (
        P.FLAG_HEADERS,
        table(field(_OURS[4], b"S", struct.pack(">I", 99_000) + b"x" * 99_000)),
    ),
    "no id": (P.FLAG_MESSAGE_ID, short(b"")),
    "id of bytes": (P.FLAG_MESSAGE_ID, short(b"\xff\xfe")),
    "long id": (P.FLAG_MESSAGE_ID, short(b"x" * 255)),
    "texts of bytes": (
        P.FLAG_CONTENT_TYPE | P.FLAG_CORRELATION_ID | P.FLAG_REPLY_TO | P.FLAG_TYPE,
        short(b"\xff") * 4,
    ),
    "last moment": (P.FLAG_TIMESTAMP, struct.pack(">Q", (1 << 63) - 1)),
    "user": (P.FLAG_USER_ID, short(b"guest")),
    "priority and mode": (P.FLAG_DELIVERY_MODE | P.FLAG_PRIORITY, b"\x01\xff"),
}


def test_nothing_in_a_strangers_properties_stops_anything(
    client: RabbitMQBackend, spec: QueueSpec
) -> None:
    """Through every way that a message can take."""
    client.declare(spec)
    bodies = {name: encode({"name": name}) for name in HOSTILE}
    contents = [
        Content(struct.pack(">H", flags) + encoded, bodies[name])
        for name, (flags, encoded) in HOSTILE.items()
    ]

    def publish_all(queue: str) -> None:
        with client._link as link, link.lane() as lane:  # type: ignore[union-attr]
            lane.publish("", queue, contents)

    def take_all() -> list[Any]:
        taken = [take(client, spec) for _ in contents]
        assert {each.message.body for each in taken} == set(bodies.values())
        assert all(1 <= each.attempt <= 1_000_000_010 for each in taken)
        return taken

    def bury_all() -> None:
        for delivery in take_all():
            client.bury(delivery, delivery.defect or "a reason", "a traceback")
        letters = client.dead_letters(spec.name, 1000)
        assert {letter.message.body for letter in letters} == set(bodies.values())
        assert {letter.traceback for letter in letters} == {"a traceback"}

    publish_all(spec.name)
    take_all()
    client.close()  # a crash
    client.open()
    for delivery in take_all():
        client.nack(delivery)
    for delivery in take_all():
        client.nack(delivery, delay=0.1)
    bury_all()
    assert client.redrive(spec.name, 1000) == len(contents)
    bury_all()
    client.purge_dead_letters(spec.name)
    publish_all(f"{spec.name}.dead")  # as letters that a stranger laid down
    for letter in client.dead_letters(spec.name, 1000):
        assert isinstance(letter.message.id, str)
        time.gmtime(letter.died_at)
        time.gmtime(letter.message.submitted_at or 0)
    assert client.redrive(spec.name, 1000) == len(contents)
    for delivery in take_all():
        client.ack(delivery)


@pytest.mark.parametrize(
    "message",
    [
        Message(b"{}", id="x" * 256),
        Message(b"{}", id="half \ud800"),
        Message(b"{}", id="x" * 256, headers={"a": "b"}),
        Message(b"{}", headers={"a": "x" * 200_000}),
        Message(b"{}", headers={"a" * 250: "x"}),
        Message(b"{}", headers={"a": "half \ud800"}),
        Message(b"{}", submitted_at=float("inf")),
        Message(b"{}", submitted_at=1e300),
    ],
    ids=lambda message: "",
)
@pytest.mark.parametrize("delay", [0.0, 0.1])
def test_what_cannot_be_carried_is_refused_before_it_is_sent(
    client: RabbitMQBackend, spec: QueueSpec, message: Message, delay: float
) -> None:
    client.declare(spec)
    with pytest.raises(SynmanagerError, match="carr"):
        client.publish(spec.exchange.name, spec.routing_key, [message], delay=delay)
    publish(client, spec)
    assert client.count(spec.name).ready == 1

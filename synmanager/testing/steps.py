"""The steps of which the tests are made."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

import pytest

from synmanager.backends.base import Counts, Delivery, ExchangeSpec, QueueBackend, QueueSpec
from synmanager.errors import BrokerUnavailable, Unsupported
from synmanager.message import Message, Rank, encode
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.watchdog import in_thread

__all__ = [
    "AT_ONCE",
    "HEADERS",
    "WAIT",
    "assert_counts",
    "bodies",
    "bury",
    "drain",
    "end_leases",
    "in_thread",
    "make_message",
    "make_spec",
    "needs_return",
    "needs_sight",
    "publish",
    "reopen",
    "take",
    "takes_nothing",
]

#: What may travel beside a body.
HEADERS = {"deadline": "1764094604.5", "reply-to": "ünicode 🐧 'quoted' \"twice\"\n", "empty": ""}

#: Seconds within which what must come has come, on a slow machine and a busy broker.
WAIT = 10.0

#: Seconds that mean "woken", and not "found at the next look", on a machine that may stand still.
AT_ONCE = 2.5

#: A delivery that a test does not keep would go back.
_held: WeakKeyDictionary[QueueBackend, list[Delivery]] = WeakKeyDictionary()


def make_spec(type: str = "topic", *, exchange: ExchangeSpec | None = None) -> QueueSpec:
    """A queue that nobody else has; on an exchange of its own unless one is given."""
    name = f"contract-{uuid4().hex}"
    return QueueSpec(name, exchange or ExchangeSpec(f"{name}-exchange", type), f"{name}-key")


def make_message(number: Any = 0, *, rank: Rank = Rank.NORMAL) -> Message:
    return Message(encode({"number": number}), rank=rank)


def publish(
    client: QueueBackend, spec: QueueSpec, *messages: Message, delay: float = 0.0
) -> list[Message]:
    """Publish to the one queue of ``spec``; a fresh message if none is given."""
    batch = list(messages) or [make_message()]
    client.publish(spec.exchange.name, spec.routing_key, batch, delay=delay)
    return batch


def take(client: QueueBackend, *specs: QueueSpec, wait: float = WAIT) -> Delivery:
    """Receive what must be there, or come; it is held until it is settled, or its client goes."""
    delivery = client.receive([spec.name for spec in specs], wait)
    assert delivery is not None, f"nothing came within {wait} s"
    _held.setdefault(client, []).append(delivery)
    return delivery


def bury(client: QueueBackend, spec: QueueSpec, number: int) -> list[Message]:
    """Publish so many messages, and make dead letters of them."""
    sent = publish(client, spec, *(make_message(n) for n in range(number)))
    for n in range(number):
        client.bury(take(client, spec), f"reason {n}", f"traceback {n}")
    return sent


def takes_nothing(broker: BrokerUnderTest, client: QueueBackend, *specs: QueueSpec) -> bool:
    """Whether a client finds nothing, neither at once nor after a little while."""
    return client.receive([spec.name for spec in specs], broker.quiet) is None


def drain(broker: BrokerUnderTest, client: QueueBackend, *specs: QueueSpec) -> list[Delivery]:
    """Receive and ack until nothing comes."""
    names = [spec.name for spec in specs]
    taken = []
    while (delivery := client.receive(names, broker.quiet)) is not None:
        client.ack(delivery)
        taken.append(delivery)
    return taken


def bodies(deliveries: list[Delivery]) -> list[bytes]:
    return [delivery.message.body for delivery in deliveries]


def reopen(client: QueueBackend, spec: QueueSpec) -> None:
    """Connect anew after a cut, as a caller does: open, and again if the loss shows only then."""
    for _ in range(5):
        client.open()
        try:
            client.count(spec.name)
            return
        except BrokerUnavailable:
            pass
    raise AssertionError("open() did not make a working connection")


def needs_return(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test in which a dead holder's job comes back.

    Where ``Features.keeps_held`` denies that, the job is gone, which ``Leases`` asserts once.
    """

    @wraps(test)
    def run(self: object, **fixtures: Any) -> None:
        if fixtures["broker"].new_client().features.keeps_held:
            test(self, **fixtures)

    return run


def needs_sight(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that looks at dead letters; where ``Features`` denies that, it is refused."""

    @wraps(test)
    def run(self: object, **fixtures: Any) -> None:
        client: QueueBackend = fixtures["client"]
        if client.features.shows_dead_letters:
            test(self, **fixtures)
            return
        spec = fixtures["spec"] if "spec" in fixtures else fixtures["declare"]()
        with pytest.raises(Unsupported):
            client.dead_letters(spec.name, 1)

    return run


def end_leases(broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec) -> None:
    """Make the broker take back what ``client`` (of ``lease=broker.lease``) holds.

    The client is connected afterwards, like a worker that was frozen or cut off for a while.
    """
    if client.features.timed_lease:
        broker.pass_time(broker.lease * 1.2)
    else:
        broker.cut(client)
        reopen(client, spec)


def assert_counts(
    client: QueueBackend,
    spec: QueueSpec,
    *,
    ready: int = 0,
    leased: int = 0,
    delayed: int = 0,
    dead: int = 0,
) -> None:
    """Assert what ``count`` says, with None for what this broker cannot tell.

    Waits for it: a broker may confirm what is published and carry out without an answer what is
    settled.
    """
    features = client.features
    expected = Counts(
        ready=ready,
        leased=leased if features.counts_leased else None,
        delayed=delayed if features.counts_delayed else None,
        dead=dead,
    )
    deadline = time.monotonic() + WAIT / 2
    while client.count(spec.name) != expected and time.monotonic() < deadline:
        time.sleep(0.01)
    assert client.count(spec.name) == expected

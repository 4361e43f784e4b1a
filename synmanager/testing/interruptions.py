"""Connections that end in the middle: at every round trip of every operation, before the broker
has acted and after it. Whatever is cut, no job is lost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pytest

from synmanager.backends.base import Delivery, QueueBackend, QueueSpec
from synmanager.errors import BrokerUnavailable, NotPublished
from synmanager.message import Message
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.steps import WAIT, assert_counts, make_message, publish, reopen, take
from synmanager.testing.topic import Declare, Topic

__all__ = ["Interruptions"]

#: More round trips than this, and an operation is not looked at any further.
MOST = 60


@dataclass
class Case:
    """One operation that was cut, and what is known of its queue.

    ``there``: must be in the queue or dead; ``perhaps``: may be. ``error``: how the call ended.
    """

    name: str
    spec: QueueSpec
    there: list[Message] = field(default_factory=list)
    perhaps: list[Message] = field(default_factory=list)
    error: BrokerUnavailable | None = None


def _publish(client: QueueBackend, case: Case, held: Delivery | None, delay: float = 0.0) -> None:
    batch = [make_message(f"new {number}") for number in range(5)]
    # Long enough for several packets.
    batch.append(Message(b'{"long": "%s"}' % (b"x" * 300_000)))
    case.perhaps += batch
    try:
        publish(client, case.spec, *batch, delay=delay)
        unconfirmed: list[Message] = []
    except NotPublished as error:
        unconfirmed = list(error.unconfirmed)
        assert unconfirmed, "interrupted, and yet nothing in doubt"
        raise
    except BrokerUnavailable:
        unconfirmed = batch  # it never left
        raise
    finally:
        ids = {message.id for message in unconfirmed}
        case.there += [message for message in batch if message.id not in ids]


def _settle(
    settle: Callable[[QueueBackend, Delivery], object], *, is_gone: bool
) -> Callable[[QueueBackend, Case, Delivery | None], None]:
    def operate(client: QueueBackend, case: Case, held: Delivery | None) -> None:
        assert held is not None
        message = held.message
        if is_gone:
            case.there = [m for m in case.there if m.id != message.id]
            case.perhaps.append(message)
        settle(client, held)

    return operate


def _receive(client: QueueBackend, case: Case, held: Delivery | None) -> None:
    client.receive([case.spec.name], 0)


def _redrive(client: QueueBackend, case: Case, held: Delivery | None) -> None:
    assert client.redrive(case.spec.name, 10) == len(case.there)


def _declare(client: QueueBackend, case: Case, held: Delivery | None) -> None:
    client.declare(case.spec)


#: What is done, and whether to a delivery (else to dead letters, or to neither).
OPERATIONS: dict[str, Callable[[QueueBackend, Case, Delivery | None], None]] = {
    "publish": _publish,
    "publish later": lambda client, case, held: _publish(client, case, held, delay=0.01),
    "receive": _receive,
    "ack": _settle(lambda client, held: client.ack(held), is_gone=True),
    "receive and ack": _settle(
        lambda client, held: client.receive([held.queue], 0, held), is_gone=True
    ),
    "nack": _settle(lambda client, held: client.nack(held), is_gone=False),
    "nack later": _settle(lambda client, held: client.nack(held, delay=0.01), is_gone=False),
    "bury": _settle(lambda client, held: client.bury(held, "a reason"), is_gone=False),
    "renew": _settle(lambda client, held: client.renew(held), is_gone=False),
    "redrive": _redrive,
    "declare": _declare,
}

HOLDS = {"ack", "receive and ack", "nack", "nack later", "bury", "renew"}

#: How a delivery is settled, and what is counted afterwards.
OUTCOMES: dict[str, tuple[Callable[[QueueBackend, Delivery], object], dict[str, int]]] = {
    "ack": (lambda client, held: client.ack(held), {}),
    "nack": (lambda client, held: client.nack(held), {"ready": 1}),
    "nack later": (lambda client, held: client.nack(held, delay=3600), {"delayed": 1}),
    "bury": (lambda client, held: client.bury(held, "a reason"), {"dead": 1}),
}


class Interruptions(Topic):
    @pytest.mark.parametrize("operation", OPERATIONS)
    def test_nothing_is_lost_wherever_it_is_cut(
        self, broker: BrokerUnderTest, client: QueueBackend, declare: Declare, operation: str
    ) -> None:
        if broker.lacks("cut_round_trip"):
            broker.miss("cut_round_trip")
        if not client.features.keeps_held and operation in HOLDS:
            return  # such a broker loses what its holder held
        cases = []
        spare = declare()
        for acted in (False, True):
            for number in count(1):
                assert number <= MOST, f"{operation} needs more than {MOST} round trips"
                case = self.cut(broker, client, declare(), spare, operation, number, acted)
                cases.append(case)
                if case.name.endswith("not cut"):
                    break
        if client.features.timed_lease:
            broker.pass_time(broker.lease * 1.2)
        broker.pass_time(0.05)  # what was put back for later
        for case in cases:
            self.check(client, case)

    @pytest.mark.parametrize("operation", OUTCOMES)
    def test_a_settlement_whose_reply_was_lost_can_be_asked_for_again(
        self, broker: BrokerUnderTest, client: QueueBackend, declare: Declare, operation: str
    ) -> None:
        """If it was carried out, it is, and not a second time; ``LeaseLost`` would be no truth."""
        if broker.lacks("cut_round_trip"):
            broker.miss("cut_round_trip")
        if not client.features.timed_lease:
            return  # what is held comes back with the end of its connection
        settle, outcome = OUTCOMES[operation]
        for number in count(1):
            assert number <= MOST, f"{operation} needs more than {MOST} round trips"
            spec = declare()
            publish(client, spec)
            worker = broker.connect(wired=True)
            worker.declare(spec)
            held = take(worker, spec)
            is_cut = broker.cut_round_trip(worker, number, acted=True)
            try:
                settle(worker, held)
            except BrokerUnavailable:
                assert is_cut(), f"{operation}: unavailable, and was not cut"
                reopen(worker, spec)
                settle(worker, held)
            else:
                if not is_cut():
                    break
            assert held.settled
            assert_counts(client, spec, **outcome)
            if operation == "nack":
                assert take(client, spec).attempt == 2
            worker.close()

    def cut(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        spec: QueueSpec,
        spare: QueueSpec,
        operation: str,
        number: int,
        acted: bool,
    ) -> Case:
        """Do it once, on a queue and a connection of its own, which is cut at that round trip."""
        case = Case(f"{operation}, cut {'after' if acted else 'before'} {number}", spec)
        case.there = publish(client, spec, make_message(1), make_message(2))
        worker = broker.connect(wired=True, lease=broker.lease)
        if operation != "declare":
            worker.declare(spec)
        if operation.endswith("later"):
            # The first delay may have to make much, which is for other tests.
            publish(worker, spare, delay=3600)
        held = None
        if operation in HOLDS:
            held = take(worker, spec)
        elif operation == "redrive":
            for _ in case.there:
                client.bury(take(client, spec), "a reason")
        is_cut = broker.cut_round_trip(worker, number, acted=acted)
        try:
            OPERATIONS[operation](worker, case, held)
        except BrokerUnavailable as error:
            case.error = error
        if not is_cut():
            assert case.error is None, f"{case.name}: {case.error}"
            case.name += ", not cut"
        worker.close()
        return case

    def check(self, client: QueueBackend, case: Case) -> None:
        """Look for every job, in the queue and among the dead."""
        found: Counter[str] = Counter()
        if client.features.shows_dead_letters:
            found.update(letter.message.id for letter in client.dead_letters(case.spec.name, 100))
        missing = {message.id for message in case.there} - set(found)
        while True:
            delivery = client.receive([case.spec.name], WAIT if missing else 0)
            if delivery is None:
                break
            client.ack(delivery)
            found[delivery.message.id] += 1
            missing.discard(delivery.message.id)
        assert missing == set(), f"{case.name}: lost"
        batch = (
            {message.id for message in case.perhaps} if case.name.startswith("publish") else set()
        )
        if client.features.atomic_batches:
            assert len(batch & set(found)) in (0, len(batch)), f"{case.name}: a part of a batch"
        known = {message.id for message in case.there + case.perhaps}
        assert set(found) <= known, f"{case.name}: comes from nowhere"
        assert max(found.values(), default=0) <= 2, f"{case.name}: more than twice"
        if client.features.deduplicates:
            assert max(found.values(), default=0) <= 1, f"{case.name}: twice"
        # And the queue is as good as before.
        (sent,) = publish(client, case.spec, make_message("after"))
        delivery = take(client, case.spec)
        assert delivery.message.id == sent.id, f"{case.name}: the queue is not what it was"
        client.ack(delivery)

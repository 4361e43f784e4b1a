"""Open, close, use at the wrong time, and forks."""

from __future__ import annotations

import os
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import suppress

import pytest

from synmanager.backends.base import Delivery, QueueBackend, QueueSpec
from synmanager.errors import BrokerUnavailable, LeaseLost, Unsupported
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.steps import (
    AT_ONCE,
    WAIT,
    assert_counts,
    drain,
    in_thread,
    make_message,
    make_spec,
    publish,
    reopen,
    take,
    takes_nothing,
)
from synmanager.testing.topic import Declare, Topic

__all__ = ["Lifecycle"]

CALLS: dict[str, Callable[[QueueBackend, QueueSpec], object]] = {
    "declare": lambda client, spec: client.declare(make_spec()),
    "publish": lambda client, spec: publish(client, spec),
    "publish later": lambda client, spec: publish(client, spec, delay=1),
    "receive": lambda client, spec: client.receive([spec.name], 0),
    "receive and wait": lambda client, spec: client.receive([spec.name], WAIT),
    "count": lambda client, spec: client.count(spec.name),
    "purge": lambda client, spec: client.purge(spec.name),
    "dead_letters": lambda client, spec: client.dead_letters(spec.name, 1),
    "redrive": lambda client, spec: client.redrive(spec.name, 1),
    "purge_dead_letters": lambda client, spec: client.purge_dead_letters(spec.name),
}


def _refusals(client: QueueBackend, call: str) -> tuple[type[Exception], ...]:
    """What a client without a connection may raise: that, or that it can never do such a thing."""
    if call == "dead_letters" and not client.features.shows_dead_letters:
        return BrokerUnavailable, Unsupported
    return (BrokerUnavailable,)


class Lifecycle(Topic):
    def test_what_nobody_knows_is_unavailable_and_ends_the_connection(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        sent = publish(client, spec, make_message(1))
        broker.confuse(client)
        with pytest.raises(BrokerUnavailable):
            client.count(spec.name)
        assert not client.is_open
        reopen(client, spec)
        assert take(client, spec).message.id == sent[0].id

    def test_open_and_close_are_idempotent(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        fresh = broker.make()
        assert not fresh.is_open
        fresh.close()  # before it was ever open
        fresh.open()
        assert fresh.is_open
        publish(fresh, spec)
        held = take(fresh, spec)
        fresh.open()  # keeps the connection, and so the lease
        fresh.ack(held)
        fresh.close()
        assert not fresh.is_open
        fresh.close()
        assert not fresh.is_open

    def test_a_closed_client_can_be_opened_again(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        for number in range(3):
            client.close()
            client.open()
            assert client.is_open
            (sent,) = publish(client, spec, make_message(number))
            delivery = take(client, spec)
            assert delivery.message.id == sent.id
            client.ack(delivery)
        assert takes_nothing(broker, client, spec)

    @pytest.mark.parametrize("call", CALLS)
    def test_a_client_that_was_never_opened_refuses(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec, call: str
    ) -> None:
        begin = time.monotonic()
        with pytest.raises(_refusals(client, call)):
            CALLS[call](broker.make(), spec)
        assert time.monotonic() - begin < AT_ONCE

    @pytest.mark.parametrize("call", CALLS)
    def test_a_closed_client_refuses(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        other: QueueBackend,
        spec: QueueSpec,
        call: str,
    ) -> None:
        client.close()
        begin = time.monotonic()
        with pytest.raises(_refusals(client, call)):
            CALLS[call](client, spec)
        assert time.monotonic() - begin < AT_ONCE
        assert takes_nothing(broker, other, spec)

    def test_a_closed_client_cannot_delete(self, client: QueueBackend, spec: QueueSpec) -> None:
        client.close()
        with pytest.raises(BrokerUnavailable if client.features.deletes else Unsupported):
            client.delete(spec.name, "any id")

    def test_close_gives_back_what_was_leased(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, declare: Declare
    ) -> None:
        specs = [declare(), declare()]
        sent = [publish(client, spec)[0] for spec in specs]
        for spec in specs:
            take(client, spec)
        client.close()
        for spec, message in zip(specs, sent, strict=True):
            delivery = take(other, spec)
            assert delivery.message.id == message.id
            assert delivery.attempt == 2  # it was begun, and nobody said how it went
            other.ack(delivery)
        assert takes_nothing(broker, other, *specs)

    def test_close_gives_back_to_a_waiting_client(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        (sent,) = publish(client, spec)
        take(client, spec)
        waiting = in_thread(other.receive, [spec.name], WAIT)
        time.sleep(broker.quiet)  # no call tells that another one is waiting
        assert not waiting.done()
        client.close()
        delivery = waiting.result(AT_ONCE)
        assert delivery is not None
        assert delivery.message.id == sent.id

    @pytest.mark.parametrize("reopened", [False, True], ids=["closed", "reopened"])
    @pytest.mark.parametrize(
        "settle",
        [
            lambda client, delivery: client.ack(delivery),
            lambda client, delivery: client.nack(delivery),
            lambda client, delivery: client.bury(delivery, "a reason"),
            lambda client, delivery: client.renew(delivery),
        ],
        ids=["ack", "nack", "bury", "renew"],
    )
    def test_a_delivery_of_before_close_is_lost(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        other: QueueBackend,
        spec: QueueSpec,
        settle: Callable[[QueueBackend, object], None],
        reopened: bool,
    ) -> None:
        publish(client, spec)
        delivery = take(client, spec)
        client.close()
        current = take(other, spec)
        if reopened:
            client.open()
        with pytest.raises(LeaseLost if reopened else (LeaseLost, BrokerUnavailable)):
            settle(client, delivery)
        assert takes_nothing(broker, other, spec)
        other.ack(current)
        assert_counts(other, spec)

    @pytest.mark.parametrize("queues", [1, 3])
    def test_close_ends_a_waiting_receive(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        other: QueueBackend,
        declare: Declare,
        queues: int,
    ) -> None:
        specs = [declare() for _ in range(queues)]
        waiting = in_thread(client.receive, [spec.name for spec in specs], 3600)
        time.sleep(broker.quiet)
        assert not waiting.done()
        begin = time.monotonic()
        client.close()
        with suppress(BrokerUnavailable):
            assert waiting.result(WAIT) is None
        assert time.monotonic() - begin < WAIT
        # The call that was ended left no consumer behind.
        for spec in specs:
            (sent,) = publish(other, spec)
            delivery = take(other, spec, wait=AT_ONCE)
            assert delivery.message.id == sent.id
            assert delivery.attempt == 1

    def test_close_in_the_middle_of_publishing_keeps_what_was_confirmed(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        confirmed: list[str] = []

        def publish_until_closed() -> None:
            while True:
                confirmed.extend(message.id for message in publish(other, spec))

        publishing = in_thread(publish_until_closed)
        while len(confirmed) < 20 and not publishing.done():
            time.sleep(0.001)
        other.close()
        with pytest.raises(BrokerUnavailable):
            publishing.result(WAIT)
        assert len(confirmed) >= 20
        arrived = {delivery.message.id for delivery in drain(broker, client, spec)}
        assert set(confirmed) <= arrived

    def test_other_clients_do_not_notice_a_close(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        publish(client, spec)
        held = take(client, spec)
        other.close()
        client.renew(held)
        client.ack(held)

    def test_a_forked_child_makes_a_connection_of_its_own_or_says_that_it_cannot(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        (sent,) = publish(client, spec)
        held = take(client, spec)
        with warnings.catch_warnings():
            # From Python 3.12 on a fork beside threads warns; that is what is tested here.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            os._exit(_live_in_child(client))
        result = in_thread(lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        assert result.result(3 * WAIT) == CHILD_WORKS
        client.renew(held)
        client.ack(held)
        (sent,) = publish(client, spec)
        assert take(client, spec).message.id == sent.id

    def test_a_forked_child_never_settles_what_its_parent_took(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        (sent,) = publish(client, spec)
        held = take(client, spec)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # as above
            child = os.fork()
        if child == 0:
            os._exit(_settle_in_child(client, held))
        result = in_thread(lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        assert result.result(3 * WAIT) == CHILD_WORKS
        assert_counts(other, spec, leased=1)
        client.renew(held)
        client.nack(held)
        again = take(client, spec)
        assert (again.message.id, again.attempt) == (sent.id, 2)

    def test_what_a_caller_s_own_signal_handler_raises_passes_through(
        self, client: QueueBackend, spec: QueueSpec
    ) -> None:
        """In a child, whose only thread takes the signals; a test's thread takes none."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # as above
            child = os.fork()
        if child == 0:
            os._exit(_interrupt_in_child(client, spec))
        result = in_thread(lambda: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        assert result.result(3 * WAIT) == CHILD_WORKS


CHILD_WORKS = 42


def _live_in_child(client: QueueBackend) -> int:
    """What the child does; only its exit code gets out, since pytest's reports are the parent's."""
    try:
        client.abandon()
        try:
            client.open()
            spec = make_spec()
            client.declare(spec)
            (sent,) = publish(client, spec)
            delivery = take(client, spec)
            client.ack(delivery)
            client.close()
        except Unsupported:
            return CHILD_WORKS
        return CHILD_WORKS if delivery.message.id == sent.id else 1
    except BaseException:
        return 2


def _settle_in_child(client: QueueBackend, held: Delivery) -> int:
    """Try all that could end the parent's delivery; it is the parent's."""
    try:
        client.abandon()
        try:
            client.open()
        except Unsupported:
            return CHILD_WORKS
        settlements: list[Callable[[], object]] = [
            lambda: client.ack(held),
            lambda: client.nack(held),
            lambda: client.nack(held, delay=3600),
            lambda: client.bury(held, "not mine"),
            lambda: client.renew(held),
            lambda: client.receive([held.queue], 0, held),
        ]
        for number, settle in enumerate(settlements):
            with suppress(LeaseLost):
                settle()
                return number
        client.close()
        return CHILD_WORKS if not held.settled else 41
    except BaseException:
        return 40


class _Alarm(TimeoutError):
    """It is an OSError, as many that a driver makes something of."""


def _ring(number: int, frame: object) -> None:
    raise _Alarm


def _interrupt_in_child(client: QueueBackend, spec: QueueSpec) -> int:
    """Have a wait ended by a signal's handler, and go on afterwards."""
    try:
        client.abandon()
        try:
            client.open()
        except Unsupported:
            return CHILD_WORKS
        signal.signal(signal.SIGALRM, _ring)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            client.receive([spec.name], WAIT)
            return 51
        except _Alarm:
            pass
        except Exception:
            return 52
        reopen(client, spec)
        (sent,) = publish(client, spec)
        delivery = take(client, spec)
        client.ack(delivery)
        client.close()
        return CHILD_WORKS if delivery.message.id == sent.id else 53
    except BaseException:
        return 50

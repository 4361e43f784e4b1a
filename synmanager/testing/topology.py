"""Declaring queues and exchanges, and what is missing or is not what it should be."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from synmanager.backends.base import ExchangeSpec, QueueBackend, QueueSpec
from synmanager.errors import TopologyError, Unroutable
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.steps import (
    drain,
    make_message,
    make_spec,
    publish,
    take,
    takes_nothing,
)
from synmanager.testing.topic import Declare, Topic

__all__ = ["Topology"]

MISTAKES: dict[str, Callable[[QueueBackend, QueueSpec], object]] = {
    "receive": lambda client, spec: client.receive([make_spec().name], 0),
    "receive and wait": lambda client, spec: client.receive([spec.name, make_spec().name], 0.05),
    "count": lambda client, spec: client.count(make_spec().name),
    "declare": lambda client, spec: client.declare(ExchangeSpec(spec.exchange.name, "fanout")),
    "unroutable": lambda client, spec: publish(client, make_spec(exchange=spec.exchange)),
    "no exchange": lambda client, spec: publish(client, make_spec()),
}


class Topology(Topic):
    def test_declaring_again_changes_nothing(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        (sent,) = publish(client, spec)
        client.declare(spec, spec.exchange)
        other.declare(spec)
        other.declare(spec, spec)
        taken = drain(broker, client, spec)
        assert [delivery.message.id for delivery in taken] == [sent.id]

    def test_declaring_nothing_is_allowed(self, client: QueueBackend) -> None:
        client.declare()

    def test_what_exists_is_taken_as_it_is(self, client: QueueBackend, spec: QueueSpec) -> None:
        exchange = ExchangeSpec(spec.exchange.name, spec.exchange.type, durable=False)
        client.declare(exchange, QueueSpec(spec.name, exchange, spec.routing_key, durable=False))
        publish(client, spec)
        assert take(client, spec)

    def test_a_queue_that_is_declared_with_another_key_hears_both(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        moved = replace(spec, routing_key=f"{spec.routing_key}-new")
        other.declare(moved)
        sent = [publish(client, each)[0] for each in (spec, moved)]
        found = [delivery.message.id for delivery in drain(broker, client, spec)]
        assert found == [message.id for message in sent]

    def test_an_exchange_may_come_before_its_queues(
        self, broker: BrokerUnderTest, client: QueueBackend
    ) -> None:
        spec = make_spec()
        client.declare(spec.exchange)
        client.declare(spec)
        publish(client, spec)
        assert take(client, spec)
        broker.discard(spec, spec.exchange)

    def test_several_are_declared_at_once(
        self, broker: BrokerUnderTest, client: QueueBackend
    ) -> None:
        first = make_spec()
        second = make_spec(exchange=first.exchange)
        client.declare(first.exchange, first, second)
        for spec in (first, second):
            publish(client, spec)
            assert take(client, spec).queue == spec.name
        broker.discard(first, second, first.exchange)

    def test_a_queue_is_for_every_client(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        # Connected after the declaration, and never declaring anything itself.
        newcomer = broker.connect()
        (sent,) = publish(newcomer, spec)
        assert take(client, spec).message.id == sent.id

    @pytest.mark.parametrize("with_queue", [False, True], ids=["exchange", "queue"])
    def test_an_exchange_of_another_type_is_refused(
        self, client: QueueBackend, declare: Declare, with_queue: bool
    ) -> None:
        spec = declare("fanout")
        wrong = ExchangeSpec(spec.exchange.name, "topic")
        with pytest.raises(TopologyError) as error:
            client.declare(make_spec(exchange=wrong) if with_queue else wrong)
        assert spec.exchange.name in str(error.value)
        publish(client, spec)
        assert take(client, spec)

    @pytest.mark.parametrize(
        "ask",
        [
            lambda client, name: client.receive([name], 0),
            lambda client, name: client.receive([name], 0.05),
            lambda client, name: client.count(name),
        ],
        ids=["receive", "receive and wait", "count"],
    )
    def test_a_queue_that_does_not_exist_is_named(
        self, client: QueueBackend, ask: Callable[[QueueBackend, str], object]
    ) -> None:
        name = make_spec().name
        with pytest.raises(TopologyError) as error:
            ask(client, name)
        assert name in str(error.value)

    def test_a_missing_queue_beside_one_that_is_there(
        self, client: QueueBackend, spec: QueueSpec
    ) -> None:
        with pytest.raises(TopologyError):
            client.receive([spec.name, make_spec().name], 0.05)

    @pytest.mark.parametrize("mistake", MISTAKES)
    def test_a_mistake_does_not_cost_what_is_held(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        other: QueueBackend,
        spec: QueueSpec,
        mistake: str,
    ) -> None:
        # Some brokers answer a mistake by ending the channel, and with it every lease on it.
        (sent,) = publish(client, spec)
        held = take(client, spec)
        with pytest.raises(TopologyError):
            MISTAKES[mistake](client, spec)
        assert takes_nothing(broker, other, spec)
        client.renew(held)
        client.ack(held)
        assert takes_nothing(broker, other, spec)
        (sent,) = publish(client, spec, make_message("next"))
        assert take(client, spec).message.id == sent.id

    @pytest.mark.parametrize("mistake", ["publish", "receive", "count", "redrive"])
    def test_after_a_mistake_a_declaration_looks_at_the_broker(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        other: QueueBackend,
        spec: QueueSpec,
        mistake: str,
    ) -> None:
        """What was there when it was declared first may be gone: another has removed it."""
        publish(client, spec)
        client.bury(take(client, spec), "a reason")
        if other.features.undeclares:
            other.undeclare(spec)
        broker.discard(spec)
        with suppress(TopologyError):  # of which some may not be one here
            match mistake:
                case "publish":
                    publish(client, spec)
                case "receive":
                    client.receive([spec.name], 0)
                case "count":
                    client.count(spec.name)
                case _:
                    client.redrive(spec.name, 1)
                    client.count(spec.name)
        client.declare(spec)
        drain(broker, client, spec)
        (sent,) = publish(client, spec)
        delivery = take(client, spec)
        assert delivery.message.id == sent.id
        client.nack(delivery, delay=broker.delay)
        broker.pass_time(broker.delay)
        client.bury(take(client, spec), "another reason")
        if client.features.shows_dead_letters:
            assert client.dead_letters(spec.name, 10)[-1].reason == "another reason"

    def test_names_that_differ_in_little_are_of_different_queues(
        self, broker: BrokerUnderTest, client: QueueBackend, other: QueueBackend
    ) -> None:
        """A queue's name has any characters, and 245 bytes everywhere."""
        exchange = make_spec().exchange
        name = make_spec().name
        long = name.ljust(244, "x")
        names = [name, name.upper(), f"{name}/", f"{name}_", f"{name}.", f"{name} ", f"{name}é"]
        names += [f"{name}e\u0301", f"{long}1", f"{long}2"]
        specs = [QueueSpec(each, exchange, f"{each[-200:]}-key") for each in names]
        client.declare(*specs)
        sent = [publish(client, spec)[0] for spec in specs]
        for spec, message in zip(reversed(specs), reversed(sent), strict=True):
            delivery = take(other, spec)
            assert delivery.message.id == message.id, "it was another queue's"
            assert delivery.queue == spec.name
            other.ack(delivery)
        assert takes_nothing(broker, other, *specs)
        broker.discard(*specs, exchange)

    def test_unroutable_is_an_error_of_topology(self) -> None:
        assert issubclass(Unroutable, TopologyError)

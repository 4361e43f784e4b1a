"""RabbitMQ through kombu's pyamqp: leases are the connection's, publishing is confirmed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from amqp import exceptions as amqp_errors

from synmanager.backends.base import Address, ExchangeSpec, QueueSpec
from synmanager.backends.kombu.address import connection, patience
from synmanager.backends.kombu.carrier import Carrier, Taken
from synmanager.backends.kombu.parcels import Parcel, read, write
from synmanager.backends.kombu.queues import DEAD
from synmanager.errors import InvalidJob, LeaseLost, PublishRefused, TopologyError, Unroutable

__all__ = ["AmqpCarrier"]

#: Seconds for a goodbye.
_FAREWELL = 2.0

#: Beside an exchange of any type, a topic one leads to the queues of ranks and delays: the key is
#: the suffix and the message's own key, or for a fanout the suffix and anything.
_RANKED = ".ranked"

#: A quorum queue, which a virtual host may make of it, counts looking at it as a failure.
_OWN_QUEUES = {"x-queue-type": "classic"}


class AmqpCarrier(Carrier):
    """One connection. A channel of its own for every delivery, because a mistake ends a channel."""

    beats = True

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._transport = connection(address).transport
        self._link: Any = None
        self._idle: list[Any] = []
        self._control: Any = None
        self._sender: Any = None
        self._returned: list[Any] = []

    def open(self) -> None:
        self._link = self._transport.establish_connection()
        self._link.transport.sock.settimeout(patience(self.address))

    def close(self) -> None:
        self._link.transport.sock.settimeout(_FAREWELL)
        self._link.close()

    def sever(self) -> None:
        link = self._link
        if link is not None:
            # Whoever waits for an answer in another thread wakes up, and tears it down.
            transport = link._transport
            if transport is not None:
                with suppress(OSError, AttributeError):
                    transport.sock.shutdown(2)
                with suppress(Exception):
                    link.collect()

    def beat(self) -> None:
        # The broker closes the channel of a delivery that is unacknowledged for too long, and of
        # no other; whoever renews its lease learns it.
        with suppress(TimeoutError, amqp_errors.ChannelError):
            self._link.drain_events(timeout=0.001)
        self._link.heartbeat_tick()

    # Topology

    def declare_exchange(self, spec: ExchangeSpec) -> None:
        try:
            self._ask(
                "exchange_declare", spec.name, spec.type, durable=spec.durable, auto_delete=False
            )
        except amqp_errors.PreconditionFailed as error:
            if "'type'" in str(error):
                raise TopologyError(
                    f"exchange {spec.name!r} is not of type {spec.type!r}: {error}"
                ) from error
        self._ask("exchange_declare", spec.name + _RANKED, "topic", durable=True, auto_delete=False)

    def declare_queue(self, spec: QueueSpec, suffixes: list[str]) -> None:
        for suffix in [*suffixes, DEAD]:
            name = spec.name + suffix
            if not self.has(name):
                arguments = _OWN_QUEUES if suffix else {}
                self._ask(
                    "queue_declare", name, durable=spec.durable or bool(suffix),
                    auto_delete=False, arguments=arguments,
                )  # fmt: skip
            if suffix == DEAD:
                continue
            if suffix:
                rest = "#" if spec.exchange.type == "fanout" else spec.routing_key
                key = f"{suffix[1:]}.{rest}"
                self._ask("queue_bind", name, spec.exchange.name + _RANKED, key)
            else:
                self._ask("queue_bind", name, spec.exchange.name, spec.routing_key)

    def has(self, queue: str) -> bool:
        try:
            self._ask("queue_declare", queue, passive=True)
        except amqp_errors.NotFound:
            return False
        return True

    def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of a channel that holds nothing: a mistake ends it."""
        channel = self._control
        if channel is None or not channel.is_open:
            channel = self._control = self._channel()
        return getattr(channel, method)(*args, **kwargs)

    def _channel(self) -> Any:
        channel = self._transport.create_channel(self._link)
        # One that the broker closes would be opened again under its number, where the tag of a
        # delivery that is lost would settle another.
        channel._do_revive = channel.collect
        return channel

    # Sending

    def publish(
        self, exchange: str, key: str, suffix: str, parcels: list[Parcel], hold: float
    ) -> Iterator[None]:
        if suffix:
            exchange, key = exchange + _RANKED, f"{suffix[1:]}.{key}"
        for parcel in parcels:
            self._send(parcel, exchange, key)
            yield

    def put(self, queue: str, parcel: Parcel, hold: float = 0.0) -> None:
        self._send(parcel, "", queue)

    def _send(self, parcel: Parcel, exchange: str, key: str) -> None:
        channel = self._sender
        if channel is None or not channel.is_open:
            channel = self._sender = self._channel()
            channel.events["basic_return"].add(lambda *returned: self._returned.append(returned))
        headers, properties = write(parcel)
        message = channel.prepare_message(
            parcel.message.body,
            content_type="application/json",
            content_encoding="utf-8",
            headers=headers,
            properties=properties,
        )
        self._returned.clear()
        try:
            channel.basic_publish(message, exchange, key, mandatory=True)
        except amqp_errors.MessageNacked as error:
            raise PublishRefused("the broker refuses the message; is its queue full?") from error
        except amqp_errors.NotFound as error:
            raise Unroutable(f"no exchange {exchange!r} exists: {error}") from error
        except amqp_errors.PreconditionFailed as error:
            raise InvalidJob(f"the broker can never take the message: {error}") from error
        if self._returned:
            raise Unroutable(f"no queue is bound to exchange {exchange!r} with routing key {key!r}")

    # Receiving

    def take(self, queue: str, lease: float) -> Taken | None:
        channel = self._idle.pop() if self._idle else self._channel()
        try:
            got = channel.basic_get(queue)
        except amqp_errors.NotFound as error:
            raise TopologyError(f"queue {queue!r} does not exist; declare it first") from error
        if got is None:
            self._idle.append(channel)
            return None
        properties = got.properties
        headers = properties.get("application_headers") or {}
        counted = headers.get("x-delivery-count")
        failures = counted if isinstance(counted, int) else int(got.delivery_info["redelivered"])
        parcel = read(got.body, headers, properties)
        return Taken(queue, parcel, failures, isinstance(counted, int), (channel, got.delivery_tag))

    def drop(self, taken: Taken) -> None:
        channel, tag = taken.handle
        self.renew(taken, 0)
        channel.basic_ack(tag)
        self._idle.append(channel)

    def give_back(self, taken: Taken) -> None:
        channel, tag = taken.handle
        channel.basic_reject(tag, True)
        self._idle.append(channel)

    def renew(self, taken: Taken, lease: float) -> None:
        channel, _ = taken.handle
        if not channel.is_open:
            raise LeaseLost("the broker has closed the channel of this delivery")

    # Looking

    def size(self, queue: str) -> int:
        try:
            return int(self._ask("queue_declare", queue, passive=True).message_count)
        except amqp_errors.NotFound as error:
            raise TopologyError(f"queue {queue!r} does not exist; declare it first") from error

    def purge(self, queue: str) -> int:
        try:
            return int(self._ask("queue_purge", queue))
        except amqp_errors.NotFound as error:
            raise TopologyError(f"queue {queue!r} does not exist; declare it first") from error

    def peek(self, queue: str, limit: int) -> list[Parcel]:
        taken: list[Taken] = []
        while len(taken) < limit and (next_one := self.take(queue, 0)) is not None:
            taken.append(next_one)
        for one in taken:  # each goes back to its place
            self.give_back(one)
            one.handle[0].basic_qos(0, 0, False)  # answered after it has
        return [one.parcel for one in taken]

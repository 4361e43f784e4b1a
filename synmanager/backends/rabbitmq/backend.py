"""The RabbitMQ driver."""

from __future__ import annotations

import logging
import re
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from types import FrameType
from typing import Any

import pika
from pika.exceptions import ChannelClosedByBroker

from synmanager.backends.base import (
    Address,
    Counts,
    DeadLetter,
    Delivery,
    Entry,
    ExchangeSpec,
    Facts,
    Features,
    QueueSpec,
    check_place,
)
from synmanager.backends.native import NativeBackend
from synmanager.backends.rabbitmq import letters, properties
from synmanager.backends.rabbitmq.delays import ENTRY, LONGEST, TOP, way
from synmanager.backends.rabbitmq.faults import (
    ACCESS_REFUSED,
    is_interruption,
    translated,
)
from synmanager.backends.rabbitmq.frames import Content
from synmanager.backends.rabbitmq.journal import Journal, stream
from synmanager.backends.rabbitmq.lane import Arrival, Lane
from synmanager.backends.rabbitmq.link import Link
from synmanager.backends.rabbitmq.meeting import first_look, first_words
from synmanager.backends.rabbitmq.monitor import Monitor
from synmanager.backends.rabbitmq.native import Native, NativeLane
from synmanager.backends.rabbitmq.nodes import Nodes, place
from synmanager.backends.rabbitmq.parameters import connection_parameters, kind_of_queues
from synmanager.backends.rabbitmq.publishing import publish, publish_apart
from synmanager.backends.rabbitmq.ranks import sister_name
from synmanager.backends.rabbitmq.topology import Standing, Topology, dead_queue
from synmanager.errors import (
    BrokerUnavailable,
    ConfigurationError,
    LeaseLost,
    PublishInterrupted,
    PublishRefused,
    SynmanagerError,
    TopologyError,
    Unroutable,
    Unsupported,
)
from synmanager.message import Message, Rank

__all__ = ["RabbitMQBackend"]

logger = logging.getLogger(__name__)

#: Seconds that a look at the end of consumers waits for it.
_PATIENCE = 1.0

#: Seconds for which those messages are awaited that came to several quorum queues at once. What
#: meets the end of its consumer goes back, and such a queue counts that.
_GATHERING = 0.01

#: Seconds between two looks at whether a wait has been called off. The broker hears nothing of it.
_LOOK = 1.0

#: Seconds for which nobody begins what a cluster hands out again: it does so in the moment in which
#: it loses the node of whoever runs it, who hears of that up to a second later.
_HOLD_OFF = 2.0

#: Seconds by which the clocks of two workers may differ, and it counts.
_SKEW = 1.0

#: Dead letters that are put back at a time.
_REDRIVEN_AT_ONCE = 500

#: Lost deliveries without an id whose made-up ids are kept, in case they come again; and
#: deliveries that were replaced by a copy, in case their acknowledgement has not arrived.
_REMEMBERED = 1000

#: Bytes of a name that AMQP can carry.
_LONGEST_NAME = 255


#: A position in a log.
_POSITION = re.compile("[0-9]{1,18}")


@dataclass
class _Receipt:
    """A delivery's handle. The channel in it is its epoch.

    Attributes:
        is_taken: a thread is settling it, or has; the first one does.
        is_acked: an acknowledgement is on its way, or was when the connection ended.
    """

    link: Link
    arrival: Arrival
    is_taken: bool = False
    is_acked: bool = False

    def __del__(self) -> None:
        """Give back what its taker has dropped: nobody else could."""
        lane, tag = self.arrival.lane, self.arrival.tag
        if lane.holds(tag):
            self.link.later(lambda: lane.let_go(tag))


class _Settling:
    """The link's lock for a ``with``, and in it the receipt of a delivery that is still ours."""

    def __init__(self, backend: RabbitMQBackend, delivery: Delivery) -> None:
        self._backend = backend
        self._delivery = delivery
        self._use: _Use | None = None
        self._receipt: _Receipt | None = None

    def __enter__(self) -> _Receipt | None:
        if self._delivery.settled:
            return None
        use = self._use = self._backend._connected()
        link = use.enter(sys._getframe(1))
        try:
            receipt = self._backend._receipt(link, self._delivery)
            if receipt.is_taken:  # the lock was free while another thread was waiting for answers
                return None
            receipt.is_taken = True
            self._receipt = receipt
            return receipt
        except BaseException as error:
            use.__exit__(type(error), error, error.__traceback__)
            raise

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._receipt is not None:
            self._receipt.is_taken = self._delivery.settled
        if self._use is not None:
            self._use.__exit__(kind, error, traceback)


class _Use:
    """The use of a link by one call, as a context manager; the standard library's take longer.

    What turns out to be missing may be so for all that was declared before.
    """

    __slots__ = ("_link", "_topology")

    def __init__(self, link: Link, topology: Topology) -> None:
        self._link = link
        self._topology = topology

    def __enter__(self) -> Link:
        return self.enter(sys._getframe(1))

    def enter(self, frame: FrameType) -> Link:
        """What ``with`` does, for a frame that has none."""
        return self._link.enter(frame)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self._link.__exit__(kind, error, traceback)
        except TopologyError:
            self._topology.forget()
            raise
        if isinstance(error, TopologyError):
            self._topology.forget()


class RabbitMQBackend(NativeBackend):
    """A connection to RabbitMQ, 3.10 or later; to one node of several, if they are a cluster."""

    clustered = ("amqp", "amqps")

    features = Features(
        durable=True,
        shared=True,
        timed_lease=False,
        deduplicates=False,
        deletes=False,
        counts_leased=False,
        counts_delayed=False,
        ranks_foreign=False,
        longest_delay=LONGEST,
        journal=True,
        undeclares=True,
        mends_letters=True,
        requeues_at_head=True,
    )

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._nodes = Nodes(connection_parameters(address))
        self._kind = kind_of_queues(address)
        if self._kind == "quorum":
            self.features = replace(self.features, ranks_foreign=True)
        self._warned: set[object] = set()
        self._standing: Standing = {}
        self._lost: OrderedDict[bytes, str] = OrderedDict()
        self._replaced: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._opening = Monitor()
        self._failure: SynmanagerError | None = None
        self._opened: Link | None = None  # or about to be
        self._link: Link | None = None
        self._native: Native | None = None
        self._parents: list[object] = []
        self._topology: Topology
        self._journal: Journal

    def open(self) -> None:
        failure = self._failure
        with self._opening:
            if self.is_open:
                return
            if (other := self._failure) is not None and other is not failure:
                raise type(other)(str(other))  # who waited for another thread's try has had its own
            if self._link is not None:
                self._nodes.avoid()
            self.close()
            self._connect()

    def _connect(self) -> None:
        before = self._opened

        def attempt(parameters: pika.ConnectionParameters, seconds: float) -> None:
            nonlocal before
            if self._opened is not before:
                raise BrokerUnavailable("the connection was closed")
            timeout, heartbeat = self.address.timeout, self.address.heartbeat
            self._opened = before = Link(parameters, place(parameters), timeout, heartbeat)
            before.open(seconds)

        try:
            self._nodes.connect(self.address.timeout, attempt)
        except SynmanagerError as error:
            self._failure = error.with_traceback(None)
            raise
        assert before is not None
        link: Link = before
        self._topology = Topology(link, self._warned, self._standing, self._kind)
        try:
            with link:
                if self._topology.makes_sisters:
                    # A copy takes the place of what goes back, and no priority puts it first.
                    self.features = replace(
                        self.features,
                        ranks_foreign=True,
                        ranks_fanout=False,
                        requeues_at_head=False,
                    )
        except BaseException:
            link.close()
            raise
        self._journal = Journal(link)
        self._link = link
        if self._opened is not link:  # closed meanwhile
            link.close()

    def close(self) -> None:
        self._link = None
        link, self._opened = self._opened, None
        try:
            if link is not None:
                link.close()
        finally:
            native, self._native = self._native, None
            if native is not None:
                native.close()

    @property
    def is_open(self) -> bool:
        return self._link is not None and self._link.is_open

    def abandon(self) -> None:
        # Kept: what is collected here could say goodbye in the parent's name.
        self._parents += (self._opened, self._link, self._native)
        for link in (self._opened, self._link):
            if link is not None:
                link.abandon()
        self._opened = self._link = self._native = None
        self._opening = Monitor()

    def declare(self, *specs: ExchangeSpec | QueueSpec) -> None:
        for spec in specs:
            if isinstance(spec, QueueSpec):
                _check_names(dead_queue(spec.name), spec.exchange.name, spec.routing_key)
            else:
                _check_names(spec.name)
        with self._connected():
            self._topology.declare(*specs)

    def undeclare(self, spec: QueueSpec) -> None:
        _check_names(dead_queue(spec.name))
        with self._connected():
            self._topology.undeclare(spec)

    def publish(
        self,
        exchange: str,
        routing_key: str,
        messages: Sequence[Message],
        *,
        delay: float = 0.0,
    ) -> int:
        _check_names(exchange, routing_key)
        contents = [] if delay > 0 else [properties.fresh(message) for message in messages]
        with self._connected() as link:
            is_split = self._topology.is_split(exchange)
            if delay > 0:
                place = sister_name if is_split else _only_place
                self._publish_delayed(link, exchange, routing_key, messages, delay, place)
                return 0
            with link.lane() as lane:
                if is_split:
                    self._publish_apart(lane, exchange, routing_key, contents, messages)
                else:
                    publish(lane, exchange, routing_key, contents, messages)
        return 0

    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        return self.await_job(queues, wait, done, called_off=lambda: False)

    def await_job(
        self,
        queues: Sequence[str],
        wait: float,
        done: Delivery | None = None,
        *,
        called_off: Callable[[], bool],
    ) -> Delivery | None:
        deadline = time.monotonic() + wait
        _check_names(*queues)
        self._synchronise(*queues)
        with self._connected() as link:
            queues = self._topology.families(queues)
            arrival = None
            if done is not None and not done.settled:
                arrival = self._exchange(link, done, queues, wait, called_off)
            last = None if done is None else done.receipt.arrival.queue
            while arrival is None or (delivery := self._accept(link, arrival)) is None:
                arrival = _get(link, queues, last)
                if arrival is None:
                    left = deadline - time.monotonic()
                    if left <= 0 or called_off():
                        return None
                    arrival = self._listen(link, None, queues, left, called_off)
            return delivery

    def ack(self, delivery: Delivery) -> None:
        with self._held(delivery) as receipt:
            if receipt is not None:
                self._remove(delivery, receipt, is_replaced=False)

    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        with self._held(delivery) as receipt:
            if receipt is None:
                return
            attempts = delivery.attempt if count else delivery.attempt - 1
            original, message = receipt.arrival.properties, delivery.message
            queue = receipt.arrival.queue
            if delay > 0 and self._can_delay(receipt.link, queue):
                headers = way(delay, queue=queue)
                copy = properties.again(original, message, attempts, headers)
                with receipt.link.lane() as lane:
                    publish(lane, TOP, "", [copy], [message])
            else:
                held_off = self._not_before(receipt.arrival)
                copy = properties.again(original, message, attempts, held_off, head=delay <= 0)
                with receipt.link.lane() as lane:
                    publish(lane, "", queue, [copy], [message])
            self._remove(delivery, receipt)

    def bury(self, delivery: Delivery, reason: str, traceback: str = "") -> None:
        with self._held(delivery) as receipt:
            if receipt is None:
                return
            message, queue = delivery.message, delivery.queue
            letter = properties.dead(
                receipt.arrival.properties, message, queue, delivery.attempt, reason, traceback
            )
            with receipt.link.lane() as lane:
                try:
                    publish(lane, "", dead_queue(queue), [letter], [message])
                except Unroutable:  # somebody deleted it, or nobody declared the queue here
                    self._topology.declare_dead_queue(queue)
                    publish(lane, "", dead_queue(queue), [letter], [message])
            self._remove(delivery, receipt)

    def renew(self, delivery: Delivery) -> None:
        if delivery.settled:
            return
        receipt: _Receipt = delivery.receipt
        if receipt.arrival.lane.is_lost:  # no new connection brings it back
            raise self._loss(delivery, receipt)
        with self._connected() as link:
            self._receipt(link, delivery)
            if self._nodes.are_several and receipt.arrival.queue in link.apart:
                self._feel_pulse(link)
                self._receipt(link, delivery, look=False)

    def _feel_pulse(self, link: Link) -> None:
        """Give up a node of a cluster that is cut off from the others."""
        try:
            if "pulse" in self._warned or not self._topology.pulse.is_lost():
                return
        except (ChannelClosedByBroker, TopologyError) as error:
            self._warned.add("pulse")
            logger.warning(
                "while a node of RabbitMQ is cut off from the others, its workers may run what "
                "others run as well: this user cannot declare what tells them (%s)",
                error,
            )
            return
        logger.warning(
            "RabbitMQ at %s confirms nothing any more: it may be cut off from the other nodes, and "
            "these may hand out what runs here; going to one of them",
            place(self._nodes.current),
        )
        link.wire.abort("it confirms nothing")

    def count(self, queue: str) -> Counts:
        _check_names(dead_queue(queue))
        self._synchronise(queue)
        with self._connected() as link:
            family = self._topology.family(queue)
            with link.lane() as lane:
                ready = sum(
                    lane.call("queue_declare", each, passive=True).message_count for each in family
                )
                dead = letters.count(lane, dead_queue(queue))
        return Counts(ready=ready, leased=None, delayed=None, dead=dead)

    def purge(self, queue: str) -> int:
        _check_names(dead_queue(queue))
        self._synchronise(queue)
        with self._connected() as link:
            family = self._topology.family(queue)
            with link.lane() as lane:
                return sum(int(lane.call("queue_purge", each).message_count) for each in family)

    def delete(self, queue: str, message_id: str) -> bool:
        raise Unsupported(
            "RabbitMQ cannot find a message by its id. Let the callback ask whether its job is "
            "still wanted, or purge the queue and submit the rest again"
        )

    def dead_letters(self, queue: str, limit: int) -> list[DeadLetter]:
        with self._connected() as link:
            found = letters.look(link, dead_queue(queue), limit)
        return [properties.dead_letter(queue, each.properties, each.body) for each in found]

    def redrive(self, queue: str, limit: int) -> int:
        moved, name = 0, dead_queue(queue)
        with self._connected() as link:
            self._topology.family(queue)  # looked for, while nothing is held
            while moved < limit:
                with link.lane() as lane:
                    most = min(_REDRIVEN_AT_ONCE, limit - moved)
                    if not (arrivals := letters.take(lane, name, most)):
                        break
                    if not moved:  # those that die again meanwhile are not among them
                        limit = min(limit, len(arrivals) + letters.count(lane, name))
                    self._redrive(lane, queue, arrivals)
                    moved += len(arrivals)
        return moved

    def purge_dead_letters(self, queue: str) -> int:
        with self._connected() as link, link.lane() as lane:
            return letters.purge(lane, dead_queue(queue))

    def record(self, log: str, entries: Sequence[bytes]) -> None:
        _check_names(stream(log))
        with self._connected():
            is_met = self._journal.is_met(log)
            left = self._journal.append(log, entries) if is_met else entries
        if left:
            is_there = is_met is False
            first_words(self._nodes.current, self.address, log, left, is_there=is_there)
            with self._connected():
                self._journal.meet(log, is_there=True, is_written=True)

    def replay(
        self, log: str, after: str | float = 0.0, *, wait: float = 0.0, limit: int = 1000
    ) -> list[Entry]:
        check_place(after, _POSITION)
        _check_names(stream(log))
        deadline = time.monotonic() + wait
        while True:
            with self._connected():
                found = self._journal.read(log, after, deadline, limit, is_waited_for=wait > 0)
            if found is not None:
                return found
            is_there = first_look(self._nodes.current, self.address, log)
            with self._connected():
                self._journal.meet(log, is_there=is_there)

    def redrive_letters(self, queue: str, ids: Collection[str]) -> int:
        def put_back(lane: Lane, held: list[Arrival]) -> list[Arrival]:
            meant = _meant(held, ids)
            jobs = [properties.read(each.properties, each.body).message for each in meant]
            copies = [
                properties.again(each.properties, job, attempts=0)
                for each, job in zip(meant, jobs, strict=True)
            ]
            self._put_into(lane, queue, copies, jobs)
            return meant

        with self._connected() as link:
            self._topology.family(queue)
            return letters.change(link, dead_queue(queue), put_back)

    def purge_letters(self, queue: str, ids: Collection[str]) -> int:
        with self._connected() as link:
            return letters.change(link, dead_queue(queue), lambda _, held: _meant(held, ids))

    def edit_letter(self, queue: str, message_id: str, body: bytes) -> bool:
        name = dead_queue(queue)

        def put_copy(lane: Lane, held: list[Arrival]) -> list[Arrival]:
            meant = _meant(held, [message_id])[:1]
            for each in meant:
                letter = properties.dead_letter(queue, each.properties, each.body)
                message = replace(letter.message, body=body)
                copy = properties.kept(each.properties, replace(letter, message=message))
                publish(lane, "", name, [copy], [message])
            return meant

        with self._connected() as link:
            return bool(letters.change(link, name, put_copy))

    def add_letters(self, queue: str, letters: Sequence[DeadLetter]) -> None:
        name = dead_queue(queue)
        contents = [properties.added(replace(letter, queue=queue)) for letter in letters]
        messages = [letter.message for letter in letters]
        with self._connected() as link:
            with link.lane() as lane:
                lane.call("queue_declare", queue, passive=True)
            self._topology.declare_dead_queue(queue)
            with link.lane() as lane:
                publish(lane, "", name, contents, messages)

    def facts(self, queues: Sequence[str] = ()) -> Facts:
        _check_names(*queues)
        with self._connected() as link:
            server = link.wire.server_properties or {}
            seen = {queue: self._topology.look_at(queue) for queue in queues}
        there = {queue: look for queue, look in seen.items() if look is not None}
        return Facts(
            str(server.get("product", "")),
            str(server.get("version", "")),
            consumers={queue: consumers for queue, (consumers, _) in there.items()},
            arguments={queue: arguments for queue, (_, arguments) in there.items()},
            settings={name: str(server[name]) for name in ("cluster_name",) if name in server},
        )

    def native(self) -> tuple[Any, Any]:
        self._connected()
        native = self._native
        if native is None or not native.is_open:
            with translated(place(self._nodes.current)):
                native = self._native = Native(self._nodes.current, self.address.timeout)
        with translated(place(self._nodes.current)):
            return native.connection, native.open_channel()

    def _synchronise(self, *queues: str) -> None:
        """Let what the calling thread has published through its own channel arrive first."""
        native = self._native
        if native is None or not native.is_mine:
            return
        with self._connected() as link, link.lane() as lane:
            for queue in queues:  # to ask for one that is missing would close the caller's channel
                lane.call("queue_declare", queue, passive=True)
        native.synchronise(queues)

    def adopt(
        self, queue: str, channel: Any, method: Any, header: Any, body: bytes, *, settled: bool
    ) -> Delivery | None:
        arrival = NativeLane(channel).arrival(queue, method, header, body)
        with self._connected() as link:
            if settled:
                return self._make_delivery(link, arrival, settled=True)
            return self._accept(link, arrival)

    def _connected(self) -> _Use:
        """The link, whose ``with`` takes its lock."""
        if self._link is None:
            raise BrokerUnavailable(f"not connected to RabbitMQ at {self._nodes.where}")
        return _Use(self._link, self._topology)

    def _held(self, delivery: Delivery) -> _Settling:
        """Settle a delivery: its receipt, with the link's lock; None if it is settled already."""
        return _Settling(self, delivery)

    def _receipt(self, link: Link, delivery: Delivery, *, look: bool = True) -> _Receipt:
        """The receipt of a delivery that is still ours.

        Args:
            look: at what the broker has sent meanwhile.

        Raises:
            LeaseLost: its channel is gone, and so the broker has taken it back.
        """
        receipt: _Receipt = delivery.receipt
        if look:
            link.glance()
        if link is not receipt.link or receipt.arrival.lane.is_lost:
            raise self._loss(delivery, receipt)
        return receipt

    def _loss(self, delivery: Delivery, receipt: _Receipt) -> LeaseLost:
        """What is said of a delivery that is gone; it is known again when it comes back."""
        if receipt.arrival.properties.message_id is None:
            self._remember(receipt.arrival, delivery.message.id)
        return _lost(delivery, receipt)

    def _can_delay(self, link: Link, queue: str) -> bool:
        """Whether this user may delay what goes back to a queue; warns once if not."""
        try:
            with link.lane() as lane:
                self._topology.delays.build(lane)
                self._topology.delays.lead_to_queue(lane, queue)
        except ChannelClosedByBroker as error:
            if error.reply_code != ACCESS_REFUSED:
                raise
            if "delays" not in self._warned:
                self._warned.add("delays")
                logger.warning(
                    "jobs are retried without a delay: this user may not declare what delays them "
                    "on RabbitMQ, exchanges and queues whose names begin with ~ (%s)",
                    error.reply_text,
                )
            return False
        return True

    def _publish_delayed(
        self,
        link: Link,
        exchange: str,
        routing_key: str,
        messages: Sequence[Message],
        delay: float,
        place: Callable[[str, Rank], str],
    ) -> None:
        ways = {
            rank: way(delay, exchange=place(exchange, rank), routing_key=routing_key)
            for rank in {message.rank for message in messages}
        }
        contents = [properties.delayed(message, ways[message.rank]) for message in messages]
        with link.lane() as lane:
            self._topology.delays.build(lane)
            try:
                publish(lane, ENTRY, routing_key, contents, messages)
            except Unroutable as error:
                raise Unroutable(
                    f"no queue is declared on exchange {exchange!r} with routing key "
                    f"{routing_key!r}",
                    error.unconfirmed,
                ) from error

    def _publish_apart(
        self,
        lane: Lane,
        exchange: str,
        routing_key: str,
        contents: Sequence[Content],
        messages: Sequence[Message],
    ) -> None:
        """Publish to the sisters of an exchange."""

        def put(rank: Rank, *some: Any) -> None:
            publish(lane, sister_name(exchange, rank), routing_key, *some)

        try:
            publish_apart(contents, messages, put)
        except PublishRefused as error:
            if not self._topology.refuses_without_leader:
                raise
            # Perhaps this node alone cannot find its leader, and another one can.
            lane.link.wire.abort("a queue refused, and may have lost its leader")
            raise PublishInterrupted(
                f"{error}; that, or a queue has lost its leader", error.unconfirmed
            ) from error

    def _redrive(self, lane: Lane, queue: str, arrivals: Sequence[Arrival]) -> None:
        """Put dead letters back into their queue, and remove them."""
        jobs = [properties.read(each.properties, each.body).message for each in arrivals]
        copies = [
            properties.again(each.properties, job, attempts=0)
            for each, job in zip(arrivals, jobs, strict=True)
        ]
        try:
            self._put_into(lane, queue, copies, jobs)
        except PublishRefused as error:  # what had room is no longer dead, or it would come twice
            refused = {id(job) for job in error.unconfirmed}
            back = [
                each.tag
                for each, job in zip(arrivals, jobs, strict=True)
                if refused and id(job) not in refused
            ]
            lane.ack_all(dead_queue(queue), back)
            letters.give_back(lane, dead_queue(queue))
            raise
        except Unroutable:
            letters.give_back(lane, dead_queue(queue))
            raise
        lane.ack(arrivals[-1].tag, multiple=True)

    def _put_into(
        self, lane: Lane, queue: str, copies: Sequence[Content], jobs: Sequence[Message]
    ) -> None:
        """Put jobs into a queue, or into those of their ranks."""
        if len(self._topology.family(queue)) == 1:
            publish(lane, "", queue, copies, jobs)
        else:
            publish_apart(
                copies, jobs, lambda rank, *some: publish(lane, "", sister_name(queue, rank), *some)
            )

    def _exchange(
        self,
        link: Link,
        done: Delivery,
        queues: Sequence[str],
        wait: float,
        called_off: Callable[[], bool],
    ) -> Arrival | None:
        """Acknowledge, and return what comes in answer, if something does.

        That is how a single queue is consumed fastest: its consumer stays, and RabbitMQ answers
        an acknowledgement with the next message.
        """
        receipt: _Receipt = done.receipt
        lane, tag = receipt.arrival.lane, receipt.arrival.tag
        alone = wait > 0 and list(queues) == [done.queue] and not lane.is_stopping
        self._receipt(link, done, look=not alone)
        if receipt.is_taken:
            return None
        receipt.is_taken = True
        try:
            if not alone:
                self._remove(done, receipt, is_replaced=False)
                return None
            lane.ack(tag)
            receipt.is_acked = True
            arrival = self._listen(link, lane, queues, wait, called_off)
            done.settled = True
            return arrival
        except ChannelClosedByBroker as error:
            raise _lost(done, receipt) from error
        finally:
            receipt.is_taken = done.settled

    def _listen(
        self,
        link: Link,
        lane: Lane | None,
        queues: Sequence[str],
        seconds: float,
        called_off: Callable[[], bool],
    ) -> Arrival | None:
        """Wait for a message, at no cost to the broker until one comes.

        The consumer of a single queue stays as long as its message is held, see :meth:`_exchange`.
        Of several it cannot: the next message must come from the first that has one. Nor does the
        job wait for the end of the consumers, which takes the broker as long as all the rest.
        """
        deadline = time.monotonic() + seconds
        with link.lane(lane) as lane:
            arrivals = lane.listen(queues, min(seconds, _LOOK))
            while not arrivals and lane.listens_to(queues) and not called_off():
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                arrivals = lane.listen(queues, min(left, _LOOK))
            if not arrivals:
                arrivals = lane.stop_listening()
            elif len(queues) > 1:
                if self._topology.counts_crossings and not link.apart.isdisjoint(queues):
                    arrivals += lane.gather(_GATHERING)
                lane.begin_to_stop()
                link.later(lambda: self._finish_stopping(link, lane))
            arrivals.sort(key=lambda arrival: queues.index(arrival.queue))
            self._put_back(link, arrivals[1:])
        return arrivals[0] if arrivals else None

    def _finish_stopping(self, link: Link, lane: Lane) -> bool:
        """Put back what crossed; False if the broker has not ended the consumers yet."""
        if not lane.has_stopped(_PATIENCE):
            return False
        if lane.is_stopping:  # else the job was settled meanwhile, and that with it
            self._put_back(link, lane.stop_listening())
        return True

    def _put_back(self, link: Link, extras: Sequence[Arrival]) -> None:
        """Return what came beside a job, as it can where no prefetch limits a whole channel.

        Whatever becomes of it, the job itself stays ours.
        """
        for extra in extras:
            try:
                self._replace(link, extra)
            except BaseException as error:
                if not link.is_sound_after(error):
                    raise
                extra.lane.let_go(extra.tag)
                if is_interruption(error) or not link.is_open:
                    raise
                logger.warning("a job of %s goes back as if it had begun: %s", extra.queue, error)

    def _accept(self, link: Link, arrival: Arrival) -> Delivery | None:
        """Make a delivery of what arrived; None if it has to come again first.

        A classic queue flags a message that was handed out before and does not count how often; a
        quorum queue counts, and throws away what comes too often for its liking. So the count is
        written into a copy that takes its place, before anyone runs it: a job that kills its
        worker would otherwise never end, or end without a trace.
        """
        if self._is_replaced(arrival):
            self._discard(link, arrival)
            return None
        if not (arrival.redelivered and properties.uncounted(arrival.properties)):
            return self._make_delivery(link, arrival)
        try:
            self._replace(link, arrival)
        except PublishRefused:  # a full queue takes no copy, but what it has must be run
            return self._make_delivery(link, arrival)
        except BaseException as error:
            if link.is_sound_after(error):
                arrival.lane.close()
            raise
        return None

    def _make_delivery(self, link: Link, arrival: Arrival, settled: bool = False) -> Delivery:
        message, attempts, defect = self._read(arrival)
        receipt = _Receipt(link, arrival)
        queue = self._topology.ranks.name(arrival.queue)
        hold_off = 0.0 if settled else self._hold_off(arrival)
        return Delivery(message, queue, attempts + 1, receipt, defect, settled, hold_off)

    def _read(self, arrival: Arrival) -> properties.Metadata:
        known = None
        if self._lost and arrival.properties.message_id is None:
            known = self._lost.pop(_digest(arrival), None)
        read = properties.read(arrival.properties, arrival.body, known)
        # Held off still, it has not been begun since it was counted.
        if arrival.redelivered and not _written_hold_off(arrival):
            read = read._replace(attempts=read.attempts + properties.uncounted(arrival.properties))
        return read

    def _hold_off(self, arrival: Arrival) -> float:
        """Seconds for which nobody is to begin a message: who has lost it may not know yet."""
        written = _written_hold_off(arrival)
        if written or not (arrival.redelivered and properties.uncounted(arrival.properties)):
            return written
        # Of a single node, the worker's own connection is the only one that there is to lose.
        return _HOLD_OFF if self._nodes.are_several else 0.0

    def _not_before(self, arrival: Arrival) -> dict[str, Any] | None:
        """Headers of a copy that takes a message's place, by which it is held off as well."""
        hold_off = self._hold_off(arrival)
        return properties.not_before(time.time() + hold_off) if hold_off else None

    def _replace(self, link: Link, arrival: Arrival) -> None:
        """Put a copy at the head of the queue, with a count of its attempts."""
        message, attempts, _ = self._read(arrival)
        headers = self._not_before(arrival)
        copy = properties.again(arrival.properties, message, attempts, headers, head=True)
        with link.lane() as lane:
            publish(lane, "", arrival.queue, [copy], [message])
        self._note_replaced(arrival)
        self._discard(link, arrival)

    def _remove(self, delivery: Delivery, receipt: _Receipt, *, is_replaced: bool = True) -> None:
        """Acknowledge what has been taken care of.

        Args:
            is_replaced: by a copy, here or among the dead letters.
        """
        if is_replaced:
            self._note_replaced(receipt.arrival)
        receipt.is_acked = True
        self._discard(receipt.link, receipt.arrival)
        delivery.settled = True

    def _discard(self, link: Link, arrival: Arrival) -> None:
        lane = arrival.lane
        self._put_back(link, lane.stop_listening())  # else the lane would be sent the next
        lane.ack(arrival.tag)
        link.give_back(lane)

    def _note_replaced(self, arrival: Arrival) -> None:
        """Keep in mind whose copy is accepted: its acknowledgement may be lost on the way."""
        if (identity := _identify(arrival)) is not None:
            self._replaced[identity] = None
            if len(self._replaced) > _REMEMBERED:
                self._replaced.popitem(last=False)

    def _is_replaced(self, arrival: Arrival) -> bool:
        """Whether a copy of it, made here, is already in its place."""
        return bool(self._replaced) and arrival.redelivered and _identify(arrival) in self._replaced

    def _remember(self, arrival: Arrival, message_id: str) -> None:
        """Keep the id that we gave to a message without one: it comes again without one."""
        self._lost[_digest(arrival)] = message_id
        if len(self._lost) > _REMEMBERED:
            self._lost.popitem(last=False)


def _written_hold_off(arrival: Arrival) -> float:
    """Seconds until a message may be begun, as was written on it when its holder was lost.

    By the clocks of two machines: one that is far from ours would say nonsense.
    """
    left = properties.begins_at(arrival.properties) - time.time()
    return min(left, _HOLD_OFF) if 0 < left <= _HOLD_OFF + _SKEW else 0.0


def _identify(arrival: Arrival) -> tuple[str, bytes] | None:
    """What tells a message of a queue from all others; None if nothing does."""
    identity = properties.identity(arrival.properties, arrival.body)
    return None if identity is None else (arrival.queue, identity)


def _digest(arrival: Arrival) -> bytes:
    return sha256(arrival.queue.encode() + b"\0" + arrival.body).digest()


def _get(link: Link, queues: Sequence[str], last: str | None) -> Arrival | None:
    """Take a message from the first queue that has one, if any has.

    Args:
        last: where the last job came from: those before that are probably still empty.
    """
    before = queues.index(last) if last in queues else 0
    with link.lane() as lane:
        return lane.get_first(queues, counted=queues[1:before])


def _only_place(exchange: str, rank: Rank) -> str:
    return exchange


def _meant(held: Sequence[Arrival], ids: Collection[str]) -> list[Arrival]:
    """Those of some letters that have one of these ids."""
    return [each for each in held if each.properties.message_id in ids]


def _check_names(*names: str) -> None:
    """Refuse what AMQP cannot carry.

    Raises:
        ConfigurationError: a name is too long, or no text.
    """
    for name in names:
        try:
            size = len(name.encode())
        except UnicodeEncodeError as error:
            raise ConfigurationError(f"{name!r:.80} is no name: {error}") from None
        if size > _LONGEST_NAME:
            raise ConfigurationError(
                f"a name on RabbitMQ has {_LONGEST_NAME} bytes at most, a queue's 5 less, for that "
                f"of its dead letters; {name!r:.80} has {size}"
            )


def _lost(delivery: Delivery, receipt: _Receipt) -> LeaseLost:
    if receipt.is_acked:
        return LeaseLost(
            f"job {delivery.message.id} may be settled already: the connection ended when that was "
            "on its way. If it did not arrive, the job was taken back"
        )
    return LeaseLost(f"job {delivery.message.id} was taken back: its channel or connection is gone")

"""The RabbitMQ driver."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from pika.exceptions import ChannelClosedByBroker

from synmanager.backends.base import (
    Address,
    Counts,
    DeadLetter,
    Delivery,
    ExchangeSpec,
    Features,
    QueueBackend,
    QueueSpec,
)
from synmanager.backends.rabbitmq import properties
from synmanager.backends.rabbitmq.delays import ENTRY, TOP, way
from synmanager.backends.rabbitmq.faults import (
    ACCESS_REFUSED,
    NOT_FOUND,
    PRECONDITION_FAILED,
    translate,
    translated,
)
from synmanager.backends.rabbitmq.frames import Content
from synmanager.backends.rabbitmq.lane import Arrival, Lane, Unconfirmed
from synmanager.backends.rabbitmq.link import Link
from synmanager.backends.rabbitmq.native import NativeLane, blocking_connection
from synmanager.backends.rabbitmq.parameters import connection_parameters
from synmanager.backends.rabbitmq.topology import Topology, dead_queue
from synmanager.errors import (
    BrokerUnavailable,
    LeaseLost,
    PublishInterrupted,
    PublishRefused,
    Unroutable,
    Unsupported,
)
from synmanager.message import Message

__all__ = ["RabbitMQBackend"]

logger = logging.getLogger(__name__)

#: Seconds that a look at the end of consumers waits for it.
_PATIENCE = 1.0

#: Dead letters that are put back at a time.
_REDRIVEN_AT_ONCE = 100

#: Lost deliveries without an id whose made-up ids are kept, in case they come again.
_REMEMBERED = 1000


@dataclass
class _Receipt:
    """A delivery's handle. The channel in it is its epoch.

    Attributes:
        is_taken: a thread is settling it, or has; the first one does.
    """

    link: Link
    arrival: Arrival
    is_taken: bool = False


class RabbitMQBackend(QueueBackend):
    """A connection to RabbitMQ, 3.10 or later."""

    features = Features(
        durable=True,
        shared=True,
        timed_lease=False,
        deduplicates=False,
        deletes=False,
        counts_leased=False,
        counts_delayed=False,
        ranks_foreign=False,
    )

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._parameters = connection_parameters(address)
        self._where = f"{self._parameters.host}:{self._parameters.port}"
        self._warned: set[str] = set()
        self._lost: OrderedDict[bytes, str] = OrderedDict()
        self._opening = threading.Lock()
        self._link: Link | None = None
        self._native: Any = None
        self._topology: Topology

    def open(self) -> None:
        with self._opening:
            if self.is_open:
                return
            self.close()
            link = Link(self._parameters, self._where, self.address.timeout, self.address.heartbeat)
            link.open()
            self._topology = Topology(link, self._warned)
            self._link = link

    def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            link.close()
        native, self._native = self._native, None
        if native is not None and native.is_open:
            with suppress(Exception):  # it is the caller's, who may have broken it
                native.close()

    @property
    def is_open(self) -> bool:
        return self._link is not None and self._link.is_open

    def abandon(self) -> None:
        # Kept: what is collected here could say goodbye in the parent's name.
        self._parents = (self._link, self._native)
        self._link = self._native = None
        self._opening = threading.Lock()

    def declare(self, *specs: ExchangeSpec | QueueSpec) -> None:
        with self._connected():
            self._topology.declare(*specs)

    def publish(
        self,
        exchange: str,
        routing_key: str,
        messages: Sequence[Message],
        *,
        delay: float = 0.0,
    ) -> None:
        with self._connected() as link, link.lane() as lane:
            if delay > 0:
                self._publish_delayed(lane, exchange, routing_key, messages, delay)
            else:
                contents = [properties.fresh(message) for message in messages]
                _publish(lane, exchange, routing_key, contents, messages)

    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        deadline = time.monotonic() + wait
        with self._connected() as link:
            arrival = None
            if done is not None and not done.settled:
                arrival = self._exchange(link, done, queues, wait)
            last = None if done is None else done.queue
            while arrival is None or (delivery := self._accept(link, arrival)) is None:
                arrival = _get(link, queues, last)
                if arrival is None:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return None
                    arrival = self._listen(link, None, queues, left)
            return delivery

    def ack(self, delivery: Delivery) -> None:
        with self._held(delivery) as receipt:
            if receipt is not None:
                self._remove(delivery, receipt)

    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        with self._held(delivery) as receipt:
            if receipt is None:
                return
            attempts = delivery.attempt if count else delivery.attempt - 1
            original, message = receipt.arrival.properties, delivery.message
            if delay > 0 and self._can_delay(receipt.link, delivery.queue):
                headers = way(delay, queue=delivery.queue)
                copy = properties.again(original, message, attempts, headers)
                with receipt.link.lane() as lane:
                    _publish(lane, TOP, "", [copy], [message])
            else:
                copy = properties.again(original, message, attempts, head=delay <= 0)
                with receipt.link.lane() as lane:
                    _publish(lane, "", delivery.queue, [copy], [message])
            self._remove(delivery, receipt)

    def bury(self, delivery: Delivery, reason: str) -> None:
        with self._held(delivery) as receipt:
            if receipt is None:
                return
            message, queue = delivery.message, delivery.queue
            letter = properties.dead(
                receipt.arrival.properties, message, queue, delivery.attempt, reason
            )
            with receipt.link.lane() as lane:
                try:
                    _publish(lane, "", dead_queue(queue), [letter], [message])
                except Unroutable:  # somebody deleted it, or nobody declared the queue here
                    self._topology.declare_dead_queue(queue)
                    _publish(lane, "", dead_queue(queue), [letter], [message])
            self._remove(delivery, receipt)

    def renew(self, delivery: Delivery) -> None:
        if not delivery.settled:
            with self._connected() as link:
                self._receipt(link, delivery)

    def count(self, queue: str) -> Counts:
        with self._connected() as link:
            with link.lane() as lane:
                ready = lane.call("queue_declare", queue, passive=True).message_count
            return Counts(ready=ready, leased=None, delayed=None, dead=_count_dead(link, queue))

    def purge(self, queue: str) -> int:
        with self._connected() as link, link.lane() as lane:
            return int(lane.call("queue_purge", queue).message_count)

    def delete(self, queue: str, message_id: str) -> bool:
        raise Unsupported(
            "RabbitMQ cannot find a message by its id. Let the callback ask whether its job is "
            "still wanted, or purge the queue and submit the rest again"
        )

    def dead_letters(self, queue: str, limit: int) -> list[DeadLetter]:
        letters: list[DeadLetter] = []
        with self._connected() as link:
            if not _count_dead(link, queue):
                return letters
            lane = Lane(link)  # one of its own: when it closes, all goes back to where it was
            try:
                while len(letters) < limit and (arrival := lane.get(dead_queue(queue))):
                    letters.append(properties.dead_letter(queue, arrival.properties, arrival.body))
            finally:
                lane.close()
            link.wait(lambda: lane.is_lost)
        return letters

    def redrive(self, queue: str, limit: int) -> int:
        moved = 0
        with self._connected() as link:
            limit = min(limit, _count_dead(link, queue))
            while moved < limit:
                with link.lane() as lane:
                    arrivals: list[Arrival] = []
                    while len(arrivals) < min(_REDRIVEN_AT_ONCE, limit - moved):
                        arrival = lane.get(dead_queue(queue))
                        if arrival is None:
                            break
                        arrivals.append(arrival)
                    if not arrivals:
                        break
                    letters = [properties.read(a.raw, a.body).message for a in arrivals]
                    copies = [
                        properties.again(arrival.properties, letter, attempts=0)
                        for arrival, letter in zip(arrivals, letters, strict=True)
                    ]
                    _publish(lane, "", queue, copies, letters)
                    lane.ack(arrivals[-1].tag, multiple=True)
                    moved += len(arrivals)
        return moved

    def purge_dead_letters(self, queue: str) -> int:
        with self._connected() as link:
            if not _count_dead(link, queue):
                return 0
            with link.lane() as lane:
                return int(lane.call("queue_purge", dead_queue(queue)).message_count)

    def native(self) -> tuple[Any, Any]:
        self._connected()
        if self._native is None or not self._native.is_open:
            with translated(self._where):
                self._native = blocking_connection(self._parameters, self.address.timeout)
        return self._native, self._native.channel()

    def adopt(
        self, queue: str, channel: Any, method: Any, header: Any, body: bytes, *, settled: bool
    ) -> Delivery | None:
        arrival = NativeLane(channel).arrival(queue, method, header, body)
        with self._connected() as link:
            if settled:
                return self._make_delivery(link, arrival, settled=True)
            return self._accept(link, arrival)

    def _connected(self) -> Link:
        """The link, whose ``with`` takes its lock."""
        if self._link is None:
            raise BrokerUnavailable(f"not connected to RabbitMQ at {self._where}")
        return self._link

    @contextmanager
    def _held(self, delivery: Delivery) -> Iterator[_Receipt | None]:
        """Settle a delivery: its receipt, with the link's lock; None if it is settled already."""
        if delivery.settled:
            yield None
            return
        with self._connected() as link:
            receipt = self._receipt(link, delivery)
            if receipt.is_taken:  # the lock was free while another thread was waiting for answers
                yield None
                return
            receipt.is_taken = True
            try:
                yield receipt
            finally:
                receipt.is_taken = delivery.settled

    def _receipt(self, link: Link, delivery: Delivery, *, look: bool = True) -> _Receipt:
        """The receipt of a delivery that is still ours.

        Args:
            look: at what the broker has sent meanwhile.

        Raises:
            LeaseLost: its channel is gone, and so the broker has taken it back.
        """
        receipt: _Receipt = delivery.receipt
        arrival = receipt.arrival
        if look:
            link.glance()
        if link is not receipt.link or arrival.lane.is_lost:
            if arrival.properties.message_id is None:
                self._remember(arrival, delivery.message.id)
            raise _lost(delivery)
        return receipt

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
                    "on RabbitMQ, exchanges and queues that begin with synmanager.delay (%s)",
                    error.reply_text,
                )
            return False
        return True

    def _publish_delayed(
        self,
        lane: Lane,
        exchange: str,
        routing_key: str,
        messages: Sequence[Message],
        delay: float,
    ) -> None:
        headers = way(delay, exchange=exchange, routing_key=routing_key)
        self._topology.delays.build(lane)
        contents = [properties.delayed(message, headers) for message in messages]
        try:
            _publish(lane, ENTRY, routing_key, contents, messages)
        except Unroutable as error:
            raise Unroutable(
                f"no queue is declared on exchange {exchange!r} with routing key {routing_key!r}"
            ) from error

    def _exchange(
        self, link: Link, done: Delivery, queues: Sequence[str], wait: float
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
                self._remove(done, receipt)
                return None
            lane.ack(tag)
            arrival = self._listen(link, lane, queues, wait)
            done.settled = True
            return arrival
        except ChannelClosedByBroker as error:
            raise _lost(done) from error
        finally:
            receipt.is_taken = done.settled

    def _listen(
        self, link: Link, lane: Lane | None, queues: Sequence[str], seconds: float
    ) -> Arrival | None:
        """Wait for a message.

        The consumer of a single queue stays as long as its message is held, see :meth:`_exchange`.
        Of several it cannot: the next message must come from the first that has one. Nor does the
        job wait for the end of the consumers, which takes the broker as long as all the rest.
        """
        with link.lane(lane) as lane:
            arrivals = lane.listen(queues, seconds)
            if not arrivals:
                arrivals = lane.stop_listening()
            elif len(queues) > 1:
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
                self._replace(link, extra, extra_attempts=int(_has_uncounted(extra)))
            except BaseException as error:
                extra.lane.let_go(extra.tag)
                if not isinstance(error, Exception) or not link.is_open:
                    raise
                logger.warning("a job of %s goes back as if it had begun: %s", extra.queue, error)

    def _accept(self, link: Link, arrival: Arrival) -> Delivery | None:
        """Make a delivery of what arrived; None if it has to come again first.

        A classic queue flags a message that was handed out before and does not count how often. So
        the count is written into a copy that takes its place, before anyone runs it: a job that
        kills its worker would otherwise never end.
        """
        if not _has_uncounted(arrival):
            return self._make_delivery(link, arrival)
        try:
            self._replace(link, arrival, extra_attempts=1)
        except PublishRefused:  # a full queue takes no copy, but what it has must be run
            delivery = self._make_delivery(link, arrival)
            delivery.attempt += 1
            return delivery
        except BaseException:
            arrival.lane.close()
            raise
        return None

    def _make_delivery(self, link: Link, arrival: Arrival, settled: bool = False) -> Delivery:
        known = None
        if self._lost and arrival.properties.message_id is None:
            known = self._lost.pop(_digest(arrival), None)
        message, attempts, defect = properties.read(arrival.raw, arrival.body, known)
        receipt = _Receipt(link, arrival)
        return Delivery(message, arrival.queue, attempts + 1, receipt, defect, settled)

    def _replace(self, link: Link, arrival: Arrival, *, extra_attempts: int) -> None:
        """Put a copy at the head of the queue, with a count of its attempts."""
        delivery = self._make_delivery(link, arrival)
        attempts = delivery.attempt - 1 + extra_attempts
        copy = properties.again(arrival.properties, delivery.message, attempts, head=True)
        with link.lane() as lane:
            _publish(lane, "", arrival.queue, [copy], [delivery.message])
        self._remove(delivery, _Receipt(link, arrival))

    def _remove(self, delivery: Delivery, receipt: _Receipt) -> None:
        """Acknowledge what has been taken care of."""
        link, lane = receipt.link, receipt.arrival.lane
        self._put_back(link, lane.stop_listening())  # else the lane would be sent the next
        lane.ack(receipt.arrival.tag)
        link.give_back(lane)
        delivery.settled = True

    def _remember(self, arrival: Arrival, message_id: str) -> None:
        """Keep the id that we gave to a message without one: it comes again without one."""
        self._lost[_digest(arrival)] = message_id
        if len(self._lost) > _REMEMBERED:
            self._lost.popitem(last=False)


def _has_uncounted(arrival: Arrival) -> bool:
    """Whether a delivery before this one came to nothing, and nobody has counted it."""
    return arrival.redelivered and not properties.is_counted(arrival.properties)


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


def _count_dead(link: Link, queue: str) -> int:
    try:
        with link.lane() as lane:
            return int(lane.call("queue_declare", dead_queue(queue), passive=True).message_count)
    except ChannelClosedByBroker as error:
        if error.reply_code != NOT_FOUND:
            raise
        return 0


def _publish(
    lane: Lane,
    exchange: str,
    routing_key: str,
    contents: Sequence[Content],
    messages: Sequence[Message],
) -> None:
    try:
        lane.publish(exchange, routing_key, contents)
    except Unconfirmed as error:
        cause = error.cause
        if isinstance(cause, ChannelClosedByBroker):
            if cause.reply_code == NOT_FOUND:
                raise Unroutable(cause.reply_text) from cause
            if cause.reply_code == PRECONDITION_FAILED:  # larger than the broker's limit
                raise PublishRefused(cause.reply_text) from cause
            raise cause from error
        raise PublishInterrupted(
            f"not confirmed: {translate(cause, 'the broker')}",
            [messages[index] for index in error.indices],
        ) from cause


def _lost(delivery: Delivery) -> LeaseLost:
    return LeaseLost(f"job {delivery.message.id} was taken back: its channel or connection is gone")

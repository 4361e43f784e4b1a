"""A channel in confirm mode that does one thing at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from pika.exceptions import ChannelWrongStateError
from pika.frame import Method
from pika.spec import Basic, BasicProperties, Queue

from synmanager.backends.rabbitmq.channel import GreedyChannel
from synmanager.backends.rabbitmq.frames import Content, Publication
from synmanager.interrupts import is_from_handler

if TYPE_CHECKING:
    from synmanager.backends.rabbitmq.link import Link

__all__ = ["ALL", "Arrival", "Lane", "Unaccepted", "Unconfirmed"]

#: Messages that are handed to the socket before its answers are looked at.
_BURST = 200
_BURST_BYTES = 1 << 20

#: Messages that may be on their way unconfirmed.
_WINDOW = 5_000

#: More messages than any queue hands out at a time.
ALL = 1 << 31

#: AMQP counts them with two bytes.
_MOST_PREFETCHED = 65_535

#: Acknowledgements that a channel passes on to a quorum queue before it has answered.
_TOLD_AT_ONCE = 16

#: Seconds without a message after which somebody else has taken the rest.
_PAUSE = 1.0


@dataclass
class Arrival:
    """A message that the broker has handed to us.

    Attributes:
        lane: the channel it came on, on which alone it can be settled.
        tag: its number there.
        redelivered: the broker's flag: it was handed out before.
    """

    lane: Lane
    tag: int
    queue: str
    redelivered: bool
    properties: BasicProperties
    body: bytes


class Unconfirmed(Exception):
    """A publish came to an end before all of it was confirmed.

    Attributes:
        indices: of the messages in doubt.
    """

    def __init__(self, cause: Exception, indices: Sequence[int]) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.indices = indices


class Unaccepted(Exception):
    """The broker has answered for each message of a publish, and does not take some.

    Attributes:
        indices: of those.
        returned: why some have no queue to go to, in the broker's words; None if all have one.
    """

    def __init__(self, indices: Sequence[int], returned: str | None) -> None:
        super().__init__(f"{len(indices)} messages are not accepted")
        self.indices = indices
        self.returned = returned


class Lane:
    """A channel of its own for each call, and for each delivery until that is settled.

    So the channel is the epoch: a delivery's number on it can never mean another job's, and a
    channel that the broker closes, for a mistake of a call or because a job outlasts the
    broker's patience, takes nothing else with it.

    All methods are called with the link's lock held, and raise what pika raises: a
    ``ChannelClosedByBroker``, if the broker closes the channel.

    Attributes:
        link: whose channel it is.
        is_aside: an answer that does not come costs this channel and no other: what jobs depend on
            is not asked for here. A broker that says nothing at all is given up by its heartbeats.
    """

    def __init__(self, link: Link, *, is_aside: bool = False) -> None:
        self.link = link
        self.is_aside = is_aside
        self._end: BaseException | None = None
        self._held: dict[int, str] = {}  # delivery tag: queue
        self._confirming: dict[int, int] = {}  # delivery tag: index in the batch
        self._published = 0
        self._refused: list[int] = []  # indices
        self._returns: list[tuple[str, BasicProperties, bytes]] = []  # why, and the message
        self._has_prefetch = False
        self._shares_prefetch = False
        self._consumers: dict[str, None] = {}  # the queues; their names are the consumers' tags
        self._unanswered = 0
        #: Whether consumers are being cancelled, and what crosses with that has not been taken.
        self.is_stopping = False
        self._is_getting = False
        self._arrived: list[tuple[str, Any, BasicProperties, bytes]] = []
        self._counts: dict[str, int | None] = {}  # None for those that are asked for
        self._declaring: str | None = None
        opened: list[object] = []
        self._channel: GreedyChannel = link.wire.channel(on_open_callback=opened.append)
        self._channel.add_on_close_callback(self._note_end)
        try:
            self._prepare(opened)
        except BaseException:
            self.close()
            raise

    def _prepare(self, opened: list[object]) -> None:
        self._wait(lambda: opened)
        for answer in (Basic.ConsumeOk, Basic.CancelOk):
            self._channel.add_callback(self._note_answer, [answer], one_shot=False)
        self._channel.add_callback(self._note_count, [Queue.DeclareOk], one_shot=False)
        self._channel.add_callback(self._note_empty, [Basic.GetEmpty], one_shot=False)
        self._channel.add_on_return_callback(self._note_return)
        self._channel.add_on_cancel_callback(self._note_cancel)
        self._channel.on_message = self._note_message
        self.call("confirm_delivery", self._note_confirmation)

    @property
    def is_lost(self) -> bool:
        """Whether it is closed, and the broker has taken back what was held on it."""
        return self._end is not None or self.link.wire.ended is not None

    @property
    def held(self) -> int:
        """How many deliveries are neither settled nor lost."""
        return 0 if self.is_lost else len(self._held)

    def holds(self, tag: int) -> bool:
        """Whether a delivery is neither settled nor lost."""
        return tag in self._held and not self.is_lost

    @property
    def is_reusable(self) -> bool:
        """Whether nothing is held on it, nor awaited."""
        is_in_use = self._held or self._confirming or self._consumers or self.is_stopping
        return not (self.is_lost or is_in_use)

    def close(self) -> None:
        """Give back what is held, and be done with."""
        if self._channel.is_open and self._held:
            # Without this, they go back some time after the closing is confirmed.
            self._channel.basic_nack(0, multiple=True)
        if not (self._channel.is_closing or self._channel.is_closed):
            self._channel.close()

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call one of pika's channel methods that the broker answers; return the answer."""
        replies: list[Any] = []
        self._declaring = args[0] if method == "queue_declare" else None
        getattr(self._channel, method)(*args, callback=replies.append, **kwargs)
        self._wait(lambda: replies)
        self._declaring = None
        return replies[0].method

    def get(self, queue: str, *, counted: Sequence[str] = ()) -> Arrival | None:
        """Take a message; None if there is none.

        Args:
            counted: queues whose messages are counted on the same trip.
        """
        self._is_getting = True
        self._counts = dict.fromkeys(counted)
        self._emit(Basic.Get(queue=queue))
        for other in counted:
            self._emit(Queue.Declare(queue=other, passive=True))
        self._wait(lambda: not self._is_getting and None not in self._counts.values())
        return self._hold(queue, *self._arrived.pop()[1:]) if self._arrived else None

    def get_first(self, queues: Sequence[str], *, counted: Sequence[str]) -> Arrival | None:
        """Take a message from the first queue that has one.

        Each queue costs a trip, but for those that are only ``counted``, and are empty. Asked for
        a message as well, several might give one, of which all but one would be held and not run.
        """
        empty: set[str] = set()
        for queue in queues:
            if queue not in empty:
                arrival = self.get(queue, counted=counted)
                if arrival is not None:
                    return arrival
                empty.update(each for each, messages in self._counts.items() if not messages)
                counted = ()
        return None

    def take(self, queue: str, most: int) -> list[Arrival]:
        """Take the first messages of a queue, so many or as many as there are.

        They come from a consumer, and not one by one: all at once they go back in a moment, while
        thousands that were got singly keep the broker busy for a minute.
        """
        # What is on its way back is there before this is answered; a count alone could be too soon.
        first = self.get(queue) if most > 0 else None
        if first is None:
            return []
        there = self.call("queue_declare", queue, passive=True).message_count
        most = min(most - 1, there, _MOST_PREFETCHED)
        if most == 0:
            return [first]
        self.call("basic_qos", prefetch_count=most)
        self._has_prefetch = False  # that of one, which a delivery has
        self._consumers = {queue: None}
        self._ask([Basic.Consume(queue=queue, consumer_tag=queue)])
        self._wait(lambda: not self._unanswered)  # for which a quorum queue asks its disks
        arrived, before = self._arrived, -1
        while before < len(arrived) < most and not self._end:
            before = len(arrived)
            self.link.wait(lambda: self._end or len(arrived) > before, _PAUSE)  # noqa: B023
        return [first, *self.stop_listening()]

    def listen(self, queues: Sequence[str], seconds: float) -> list[Arrival]:
        """Consume the queues, and wait for a message from any of them.

        As long as one is held nothing more comes, as a rule, so the consumers can stay.

        Returns:
            one, as a rule; none after ``seconds`` or when a queue is deleted meanwhile; more than
            one, if they come at once, where there is no prefetch over a whole channel, as of quorum
            queues, and by default on 4.3.
        """
        arrived = self._arrived
        if not self.listens_to(queues):
            is_apart = not self.link.apart.isdisjoint(queues)
            self._limit_prefetch(together=len(queues) > 1 and not is_apart)
            self._consumers = dict.fromkeys(queues)
            self._ask(Basic.Consume(queue=queue, consumer_tag=queue) for queue in queues)
            self._wait(lambda: not self._unanswered)
        self.link.wait(lambda: arrived or self._end or not self.listens_to(queues), seconds)
        if self._end is not None:
            raise self._end
        return self._take_arrived()

    def gather(self, seconds: float) -> list[Arrival]:
        """Wait until each consumer holds a message, for so long at most; returns what has come."""
        held, arrived = len(self._held), self._arrived
        self.link.wait(lambda: self._end or held + len(arrived) >= len(self._consumers), seconds)
        return self._take_arrived()

    def listens_to(self, queues: Sequence[str]) -> bool:
        return list(self._consumers) == list(queues)

    def begin_to_stop(self) -> None:
        """Ask for the end of the consumers, if there are any, without waiting for it."""
        if self._consumers:
            self._ask(Basic.Cancel(consumer_tag=queue) for queue in self._consumers)
            self._consumers.clear()
            self.is_stopping = True

    def has_stopped(self, seconds: float) -> bool:
        """Wait for the end of what :meth:`begin_to_stop` stops; False if it takes longer."""
        return self.link.wait(
            lambda: self._end or not self.is_stopping or not self._unanswered, seconds
        )

    def stop_listening(self) -> list[Arrival]:
        """End the consumers; returns what crossed with that, which is held as well."""
        self.begin_to_stop()
        if not self.is_stopping:
            return []
        self._wait(lambda: not self._unanswered)
        self.is_stopping = False
        return self._take_arrived()

    def let_go(self, tag: int) -> bool:
        """Give back one delivery, for which nothing better can be done; True, as it is done."""
        if list(self._held) == [tag]:
            self.close()
        elif self._channel.is_open:
            self._channel.basic_nack(tag)
            self._held.pop(tag, None)
        return True

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        """Settle a delivery, or all up to it."""
        self._emit(Basic.Ack(tag, multiple), can_linger=True)
        self._held.pop(tag, None)
        if multiple:
            self._held = {held: queue for held, queue in self._held.items() if held > tag}

    def ack_all(self, queue: str, tags: Sequence[int]) -> None:
        """Settle deliveries of a queue, so that they are gone when the channel closes.

        A quorum queue is told of some thirty at a time, and of the rest when it has answered; what
        a channel that closes has not passed on by then comes back.
        """
        for tag in tags:
            self.ack(tag)
        if len(tags) > _TOLD_AT_ONCE:
            for _ in range(2):  # by the second it has all; what comes goes back with the channel
                self.get(queue)

    def publish(self, exchange: str, routing_key: str, contents: Sequence[Content]) -> None:
        """Publish a batch and wait until the broker has accepted all of it.

        Raises:
            Unconfirmed: it ended before; says which messages are in doubt.
            Unaccepted: the broker's word.
        """
        earlier = self._find_unfinished(exchange, routing_key, contents)
        if earlier is not None:
            earlier._confirm(exchange, routing_key, contents, lambda: None)
            self.link.give_back(earlier)
            return
        self._confirm(
            exchange,
            routing_key,
            contents,
            lambda: self.begin_publish(exchange, routing_key, contents),
        )

    def begin_publish(self, exchange: str, routing_key: str, contents: Sequence[Content]) -> None:
        """Publish a batch, and wait for no answer."""
        self._refused, self._returns = [], []
        self._send(Publication(exchange, routing_key, self._channel.channel_number), contents)

    @property
    def is_confirming(self) -> bool:
        """Whether the broker has yet to answer for something that was published."""
        return bool(self._confirming)

    @property
    def is_accepted(self) -> bool:
        """Whether it has taken all that was published last, as far as it has answered."""
        return not (self._refused or self._returns)

    def _find_unfinished(
        self, exchange: str, routing_key: str, contents: Sequence[Content]
    ) -> Lane | None:
        unfinished = self.link.unfinished
        lane = (
            unfinished.pop((exchange, routing_key, tuple(contents)), None) if unfinished else None
        )
        return None if lane is None or lane.is_lost else lane

    def _confirm(
        self,
        exchange: str,
        routing_key: str,
        contents: Sequence[Content],
        emit: Callable[[], None],
    ) -> None:
        try:
            emit()
            self._await_confirmations(0)
        except Exception as error:
            if is_from_handler(error):
                raise
            in_doubt = set(self._confirming.values())
            # What was not sent yet is in doubt as well.
            unsent = range(max(in_doubt, default=-1) + 1, len(contents))
            if self.link.wire.blocked is not None and len(in_doubt) == len(contents):
                self.link.unfinished[exchange, routing_key, tuple(contents)] = self
            not_taken = in_doubt.union(unsent, self._refused, self._find_returned(contents))
            raise Unconfirmed(error, sorted(not_taken)) from error
        if self._returns or self._refused:
            not_taken = {*self._refused, *self._find_returned(contents)}
            reason = self._returns[0][0] if self._returns else None
            raise Unaccepted(sorted(not_taken), reason)

    def _find_returned(self, contents: Sequence[Content]) -> set[int]:
        """Which messages of a batch came back; the broker says it with the message itself."""
        if len(self._returns) == len(contents):
            return set(range(len(contents)))
        returned = {Content(b"".join(p.encode()), body) for _, p, body in self._returns}
        return {index for index, content in enumerate(contents) if content in returned}

    def _send(self, publication: Publication, contents: Sequence[Content]) -> None:
        wire = self.link.wire
        frame_max = wire.params.frame_max
        size = count = 0
        self._require_open()
        for index, content in enumerate(contents):
            self._published += 1
            self._confirming[self._published] = index
            self.link.wire.emit(publication.frames(content, frame_max))
            size, count = size + len(content.body), count + 1
            if (size > _BURST_BYTES or count == _BURST) and index + 1 < len(contents):
                self.link.glance()  # the broker works on them while the next are written
                self._wait(lambda: not wire.has_unsent)
                self._await_confirmations(_WINDOW)
                self._require_open()
                size = count = 0

    def _await_confirmations(self, left: int) -> None:
        # As long as some come, the broker is only slow.
        while (before := len(self._confirming)) > left:
            self._wait(lambda before=before: len(self._confirming) < before)  # type: ignore[misc]

    def _ask(self, methods: Iterable[Any]) -> None:
        """Ask several things at once, where pika would wait for each answer before the next."""
        for method in methods:
            self._emit(method)
            self._unanswered += 1

    def _take_arrived(self) -> list[Arrival]:
        arrivals = [self._hold(*each) for each in self._arrived]
        self._arrived.clear()
        return arrivals

    def _limit_prefetch(self, *, together: bool) -> None:
        """Let no second message come while one is held.

        Args:
            together: of all queues together. For that the broker asks a process of the channel
                before each message, so a single queue does without.
        """
        if not self._has_prefetch:
            self.call("basic_qos", prefetch_count=1)
            self._has_prefetch = True
        if together != self._shares_prefetch:
            # Where it is forbidden, this is confirmed and ignored.
            self.call("basic_qos", prefetch_count=int(together), global_qos=True)
            self._shares_prefetch = together

    def _wait(self, done: Callable[[], object]) -> None:
        self.link.wait(lambda: done() or self._end, is_aside=self.is_aside)
        if self._end is not None and not done():
            raise self._end

    def _emit(self, method: Any, *, can_linger: bool = False) -> None:
        """Put a method on the way, past pika, which would wait for one answer before the next."""
        self._require_open()
        frame = Method(self._channel.channel_number, method).marshal()
        self.link.wire.emit(frame, can_linger=can_linger)

    def _require_open(self) -> None:
        if not self._channel.is_open:
            raise self._end or ChannelWrongStateError("the channel is closing")

    def _hold(self, queue: str, method: Any, properties: BasicProperties, body: bytes) -> Arrival:
        tag = method.delivery_tag
        self._held[tag] = queue
        return Arrival(self, tag, queue, method.redelivered, properties, body)

    def _note_end(self, _: object, reason: BaseException) -> None:
        self._end = reason

    def _note_message(
        self, consumer: str, method: Any, properties: BasicProperties, body: bytes
    ) -> None:
        if consumer:
            is_awaited = consumer in self._consumers or self.is_stopping
        else:
            is_awaited, self._is_getting = self._is_getting, False
        if is_awaited or not self._channel.is_open:
            self._arrived.append((consumer, method, properties, body))
        else:
            self._refuse(method)

    def _note_empty(self, frame: Any) -> None:
        if not self._is_getting:
            self._refuse(frame.method)
        self._is_getting = False

    def _note_answer(self, frame: Any) -> None:
        if not self._unanswered:
            self._refuse(frame.method)
        self._unanswered -= 1

    def _note_count(self, frame: Any) -> None:
        method = frame.method
        if method.queue in self._counts:
            self._counts[method.queue] = method.message_count
        elif method.queue != self._declaring:
            self._refuse(method)

    def _refuse(self, method: Any) -> None:
        """End a connection on which comes what nobody has asked for: nothing is sure there."""
        self.link.wire.abort(f"{method.NAME} came out of turn")

    def _note_cancel(self, frame: Any) -> None:
        # Its queue was deleted; or, from 4.3 on, its job outlasts the broker's patience.
        self._consumers.pop(frame.method.consumer_tag, None)
        if frame.method.consumer_tag in self._held.values():
            self.close()  # the broker has taken that back

    def _note_return(
        self, _: object, method: Any, properties: BasicProperties, body: bytes
    ) -> None:
        if not self._confirming:
            self._refuse(method)
        self._returns.append((f"{method.reply_code} {method.reply_text}", properties, body))

    def _note_confirmation(self, frame: Any) -> None:
        method = frame.method
        tag = method.delivery_tag
        if tag > self._published or not (method.multiple or tag in self._confirming):
            self._refuse(method)
            return
        if method.multiple and tag:
            done = list(takewhile(lambda each: each <= tag, self._confirming))
        else:
            done = list(self._confirming) if method.multiple else [tag]
        indices = [self._confirming.pop(each) for each in done]
        if isinstance(method, Basic.Nack):
            self._refused += indices

"""A reader of a stream, on a channel of its own.

What a look must show, without waiting, is all that was confirmed before it. RabbitMQ sends what is
new in a stream when the stream's process tells the channel's, at its leisure; but whenever a
delivery is acknowledged, the channel's process looks into the stream by itself, and does so before
it answers what is asked next. So some deliveries stay unacknowledged, to be spent on such looks.
Who has none left has the last ones sent again; in a short stream those are soon spent, so that it
is made longer by blanks. And where nobody knows whether there is anything to come, a second reader
of the stream's last message shows it: with that, the channel's process has served every reader on
the channel.
"""

from __future__ import annotations

from collections import deque
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from pika.spec import Basic, BasicProperties

from synmanager.backends.base import Entry
from synmanager.backends.rabbitmq import properties as meta
from synmanager.backends.rabbitmq.lane import Lane

if TYPE_CHECKING:
    from synmanager.backends.rabbitmq.link import Link

__all__ = ["OFFSET", "Tape"]

#: Entries that may be on their way to us, and among them those that are kept to be spent; and of
#: which so many are enough in a stream, as to have them sent again costs as much as ten looks.
_WINDOW = 1000
_KEPT = 64
_ENOUGH = 32

#: Seconds that a stream gets to send its last message; and one that is said to have none.
_PATIENCE = 5.0
_DOUBT = 0.3

#: Seconds by which a publisher's clock may be wrong.
_SKEW = 10.0

#: Seconds since the epoch beyond which there are no dates.
_END_OF_TIME = 253_402_300_799

#: The names of the consumers: of the one that reads, and of the one that shows the end.
_READER, _END = "reader", "end"

#: Where a consumer begins to read, and where in the stream an entry lies. No queue but a stream
#: lets anybody consume who says the first.
OFFSET = "x-stream-offset"


class Tape(Lane):
    """Reads a stream on from one place. As for any lane, its link's lock is held.

    Args:
        after: a position, or a time, as in ``QueueBackend.replay``.

    Attributes:
        log: whose stream it is.
        after: what a call must ask for that goes on with this.
        has_any: whether anything ever came.
        is_started: whether it is subscribed to the stream.
        used: when it was last put aside, by the monotonic clock.
    """

    def __init__(self, link: Link, log: str, queue: str, after: str | float) -> None:
        self.log = log
        self.after = after
        self.used = 0.0
        self.is_started = False
        self._queue = queue
        self._last = int(after) if isinstance(after, str) else -1  # the offset that was read
        self._entries: deque[Entry] = deque()
        self._unacked: deque[int] = deque()  # tags, of what was read and of what was not
        self._ends: list[int] = []  # the tags of what shows the end
        self._is_gone = False
        self.has_any = False
        super().__init__(link, is_aside=True)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come: its stream was deleted, or its channel closed."""
        return self._is_gone or self.is_lost

    @property
    def is_full(self) -> bool:
        """Whether nothing more comes before something is acknowledged."""
        return len(self._unacked) >= _WINDOW

    @property
    def can_spend(self) -> bool:
        """Whether a look costs one trip."""
        return bool(self._unacked)

    @property
    def is_short(self) -> bool:
        """Whether the next look costs ten times as much, and most to come, for want of entries."""
        return not self._unacked and 0 <= self._last < _ENOUGH

    def start(self, *, is_written: bool) -> None:
        """Subscribe; all that was confirmed before is there then, up to the window.

        Args:
            is_written: something is known to be in the log.
        """
        self.is_started = True
        is_within = isinstance(self.after, str)
        self._subscribe(self._place())
        has_end = self._see_end(is_written=is_written or is_within)
        if is_within and not (self.has_any or self.is_over):
            # It ends before that position: somebody has deleted it, and it has begun anew.
            self._ask([Basic.Cancel(consumer_tag=_READER)])
            self._wait(lambda: not self._unanswered)
            self._last = -1
            self._subscribe("first")
            if has_end:
                self._see_end(is_written=True)

    def _rewind(self) -> None:
        """Have the last entries sent again, to be spent, and with them what is new."""
        self._ask([Basic.Cancel(consumer_tag=_READER)])
        self._wait(lambda: not self._unanswered)
        self._subscribe(max(self._last + 1 - _KEPT, 0))
        patience = min(_PATIENCE, self.link.timeout)
        self.link.wait(lambda: self._unacked or self._is_gone or self._end, patience)
        self.call("basic_qos", prefetch_count=1)  # what began to come is all there

    def _subscribe(self, place: Any) -> None:
        self.call("basic_qos", prefetch_count=_WINDOW)
        self._consume(_READER, place)
        self._wait(lambda: not self._unanswered)
        self.call("basic_qos", prefetch_count=1)

    def look(self, limit: int) -> None:
        """Fetch what was confirmed before, as far as it is wanted."""
        while len(self._entries) < limit:
            if self.can_spend:
                self._release(spend=True)
                self.call("basic_qos", prefetch_count=1)
            elif self._last >= 0:
                self._rewind()
            else:
                self._see_end(is_written=False)
            if not self.is_full:
                return

    def wait(self, seconds: float) -> None:
        """Wait for something to come, or for the end of it all."""
        self.link.wait(lambda: self._entries or self._is_gone or self._end, seconds)

    def hand_out(self, limit: int) -> list[Entry]:
        """What has come, and was not handed out before."""
        count = min(limit, len(self._entries))
        found = [self._entries.popleft() for _ in range(count)]
        if found:
            self.after = found[-1].position
        return found

    def rest(self) -> None:
        """Acknowledge all: RabbitMQ closes a channel that keeps it waiting for half an hour."""
        self._release(keep=0)

    def _place(self) -> Any:
        if isinstance(self.after, str):
            return int(self.after)
        second = min(int(self.after - _SKEW), _END_OF_TIME)
        return datetime.fromtimestamp(second, timezone.utc) if second > 0 else "first"

    def _release(self, *, spend: bool = False, keep: int = _KEPT) -> None:
        """Acknowledge what need not be kept.

        Args:
            spend: acknowledge one at least.
        """
        done = max(len(self._unacked) - keep, int(spend))
        if done > 0:
            for _ in range(done - 1):
                self._unacked.popleft()
            self.ack(self._unacked.popleft(), multiple=True)

    def _see_end(self, *, is_written: bool) -> bool:
        """Have all sent that is there, up to the window; False if the stream seems to be empty."""
        self._consume(_END, "last")
        self._wait(lambda: not self._unanswered)
        patience = min(_PATIENCE, self.link.timeout)
        if not (is_written or self.has_any or self._ends or self._count()):
            patience = min(_DOUBT, patience)
        self.link.wait(lambda: self._ends or self._is_gone or self._end, patience)
        has_end = bool(self._ends)
        self._ask([Basic.Cancel(consumer_tag=_END)])
        self._wait(lambda: not self._unanswered)
        while self._ends:
            self.ack(self._ends.pop())
        return has_end

    def _count(self) -> int:
        """How many entries RabbitMQ thinks there are; before 4.0 it may be seconds behind."""
        return int(self.call("queue_declare", self._queue, passive=True).message_count)

    def _consume(self, consumer: str, place: Any) -> None:
        self._ask(
            [Basic.Consume(queue=self._queue, consumer_tag=consumer, arguments={OFFSET: place})]
        )

    def _note_message(
        self, consumer: str, method: Any, properties: BasicProperties, body: bytes
    ) -> None:
        if consumer == _END:
            self._ends.append(method.delivery_tag)
            return
        offset = properties.headers[OFFSET]
        self.has_any = True
        self._unacked.append(method.delivery_tag)
        if offset > self._last:
            self._last = int(offset)
            if not meta.is_blank(properties):
                recorded_at = meta.recorded_at(properties)
                self._entries.append(Entry(str(self._last), recorded_at, body))

    def _note_cancel(self, frame: Any) -> None:
        self._is_gone = True

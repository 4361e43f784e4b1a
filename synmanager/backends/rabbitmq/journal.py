"""The journal: a stream for each log, made when it is first written to."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pika.exceptions import ChannelClosedByBroker

from synmanager.backends.base import Entry
from synmanager.backends.rabbitmq import properties
from synmanager.backends.rabbitmq.faults import NOT_FOUND
from synmanager.backends.rabbitmq.frames import Content
from synmanager.backends.rabbitmq.lane import Unaccepted, Unconfirmed
from synmanager.backends.rabbitmq.link import Link
from synmanager.backends.rabbitmq.tape import OFFSET, Tape
from synmanager.errors import BrokerUnavailable, PublishRefused, SynmanagerError, TopologyError

__all__ = ["EXCHANGE", "Journal", "stream"]

#: By which entries come to the streams. One that is just being made is not bound to it yet, and so
#: not reached by who knows an earlier one of that name, see ``meeting``.
EXCHANGE = "synmanager.journal"

#: Readers that are kept for the next call, and seconds for which one is that nobody calls for.
_KEPT_TAPES = 4
_KEPT_FOR = 300.0

#: Seconds between two looks for a stream that is not there.
_LOOK = 0.5


def stream(log: str) -> str:
    """The name of a log's stream."""
    return f"synmanager.journal.{log}"


class Journal:
    """The logs, over one link, whose lock is held by whoever calls.

    A reader is kept between two calls when the second goes on where the first has ended, so that
    following a log costs the broker nothing but its entries.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._tapes: list[Tape] = []  # that nobody uses; the last was used last
        self._is_watched = False
        self._met: dict[str, bool] = {}  # whether there was a stream
        self._written: set[str] = set()  # something is in them
        self._only_read: set[str] = set()  # nothing can be written into them

    def is_met(self, log: str) -> bool | None:
        """Whether a log's stream is known to be made; None if there is none."""
        if not self._met.get(log):
            try:
                with self._link.lane(is_aside=True) as lane:
                    if lane.call("queue_declare", stream(log), passive=True).message_count:
                        self.meet(log, is_there=True, is_written=True)
            except ChannelClosedByBroker as error:
                if not _is_not_found(error):
                    raise
                return None
        return self._met.get(log, False)

    def meet(self, log: str, *, is_there: bool, is_written: bool = False) -> None:
        """Take note that a log may be read, whether its stream can be used, and has anything."""
        self._met[log] = is_there
        if is_written:
            self._written.add(log)

    def append(
        self,
        log: str,
        entries: Sequence[bytes],
        exchange: str = EXCHANGE,
        header: bytes | None = None,
    ) -> Sequence[bytes]:
        """Append to a log; return what could not be, because its stream is not there, or not bound.

        Args:
            header: encoded properties; by default, those of entries that are recorded now.

        Raises:
            PublishRefused: the broker does not take it.
        """
        header = properties.entry() if header is None else header
        contents = [Content(header, data) for data in entries]
        with self._link.lane(is_aside=True) as lane:
            try:
                lane.publish(exchange, stream(log), contents)
            except Unaccepted as error:
                if error.returned is None:
                    raise PublishRefused(
                        f"the broker refused {len(error.indices)} entries of the log {log!r}"
                    ) from None
                self._forget(log)
                return [entries[index] for index in error.indices]
            except Unconfirmed as error:
                if _is_not_found(error.cause):  # somebody has deleted the exchange
                    self._forget(log)
                    return [entries[index] for index in error.indices]
                ours = self._link.understand(error.cause) or error.cause
                raise ours from error.cause
        self._written.add(log)
        return ()

    def read(
        self, log: str, after: str | float, deadline: float, limit: int, *, is_waited_for: bool
    ) -> list[Entry] | None:
        """See ``QueueBackend.replay``; None if it has yet to be met."""
        while True:
            found: list[Entry] = []
            tape = self._kept(log, after)
            if tape is None:
                is_met = self.is_met(log)
                if is_met:
                    tape = Tape(self._link, log, stream(log), after)
                elif is_met is not None or log not in self._met:
                    return None
            if tape is not None:
                try:
                    found = self._replay(tape, deadline, limit, is_waited_for=is_waited_for)
                except BaseException as error:
                    if self._link.is_sound_after(error):
                        tape.close()
                    if _is_no_stream(error):
                        raise TopologyError(
                            f"{stream(log)!r} is no stream; delete it, and it is made anew"
                        ) from error
                    if not _is_not_found(error):
                        raise
                if not tape.is_over:
                    self._keep(tape)
                    return found
                self._forget(log)
            left = deadline - time.monotonic()
            if found or left <= 0:
                return found
            self._link.wait(lambda: False, min(left, _LOOK))

    def _forget(self, log: str) -> None:
        """Its stream was deleted, and who makes it anew may be at it now."""
        self._met[log] = False
        self._written.discard(log)

    def _replay(
        self, tape: Tape, deadline: float, limit: int, *, is_waited_for: bool
    ) -> list[Entry]:
        if not tape.is_started:
            tape.start(is_written=tape.log in self._written)
            if not tape.has_any:  # somebody has made it anew
                self._written.discard(tape.log)
            if tape.is_full:
                tape.look(limit)
        elif tape.can_spend or not is_waited_for:
            if tape.is_short:
                self._lengthen(tape.log)
            tape.look(limit)
        while not (found := tape.hand_out(limit)):
            left = deadline - time.monotonic()
            if left <= 0 or tape.is_over:
                break
            tape.wait(min(left, _KEPT_FOR))
            if left > _KEPT_FOR:
                tape.rest()
        return found

    def _lengthen(self, log: str) -> None:
        """Write a blank into a short log, so that looks at it become cheap, whoever has them.

        One at a time: others who look do the same, and all see what each has written.
        """
        if log in self._only_read:
            return
        try:
            is_refused = bool(self.append(log, [b""], header=properties.blank()))
        except SynmanagerError:  # it is no more than a saving
            is_refused = True
        if is_refused:
            self._only_read.add(log)

    def _kept(self, log: str, after: str | float) -> Tape | None:
        """Take a reader that goes on from there, if there is one."""
        if self._link.wire.blocked is not None:
            raise BrokerUnavailable(f"the broker reads nothing, it is {self._link.wire.blocked}")
        for tape in self._tapes:
            if (tape.log, tape.after) == (log, after) and not tape.is_over:
                self._tapes.remove(tape)
                return tape
        return None

    def _keep(self, tape: Tape) -> None:
        tape.used = time.monotonic()
        self._tapes.append(tape)
        if len(self._tapes) > _KEPT_TAPES:
            self._tapes.pop(0).close()
        if not self._is_watched:
            self._is_watched = True
            self._link.later(self._let_go)

    def _let_go(self) -> bool:
        """Close the readers that nobody has called for; whether none is left."""
        oldest = time.monotonic() - _KEPT_FOR
        for tape in self._tapes[:]:
            if tape.used < oldest or tape.is_over:
                self._tapes.remove(tape)
                tape.close()
        self._is_watched = bool(self._tapes)
        return not self._is_watched


def _is_no_stream(error: BaseException) -> bool:
    return isinstance(error, ChannelClosedByBroker) and f"invalid arg '{OFFSET}'" in str(
        error.reply_text
    )


def _is_not_found(error: BaseException) -> bool:
    return isinstance(error, ChannelClosedByBroker) and error.reply_code == NOT_FOUND

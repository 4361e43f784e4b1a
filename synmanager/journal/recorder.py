"""Writing events to the journal from beside the jobs."""

from __future__ import annotations

import atexit
import logging
import time
import weakref
from collections import deque
from collections.abc import Callable

from synmanager.backends.base import QueueBackend
from synmanager.engine import forks
from synmanager.errors import AccessRefused, BrokerUnavailable, Unsupported
from synmanager.journal.aide import Aide
from synmanager.journal.events import EVENTS, Event, source, together
from synmanager.message import new_id
from synmanager.text import shown

__all__ = ["Recorder", "Trouble", "flush_all"]

logger = logging.getLogger(__name__)

#: Seconds for which events are gathered before they are written together: after a while
#: without any, and while one follows on the other. Each writing costs a busy process something.
_LINGER, _BUSY_LINGER = 0.05, 0.3
_QUIET = 0.8

#: Where writing takes long, it is so many times as long until the next; and seconds at most.
_RESTS, _LONGEST_REST = 3, 3.0

#: Events that are written at once, and that wait at most while they cannot be written. What only
#: shows progress is left out from the first limit on, the oldest of all from the second.
_BATCH = 500
_MOST, _UTMOST = 10_000, 50_000

#: Seconds until the next try, while the broker is away, and after trouble with the journal alone.
_AWAY = 0.5
_FIRST_PAUSE, _LONGEST_PAUSE = 60.0, 3600.0

#: Seconds that the end of a connection, or of the process, waits for what is still to be written.
FAREWELL = 1.0


class Trouble:
    """What keeps the journal from working: said once for each reason, and rarely tried again.

    Args:
        said: the reasons that were said, where several share them.
        effect: what comes of it, in words.
    """

    def __init__(
        self, said: set[str] | None = None, effect: str = "are not seen, nor cancelled"
    ) -> None:
        self._said = set() if said is None else said
        self._effect = effect
        self._pause = _FIRST_PAUSE
        self._until = 0.0

    @property
    def left(self) -> float:
        """Seconds until there is a point in another try."""
        return max(self._until - time.monotonic(), 0.0)

    def over(self) -> None:
        self._pause = _FIRST_PAUSE

    def came(self, error: BaseException) -> None:
        """Note an error; the connection's own is the session's to tell."""
        if isinstance(error, BrokerUnavailable):
            self._until = time.monotonic() + _AWAY
            return
        known = isinstance(error, AccessRefused | Unsupported)
        self.say(type(error).__name__, shown(error if known else repr(error), 300))
        self._until = time.monotonic() + self._pause
        self._pause = min(self._pause * 4, _LONGEST_PAUSE)

    def say(self, reason: str, text: str, effect: str = "") -> None:
        if reason not in self._said:
            self._said.add(reason)
            logger.warning(
                "the journal does not work (%s); jobs run as ever, but %s (said once)",
                text,
                effect or self._effect,
            )


class Recorder:
    """Writes events in the order in which they come, from a thread of its own.

    Whoever hands one over never waits. An entry that the broker has not accepted is written
    again: readers may see it twice.

    Args:
        backend: gives the connection that there is, which somebody else opens.
        said: see :class:`Trouble`.
        log: where to.
    """

    def __init__(
        self,
        backend: Callable[[], QueueBackend],
        said: set[str] | None = None,
        log: str = EVENTS,
    ) -> None:
        self._backend = backend
        self._log = log
        self._trouble = Trouble(said)
        self._aide = Aide(self._write, "synmanager-journal", self._linger)
        self._wrote_at = self._took = 0.0
        self._start_over()
        _recorders.add(self)

    def _start_over(self) -> None:
        self._generation = forks.generation()
        self._events: deque[Event] = deque()
        self._rung = False
        self.source = source(new_id()[:6])

    def put(self, event: Event) -> None:
        """Have an event written soon."""
        if self._generation != forks.generation():
            self._start_over()
        waiting = len(self._events)
        if waiting >= _MOST:
            if event.is_progress:
                return
            if waiting >= _UTMOST:
                self._events.popleft()
        self._events.append(event)
        if not self._rung:
            self._rung = True
            self._aide.ask()

    def mine(self) -> str:
        """The source; a fork has one of its own, and nothing of its parent's to write."""
        if self._generation != forks.generation():
            self._start_over()
        return self.source

    def flush(self, seconds: float) -> bool:
        """Write what there is now; False if that was not done in time, or cannot be."""
        until = time.monotonic() + seconds
        # What is on its way to the broker is no longer among the events, and not there yet.
        while self._generation == forks.generation() and (self._events or self._aide.is_busy):
            left = until - time.monotonic()
            if left <= 0 or not self._usable() or not self._aide.wait(left):
                return False
        return True

    def open(self) -> None:
        """Write again, after :meth:`close`."""
        self._aide.open()
        self._rung = False
        _recorders.add(self)

    def close(self) -> None:
        """End the thread. What is not written by now is not, until it is opened."""
        self._aide.close()
        _recorders.discard(self)

    def _linger(self) -> float:
        if time.monotonic() - self._wrote_at > _QUIET:
            return _LINGER
        return max(_BUSY_LINGER, min(self._took * _RESTS, _LONGEST_REST))

    def _usable(self) -> bool:
        try:
            return self._backend().is_open and not self._trouble.left
        except Exception:
            return False

    def _write(self) -> float | None:
        self._rung = False
        begun, left = time.monotonic(), len(self._events)
        while left > 0 and self._events:
            if self._trouble.left:
                return self._trouble.left
            batch = [self._events.popleft() for _ in range(min(left, len(self._events), _BATCH))]
            left -= len(batch)
            try:
                backend = self._backend()
                if not backend.is_open:
                    raise BrokerUnavailable("not connected")
                entries = list(together([event for event in batch if not event.is_withdrawn]))
                if entries:
                    backend.record(self._log, entries)
                self._wrote_at = time.monotonic()
                self._took = self._wrote_at - begun
            except Exception as error:
                self._trouble.came(error)
                left += len(batch)
                self._events.extendleft(reversed(batch))
                while len(self._events) > _UTMOST:
                    self._events.popleft()
            else:
                self._trouble.over()
        return None


def flush_all(seconds: float = FAREWELL) -> None:
    """Write what this process still has to say."""
    until = time.monotonic() + seconds
    for recorder in tuple(_recorders):
        recorder.flush(max(until - time.monotonic(), 0.0))


_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()
atexit.register(flush_all)

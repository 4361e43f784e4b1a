"""Telling somebody of the jobs that were given up, as the journal tells of them."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from synmanager.backends.base import Entry, QueueBackend
from synmanager.engine.outcomes import End, after_failure, after_return
from synmanager.engine.session import Session
from synmanager.errors import Undecodable
from synmanager.journal.events import (
    EVENTS,
    MALFORMED,
    PLACES,
    Event,
    attempt_of,
    moment,
    read_to,
    source,
    write,
)
from synmanager.journal.recorder import FAREWELL, Recorder, Trouble, flush_all
from synmanager.message import decode, new_id
from synmanager.text import shown

__all__ = ["Failure", "Failures"]

logger = logging.getLogger(__name__)

#: Seconds that one wait at the broker lasts, and entries of one reading.
_WAIT, _LIMIT = 30.0, 200

#: Seconds by which clocks may differ, where the end of the journal is looked for.
_BACK = 600.0

#: Readings that wait to be told, and events whose repetition is recognised.
_MOST, _REMEMBERED = 5, 10_000

#: Seconds after which a place that moves on, and nothing is told, is recorded anew: the journal
#: forgets what is old.
_REFRESH = 3600.0

#: Seconds for what this very process has not written yet, and for the thread to end.
_OWN, _LEAVE = 0.2, 5.0


@dataclass(frozen=True)
class Failure:
    """A job that was given up. It is a dead letter of its phase's queue.

    Attributes:
        id, phase, rank: the job's; ``phase`` is the name of its queue.
        attempt: the one that was its last.
        reason: in words, its first 2,000 characters.
        traceback: its last lines, 4,000 characters at most; "" if no exception was the reason.
        died_at, submitted_at, started_at: seconds since the epoch, by the clocks of its worker
            and its submitter; None if that is not known.
        worker: who gave it up: host, process and which of its connections.
        sweep: the sweep that it belongs to; None if to none.
        job: its parameters; None where they are longer than 4,000 characters (of a sweep's job,
            20,000), or no JSON object, or its worker has ``SYNMANAGER_JOURNAL_PARAMETERS=off``.
    """

    id: str
    phase: str
    rank: str
    attempt: int
    reason: str
    traceback: str
    died_at: float
    submitted_at: float | None
    started_at: float | None
    worker: str
    sweep: str | None
    job: dict[str, Any] | None


@dataclass(frozen=True)
class _Place:
    """Up to where was told.

    Attributes:
        position: in the log, or a time in seconds since the epoch.
        last: of the failures behind it, the event that was told last; "" for none.
    """

    position: str | float
    last: str = ""


@dataclass(frozen=True)
class _Reading:
    """What was read at once: its failures by their events, and the position of its last entry."""

    failures: dict[str, Failure]
    position: str


class Failures:
    """Follows the journal in a thread, and tells a callback in the thread that asks for it.

    Args:
        session: nobody else's, and not open.
        callback: called with each :class:`Failure`, in the order in which they were recorded.
        is_meant: whether failures of this queue are.
        name: under which its place in the journal is kept; None keeps none, and what happened
            before it is opened is not told.
    """

    def __init__(
        self,
        session: Session,
        callback: Callable[[Failure], object],
        is_meant: Callable[[str], bool],
        name: str | None,
    ) -> None:
        self._session = session
        self._callback = callback
        self._is_meant = is_meant
        self._name = name
        said: set[str] = set()
        self._trouble = Trouble(said, "failures are not told")
        self._notes = Recorder(lambda: session.backend, said, PLACES)
        self._start_over()

    def _start_over(self) -> None:
        self._place: _Place | None = None  # None before the first look
        self._after: str | float = 0.0  # up to where was read
        self._pending: deque[_Reading] = deque()
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._noted: _Place | None = None
        self._noted_at = 0.0
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_due(self) -> bool:
        """Whether there is something to tell."""
        return bool(self._pending)

    def open(self) -> None:
        """Begin to follow."""
        self._start_over()
        self._notes.open()
        self._thread = threading.Thread(
            target=self._follow, args=(self._closed,), name="synmanager-failures", daemon=True
        )
        self._thread.start()

    def tell(self, stopping: Callable[[], bool]) -> None:
        """Tell what was read.

        Args:
            stopping: whether the end was asked for; the rest is told next time.

        Raises:
            KeyboardInterrupt, SystemExit: what ends a loop that runs a job, see ``outcomes``.
        """
        while self._pending and not stopping():
            reading, place = self._pending[0], self._place
            assert place is not None
            events = list(reading.failures)
            # One that an earlier run was in the middle of.
            begin = events.index(place.last) + 1 if place.last in events else 0
            for event in events[begin:]:
                if stopping():
                    return
                self._call(reading.failures[event], stopping)
                self._place = _Place(place.position, event)
                self._note(self._place)
            self._place = _Place(reading.position)
            self._pending.popleft()
            self._note(self._place)

    def tell_all(self, stopping: Callable[[], bool]) -> None:
        """Read and tell what there is by now; without a thread, for who does not stay."""
        flush_all(_OWN)
        self._notes.open()
        try:
            while not stopping():
                self.tell(stopping)
                if not self._read(0.0, stopping):
                    break
            self.tell(stopping)
        except Exception as error:
            self._trouble.came(error)

    def begin(self) -> None:
        """Have a place in the journal from now on, if there is none.

        Raises:
            SynmanagerError: the broker does not let us.
        """
        try:
            self._session.open()
            if self._session.call(self._find) is None:
                self._record(self._session.call(_end))
        finally:
            self._session.close()

    def forget(self) -> None:
        """Have no place any more.

        Raises:
            as :meth:`begin`.
        """
        try:
            self._session.open()
            self._record(None)
        finally:
            self._session.close()

    def close(self) -> None:
        """Keep the place, and end; in bounded time."""
        self._closed.set()
        if self._place is not None and self._place != self._noted:
            self._note(self._place)
        self._notes.flush(FAREWELL)
        self._notes.close()
        self._session.close()
        thread = self._thread
        if thread is not None:
            thread.join(_LEAVE)
        self._start_over()

    def _follow(self, closed: threading.Event) -> None:
        while not closed.is_set():
            try:
                self._read(_WAIT, closed.is_set)
                self._trouble.over()
            except Exception as error:
                if not closed.is_set():
                    self._trouble.came(error)
                    closed.wait(self._trouble.left)
            while len(self._pending) > _MOST and not closed.wait(_OWN):
                pass

    def _read(self, wait: float, called_off: Callable[[], bool]) -> bool:
        """Read on; whether there was something."""

        def look(backend: QueueBackend) -> list[Entry]:
            if self._place is None:
                place = self._find(backend) or _end(backend)
                self._after, self._place = place.position, place
                self._note(place)
            return backend.replay(EVENTS, self._after, wait=wait, limit=_LIMIT)

        if not self._session.is_open:
            self._session.open(patient=True, called_off=called_off)
            if called_off():  # and closed, too early for this
                self._session.close()
                return False
        entries = self._session.call(look, endless=True, called_off=called_off)
        failures: dict[str, Failure] = {}

        def take(event: Event) -> None:
            failure = self._failure_of(event)
            if failure is not None:
                failures[_identity(event)] = failure

        for entry in entries:
            read_to(take, entry.data)
        if entries:
            self._after = entries[-1].position
            if failures or self._pending:
                self._pending.append(_Reading(failures, entries[-1].position))
        if not (self._pending or failures):
            self._place = _Place(self._after)
            if time.monotonic() - self._noted_at > _REFRESH:
                self._note(self._place)
        return bool(entries)

    def _failure_of(self, event: Event) -> Failure | None:
        if event.type != "job.died":
            return None
        data, identity = event.data, _identity(event)
        try:
            if identity in self._seen or not self._is_meant(str(data["phase"])):
                return None
            failure = Failure(
                str(data["id"]),
                str(data["phase"]),
                str(data["rank"]),
                attempt_of(data),
                str(data.get("reason", "")),
                str(data.get("traceback", "")),
                event.time,
                moment(data.get("submitted_at")),
                moment(data.get("started_at")),
                event.source,
                data["sweep"] if isinstance(data.get("sweep"), str) else None,
                _parameters(data.get("job")),
            )
        except MALFORMED:
            return None
        self._seen[identity] = None  # an event may be recorded twice
        if len(self._seen) > _REMEMBERED:
            self._seen.popitem(last=False)
        return failure

    def _call(self, failure: Failure, stopping: Callable[[], bool]) -> None:
        try:
            outcome = after_return(self._callback(failure))
        except BaseException as error:
            outcome = after_failure(error, stopping=stopping(), ours=True)
            if outcome.end is End.END:
                raise
        if outcome.end is not End.KEEP:
            logger.error(
                "on_failure has failed for job %s of %s, and is not called for it again: %s%s",
                shown(failure.id),
                shown(failure.phase),
                shown(outcome.reason, 500),
                "".join(f"\n  {shown(line, 300)}" for line in outcome.traceback.splitlines()),
            )

    def _find(self, backend: QueueBackend) -> _Place | None:
        """The place that was kept."""
        found: _Place | None = None
        position: str | float = 0.0

        def take(event: Event) -> None:
            nonlocal found
            if event.type == "archive.place" and event.subject == self._name:
                found = _place(event.data)

        while self._name is not None and (
            entries := backend.replay(PLACES, position, limit=_LIMIT)
        ):
            position = entries[-1].position
            for entry in entries:
                read_to(take, entry.data)
        return found

    def _note(self, place: _Place) -> None:
        """Have a place recorded soon."""
        self._noted, self._noted_at = place, time.monotonic()
        if self._name is not None:
            self._notes.put(self._event(self._notes.mine(), place))

    def _record(self, place: _Place | None) -> None:
        entry = write(self._event(source(new_id()[:6]), place))
        self._session.call(lambda backend: backend.record(PLACES, [entry]))

    def _event(self, source: str, place: _Place | None) -> Event:
        assert self._name is not None
        data = {} if place is None else {"position": place.position, "last": place.last}
        return Event("archive.place", source, time.time(), self._name, data)


def _place(data: Mapping[str, Any]) -> _Place | None:
    position = data.get("position")
    if not isinstance(position, str):
        position = moment(position)
    if position is None:
        return None
    return _Place(position, str(data.get("last", "")))


def _identity(event: Event) -> str:
    return f"{event.source} {event.whole.get('id')}"


def _end(backend: QueueBackend) -> _Place:
    """From where on all is still to come."""
    position: str | float = time.time() - _BACK
    while entries := backend.replay(EVENTS, position, limit=_LIMIT):
        position = entries[-1].position
    return _Place(position)


def _parameters(text: Any) -> dict[str, Any] | None:
    if not isinstance(text, str) or not text:
        return None
    try:
        return decode(text.encode("utf-8", "surrogatepass"))
    except Undecodable:
        return None

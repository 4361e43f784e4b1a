"""One thread that follows the journal for all browsers."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

from synmanager.backends.base import Counts
from synmanager.backends.registry import create_backend
from synmanager.checks import Finding, Seen, count, findings, look
from synmanager.engine.session import Session
from synmanager.errors import SynmanagerError
from synmanager.jobs import Jobs
from synmanager.journal.events import MALFORMED, Event, source
from synmanager.journal.fold import Fold
from synmanager.journal.reader import PAGE, Reader
from synmanager.journal.tally import Tally
from synmanager.phases import PHASES, with_phases
from synmanager.settings import Settings
from synmanager.text import shown
from synmanager.web.curves import Curves
from synmanager.web.sweeps import Sweeps
from synmanager.web.timelines import Timelines

__all__ = ["Observer"]

logger = logging.getLogger(__name__)

#: Seconds that one wait for the journal lasts, and between the counts of two queues while nothing
#: happens: on RabbitMQ, where a count is several requests, these are less than two a second.
_WAIT, _BETWEEN_COUNTS = 3.0, 3.0

#: Seconds between them while something does, and between two looks for queues that are new.
_BETWEEN_COUNTS_WHEN_BUSY, _BETWEEN_NAMES = 0.5, 300.0

#: Seconds that a call for a page may take while the broker is away, and a pause after a failure.
_PATIENCE, _PAUSE = 5.0, 1.0

#: Seconds between two looks at the marks, besides those after an event that tells of one.
_BETWEEN_MARKS = 60.0

#: For how long what the broker says of itself is not asked again, and the longest job in seconds.
_FACTS_AGE, _LONGEST_JOB = 60.0, 24 * 3600.0

#: Actions that are remembered.
_MOST_ACTIONS = 200

_WAITING = ("queued", "delayed", "retrying")


class _Followed(Jobs):
    """Jobs whose events somebody else reads."""

    def __init__(self, session: Session, source: str) -> None:
        self._begin(session, source)

    def _catch_up(self) -> None:
        pass

    def _read_marks(self) -> None:
        pass

    def look_at_marks(self) -> bool:
        """Read on which phases are paused: whether they are others."""
        before = self.paused()
        self._session.call(self._marks.read)
        return before != self.paused()

    @property
    def fold(self) -> Fold:
        return self._fold


class Observer:
    """What the journal tells, folded once for all who look.

    Read what it keeps with :meth:`looking`, since a thread goes on with it.

    Args:
        settings: which broker.

    Attributes:
        session: to ask the broker on.
        jobs: the journal's; asking it asks no broker.
        version: grows with all that is new.
        counts: of each queue; None for one that is not there.
        is_caught_up: it has read all that there was when it began.
        trouble: why nothing is heard from the broker, if so.
        read: events so far.
        deaths: how many of them were of a job's becoming a dead letter.
        tally: of all of them, for Prometheus.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.source = source("dashboard")
        self.session = Session(create_backend(settings.address), _PATIENCE)
        self.jobs = _Followed(self.session, self.source)
        self.tally = Tally(self.jobs.fold, tuple(with_phases(None)))
        self.timelines, self.sweeps, self.curves = Timelines(), Sweeps(), Curves()
        self.actions: deque[Event] = deque(maxlen=_MOST_ACTIONS)
        self.counts: OrderedDict[str, Counts | None] = OrderedDict()
        self.counted_at: dict[str, float] = {}
        self.version = self.read = self.deaths = 0
        self.is_caught_up = False
        self.trouble = ""
        self._reader = Reader(self.session, self._take)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="synmanager-observer", daemon=True)
        self._names: list[str] = with_phases(None)
        self._names_due = self._count_due = self._counted_last = self._marks_due = 0.0
        self._read_before = 0
        self._examined: tuple[float, Seen, list[Finding]] | None = None

    def start(self) -> None:
        """Connect and follow.

        Raises:
            BrokerUnavailable: nobody answers.
            AccessRefused: wrong credentials, virtual host or certificate.
        """
        try:
            self.session.open()
        except BaseException:
            self.session.close()
            raise
        self._thread.start()

    def end_streams(self) -> None:
        """Whoever waits for news stops waiting: it is coming to an end."""
        self._stopping.set()

    def stop(self) -> None:
        """End it, and disconnect."""
        self._stopping.set()
        self.session.close()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def hears(self) -> bool:
        """Something was ever recorded, and all that there was has been read."""
        return self.is_caught_up and self.read > 0

    @property
    def is_up(self) -> bool:
        """The broker answers, as far as is known."""
        return not self.trouble

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Nothing changes meanwhile; not for long, and not around a call to the broker."""
        with self._lock:
            yield

    def examine(self) -> tuple[Seen, list[Finding]]:
        """What the broker says of itself, and what would hurt; asked once a minute at most.

        Raises:
            SynmanagerError: it does not say.
        """
        known = self._examined
        if known is None or time.monotonic() - known[0] > _FACTS_AGE:
            seen = self.session.call(lambda broker: look(broker, _LONGEST_JOB))
            known = self._examined = (time.monotonic(), seen, findings(seen))
        return known[1], known[2]

    def count_soon(self) -> None:
        """Something was changed: count all again."""
        self.counted_at.clear()

    def _run(self) -> None:
        while not self.is_stopping:
            try:
                self._follow()
            except Exception as error:
                if self.is_stopping:
                    return
                if not isinstance(error, SynmanagerError):
                    logger.exception("the dashboard's observer stumbled; it goes on")
                self.trouble = shown(error, 500)
                self.version += 1
                self._stopping.wait(_PAUSE)

    def _follow(self) -> None:
        """Read what there is; if nothing comes, count a queue now and then."""
        began = time.monotonic()
        before = self.read
        while self._reader.wait(0.0 if not self.is_caught_up else _WAIT):
            self._count()
            if self.is_stopping:
                return
            # Under load, a rest lets the rest of the process work, and more comes at once; but not
            # while a page comes full: as much and more waits behind it already.
            if self.is_caught_up and self.read - before < PAGE:
                self._stopping.wait(max(0.0, 0.25 - (time.monotonic() - began)))
            began, before = time.monotonic(), self.read
        if self.trouble or not self.is_caught_up:
            with self._lock:
                if not self.is_caught_up:
                    self.tally.begin(*(phase.queue for phase in PHASES.values()))
                self.trouble, self.is_caught_up = "", True
                self.version += 1
        self._count()

    def _count(self) -> None:
        """Count what was never counted, or else one queue, if it is time; and look at marks."""
        now = time.monotonic()
        if now >= self._marks_due:
            self._marks_due = now + _BETWEEN_MARKS
            self.version += self.jobs.look_at_marks()
        if now >= self._names_due:
            self._names_due = now + _BETWEEN_NAMES
            self._names = with_phases(self.session.call(lambda broker: broker.facts().queues))
        names = [name for name in self._names if name not in self.counted_at]
        is_busy, self._read_before = self.read != self._read_before, self.read
        if is_busy:
            self._count_due = min(self._count_due, self._counted_last + _BETWEEN_COUNTS_WHEN_BUSY)
        if not names and now >= self._count_due:
            names = [min(self._names, key=self.counted_at.__getitem__)]
        for name in names:
            self._counted_last, self._count_due = now, now + _BETWEEN_COUNTS
            self.counted_at[name] = now
            self._counted(name, self.session.call(partial(count, queue=name)))

    def _counted(self, name: str, found: Counts | None) -> None:
        with self._lock:
            if found != self.counts.get(name):
                self.version += 1
            self.counts[name] = found
            if found is not None and self.is_caught_up:
                self.curves.counted(name, found.ready + (found.delayed or 0), time.time())

    def _take(self, event: Event) -> None:
        fold, area = self.jobs.fold, event.type.partition(".")[0]
        with self._lock:
            self.read += 1
            self.version += 1
            if area == "action":
                self.actions.append(event)
                if event.type in ("action.pause", "action.resume"):
                    self._marks_due = 0.0
            elif area != "job":
                self.tally.apply(event)
                with suppress(*MALFORMED):
                    if area == "sweep":
                        self.sweeps.heard(event)
                return
            keys = fold.touched(event) if area == "action" else _keys_of(event)
            before = [fold.jobs.get(key) for key in keys]
            waited = [job is not None and job.state in _WAITING for job in before]
            self.tally.apply(event)
            self.deaths += event.type == "job.died"
            if area == "action":
                self.timelines.note_action(event, keys)
            elif event.type != "job.submitted":
                self.timelines.note(event)
            for key, did_wait in zip(keys, waited, strict=True):
                job = fold.jobs.get(key)
                waits = job is not None and job.state in _WAITING
                if waits != did_wait:
                    at = min(event.time, time.time())  # a writer's clock may be ahead
                    self.curves.moved(key[0], 1 if waits else -1, at)
                if job is not None and job.sweep is not None:
                    with suppress(*MALFORMED):
                        self.sweeps.changed(job, event)


def _keys_of(event: Event) -> list[tuple[str, str]]:
    """Which jobs an event is about."""
    data = event.data
    phase = str(data.get("phase"))
    ids = data.get("ids")
    if isinstance(ids, list):
        return list(dict.fromkeys((phase, str(each)) for each in ids))
    return [(phase, str(data.get("id")))]

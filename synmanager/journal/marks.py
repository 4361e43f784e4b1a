"""What is asked of workers: marks in a small log of their own, which they read between jobs."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from math import inf

from synmanager.backends.base import QueueBackend
from synmanager.errors import BrokerUnavailable
from synmanager.journal.aide import Aide
from synmanager.journal.events import MALFORMED, MARKS, SWEEP, Event, micro, moment, read_to, write
from synmanager.journal.recorder import Trouble
from synmanager.message import Message
from synmanager.phases import WORK_PHASES
from synmanager.text import shown
from synmanager.words import duration

__all__ = [
    "PATIENCE",
    "SETTLED",
    "Looker",
    "Marks",
    "Pause",
    "cancel_mark",
    "in_words",
    "pause_mark",
    "resume_mark",
    "saved_mark",
]

#: Seconds that a job is delayed at most, by a journal that does not answer.
PATIENCE = 0.05

#: Seconds for which what a look has shown may stand, so that not every short job costs one; and
#: for which whoever asks for something waits once it is recorded. From then on every job that is
#: taken is decided by a look that was begun after that.
_FRESH = 0.3
SETTLED = 0.35

#: Seconds that a loop which begins waits at most for its first look: it may be a long one.
_FIRST = 2.0

#: Seconds between two looks of a loop that one of its phases is paused for: it waits for the end.
_WAITS = 2.0

#: After which part of the journal's age a pause is repeated by who obeys it, lest it be forgotten,
#: and seconds after which it is at the latest.
_OF_AGE, _REPEATED = 1 / 4, 3600.0

#: Looks in a row that took longer, after which no job waits for one for a while.
_TOO_SLOW = 3
_SLOW_PAUSE = 60.0

#: Marks that are kept of each kind; the oldest are forgotten first.
_MOST = 200_000


def cancel_mark(
    source: str, until: float, *, ids: list[str] | None = None, sweep: str | None = None
) -> Event:
    """Nobody is to run these jobs, or go on with them.

    Args:
        until: for what was submitted at this time or before, seconds since the epoch: an id may
            be used again.
    """
    data: dict[str, object] = {"until": until}
    if ids is not None:
        data["ids"] = ids
    if sweep is not None:
        data["sweep"] = sweep
    return Event("mark.cancel", source, time.time(), sweep or "", data)


@dataclass(frozen=True)
class Pause:
    """Nobody takes jobs of a phase.

    Attributes:
        phase: its name.
        since: when that was asked, seconds since the epoch.
        who: who has asked.
    """

    phase: str
    since: float
    who: str


def in_words(pause: Pause) -> str:
    """That a phase is paused, since when and by whom."""
    lasts = duration(time.time() - pause.since)
    return f"{pause.phase} has been paused for {lasts}, by {shown(pause.who, 80)}"


def pause_mark(source: str, pause: Pause) -> Event:
    """Nobody is to take jobs of a phase; with the same ``since`` it is the same pause."""
    data = {"phase": pause.phase, "since": pause.since, "who": pause.who}
    return Event("mark.pause", source, time.time(), pause.phase, data)


def resume_mark(source: str, phase: str, until: float) -> Event:
    """The phase's pauses are over that began at this time or before, however often repeated."""
    data = {"phase": phase, "until": until}
    return Event("mark.resume", source, time.time(), phase, data)


def saved_mark(source: str, key: str) -> Event:
    """There are checkpoints of this submission, recorded from now on."""
    return Event("mark.saved", source, time.time(), key, {"key": key})


class Marks:
    """The marks that there are, as far as they were read."""

    def __init__(self, age: float) -> None:
        self._age = age
        self._position: str | float = time.time() - age
        self._pauses: dict[str, tuple[Pause, float]] = {}  # and when it was recorded last
        self._resumed: dict[str, float] = {}
        self._cancelled: OrderedDict[str, int] = OrderedDict()
        self._sweeps: OrderedDict[str, int] = OrderedDict()
        self._saved: OrderedDict[str, float] = OrderedDict()

    def read(self, backend: QueueBackend) -> None:
        """Read on. Two threads may: reading twice does no harm."""
        while True:
            entries = backend.replay(MARKS, self._position)
            for entry in entries:
                read_to(partial(self._note, recorded_at=entry.recorded_at), entry.data)
            if not entries:
                return
            self._position = entries[-1].position

    @property
    def has_any(self) -> bool:
        """Whether there is anything in the log."""
        return isinstance(self._position, str)

    def has_cancelled(self, message: Message) -> bool:
        """Whether somebody asked that this submission is not run."""
        if not self._cancelled and not self._sweeps:
            return False
        at = micro(message.submitted_at)
        sweep = message.headers.get(SWEEP, "")
        return at <= max(self._cancelled.get(message.id, -1), self._sweeps.get(sweep, -1))

    def pause_of(self, phase: str) -> Pause | None:
        """The pause that a phase is in."""
        found = self._pauses.get(phase)
        if found is None or found[1] < time.time() - self._age:  # nobody has repeated it
            return None
        return found[0]

    def paused(self, phases: Iterable[str] = WORK_PHASES) -> tuple[str, ...]:
        """Which of these phases are paused."""
        if not self._pauses:
            return ()
        return tuple(phase for phase in phases if self.pause_of(phase) is not None)

    def resumed_until(self, phase: str) -> float:
        """The last moment at which a pause that began is over; 0 for none."""
        return self._resumed.get(phase, 0.0)

    def to_be_repeated(self) -> list[Pause]:
        """The pauses that the journal may forget otherwise."""
        before = time.time() - min(self._age * _OF_AGE, _REPEATED)
        return [pause for pause, recorded_at in self._pauses.values() if recorded_at < before]

    def saved_since(self, key: str) -> float | None:
        """From when on there are checkpoints of a submission; None if there are none."""
        return self._saved.get(key)

    def _note(self, event: Event, recorded_at: float) -> None:
        data = event.data
        try:
            if event.type == "mark.saved":
                self._saved.setdefault(data["key"], recorded_at)
                _bound(self._saved)
            elif event.type == "mark.cancel":
                until = micro(_time(data["until"]))
                for key in data.get("ids", ()):
                    self._cancelled[key] = max(until, self._cancelled.get(key, until))
                if "sweep" in data:
                    self._sweeps[data["sweep"]] = max(until, self._sweeps.get(data["sweep"], until))
                _bound(self._cancelled)
                _bound(self._sweeps)
            elif event.type in ("mark.pause", "mark.resume") and data["phase"] in WORK_PHASES:
                self._note_pause(event, data["phase"], recorded_at)
        except MALFORMED:
            return

    def _note_pause(self, event: Event, phase: str, recorded_at: float) -> None:
        data = event.data
        if event.type == "mark.resume":
            self._resumed[phase] = max(_time(data["until"]), self.resumed_until(phase))
        elif self.resumed_until(phase) < _time(data["since"]):
            pause = Pause(phase, _time(data["since"]), str(data["who"]))
            known = self._pauses.get(phase)
            if known is None or known[0].since <= pause.since:
                self._pauses[phase] = (pause, recorded_at)
        known = self._pauses.get(phase)
        if known is not None and known[0].since <= self.resumed_until(phase):
            del self._pauses[phase]


def _time(value: object) -> float:
    found = moment(value)
    if found is None:
        raise ValueError(f"{shown(value, 30)} is no time")
    return found


def _bound(kept: OrderedDict[str, int] | OrderedDict[str, float]) -> None:
    while len(kept) > _MOST:
        kept.popitem(last=False)


class Looker:
    """Reads the marks from beside the jobs, which wait for it for a moment at most.

    Args:
        backend: gives the connection that there is.
        age: seconds; older marks are of no interest.
        said: see ``Trouble``.
    """

    def __init__(
        self, backend: Callable[[], QueueBackend], age: float, said: set[str] | None = None
    ) -> None:
        self.marks = Marks(age)
        self.phases: Collection[str] = ()  # whose pauses somebody waits for
        self._backend = backend
        self._trouble = Trouble(said)
        self._aide = Aide(self._read, "synmanager-marks")
        self._slow = 0
        self._hurry_until = 0.0
        self._looked_at = -inf  # when the last look that came to an end was begun

    def ask(self) -> None:
        """Have a look soon."""
        if not self._trouble.left and not self._aide.is_busy:
            self._aide.ask()

    def look_at_first(self) -> None:
        """Have a look before the first job is taken."""
        if not self._trouble.left and time.monotonic() - self._looked_at >= _FRESH:
            self._aide.wait(_FIRST)

    def look(self) -> None:
        """Have a look, unless there was one just now; wait for :data:`PATIENCE` at most."""
        now = time.monotonic()
        age = now - self._looked_at
        if age < _FRESH:
            if age > _FRESH / 2:  # so that who runs one job after the other never waits
                self.ask()
            return
        if self._trouble.left or (self._slow and self._aide.is_busy):
            return  # the last one has not come back yet
        if now < self._hurry_until:
            self._aide.ask()
        elif self._aide.wait(PATIENCE):
            self._slow = 0
        else:
            self._slow += 1
            if self._slow >= _TOO_SLOW:
                self._slow = 1
                self._hurry_until = time.monotonic() + _SLOW_PAUSE
                self._trouble.say(
                    "slow",
                    f"it takes longer than {PATIENCE * 1000:g} ms to look",
                    "one that is cancelled may begin, and end at its next check()",
                )

    def open(self) -> None:
        """Look again, after :meth:`close`."""
        self._aide.open()

    def close(self) -> None:
        self._aide.close()

    def _read(self) -> float | None:
        try:
            backend = self._backend()
            if not backend.is_open:
                raise BrokerUnavailable("not connected")
            begun = time.monotonic()
            self.marks.read(backend)
            if not self.marks.has_any:
                # Looking on from an entry is what all brokers do best: it costs one trip.
                backend.record(MARKS, [write(Event("mark.none", "", time.time(), "", {}))])
                self.marks.read(backend)
            again = self.marks.to_be_repeated()
            if again:
                backend.record(MARKS, [write(pause_mark("", pause)) for pause in again])
            self._looked_at = begun
        except Exception as error:
            self._trouble.came(error)
        else:
            self._trouble.over()
        if not self.marks.paused(self.phases):
            return None
        return max(_WAITS, self._trouble.left)

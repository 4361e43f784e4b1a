"""How many, how often and how long: what is monitored, folded from the same events as the states.

The states of jobs are the fold's; this notes how they change. Asking costs as much as there are
phases, running jobs and workers, however many jobs wait.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from synmanager.journal.events import MALFORMED, Event, attempt_of, micro, moment, number
from synmanager.journal.fold import ENDED, Fold, State

__all__ = ["BOUNDS", "OTHER", "OUTCOMES", "RANKS", "Durations", "Tally"]

#: Seconds: the upper bounds of what durations are sorted into. Jobs last from moments to days.
BOUNDS = (
    0.1, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0, 259_200.0,
)  # fmt: skip

#: What a run comes to, and what a wait does.
OUTCOMES = ("succeeded", "dead", "cancelled", "retried", "given_back")
_AFTER_WAIT = ("started", "cancelled", "dead")

RANKS = ("high", "normal", "low")

#: Entries of a heap that may be of no use any more.
_SLACK = 10_000

#: Whatever has a name that nobody here has given: anybody may write into a log.
OTHER = "other"

#: What an event of a run's end says of it.
_ENDS = {
    "succeeded": "succeeded",
    "died": "dead",
    "cancelled": "cancelled",
    "retried": "retried",
    "given_back": "given_back",
}

_Key = tuple[str, str]


@dataclass
class Durations:
    """Durations: how many are in each bucket, of which the last has no bound, and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds


class _Place(NamedTuple):
    """Where a job waits.

    Attributes:
        since: seconds since the epoch; from when on it is ready, if that is still to come.
    """

    phase: str
    rank: str
    is_ready: bool
    since: float


class _Before(NamedTuple):
    """What of a job an event is about to change."""

    state: str
    attempt: int
    worker: str | None
    renewed_at: float | None
    submitted_at: float | None


class Tally:
    """What is counted, from :meth:`begin` on, and what is so now.

    What was counted is counted from then on and not from the journal's beginning: that moves, and
    a sum that becomes smaller is a restart to whoever watches it.

    Attributes:
        fold: the states, which it keeps up.
        phases: the names that are told apart; all others are ``OTHER``.
        events: how many were heard, since whenever.
        heard_at: the time of the latest, seconds since the epoch; 0 for none.
        submitted, retried, given_back, lost, late: jobs, or attempts, by phase: ``lost`` those that
            went to another worker while one had them, ``late`` renewals after more than half a
            lease.
        ended: by phase and ``succeeded``, ``dead`` or ``cancelled``.
        waited: by phase and what ended the wait: ``started``, ``cancelled`` or ``dead``.
        ran: by phase and one of ``OUTCOMES``.
    """

    def __init__(self, fold: Fold, phases: tuple[str, ...] = ()) -> None:
        self.fold = fold
        self.phases = frozenset(phases)
        self.events = 0
        self.heard_at = 0.0
        self._places: dict[_Key, _Place] = {}
        self._ready: Counter[tuple[str, str]] = Counter()
        self._later: Counter[str] = Counter()
        self._due: list[tuple[float, _Key]] = []
        self._oldest: defaultdict[str, list[tuple[float, _Key]]] = defaultdict(list)
        self._running: set[_Key] = set()
        self._start_over()

    def _start_over(self) -> None:
        self.submitted: Counter[str] = Counter()
        self.retried: Counter[str] = Counter()
        self.given_back: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.late: Counter[str] = Counter()
        self.ended: Counter[_Key] = Counter()
        self.waited: defaultdict[_Key, Durations] = defaultdict(Durations)
        self.ran: defaultdict[_Key, Durations] = defaultdict(Durations)

    def begin(self, *phases: str) -> None:
        """Count from here on; for these phases there is a zero from the first."""
        self._start_over()
        for phase in phases:
            for counter in (self.submitted, self.retried, self.given_back, self.lost, self.late):
                counter[phase] = 0
            for outcome in OUTCOMES:
                self.ran[phase, outcome] = Durations()
                if outcome in ("succeeded", "dead", "cancelled"):
                    self.ended[phase, outcome] = 0
            for outcome in _AFTER_WAIT:
                self.waited[phase, outcome] = Durations()

    def apply(self, event: Event) -> None:
        """Take an event in, and have the fold do so."""
        self.events += 1
        self.heard_at = max(self.heard_at, event.time)
        area, _, kind = event.type.partition(".")
        try:
            keys = list(_keys(event)) if area == "job" else []
            if area == "action":
                keys = self.fold.touched(event)
        except MALFORMED:
            keys = []
        before = [_look(self.fold.jobs.get(key)) for key in keys]
        self.fold.apply(event)
        for key, known in zip(keys, before, strict=True):
            job = self.fold.jobs.get(key)
            try:
                if job is not None and area == "job":
                    self._count(event, kind, key, known, job)
                elif job is not None and job.state == "cancelled":
                    self.ended[self._phase(key[0]), "cancelled"] += 1
            except MALFORMED:
                pass
            self._move(key, job, event)

    # What is so now

    def ready(self, now: float) -> dict[tuple[str, str], int]:
        """Jobs that could be taken, by phase and rank."""
        self._settle(now)
        return {each: number for each, number in self._ready.items() if number}

    def delayed(self, now: float) -> dict[str, int]:
        """Jobs that wait until a time, by phase."""
        self._settle(now)
        return {phase: number for phase, number in self._later.items() if number}

    def oldest(self, now: float) -> dict[str, float]:
        """For how long the job has been ready, in seconds, that has been for longest; by phase."""
        self._settle(now)
        found = {}
        for phase, waiting in self._oldest.items():
            while waiting and not self._is_at(waiting[0][1], phase, waiting[0][0]):
                heappop(waiting)
            if waiting:
                found[phase] = max(now - waiting[0][0], 0.0)
        return found

    def running(self) -> Counter[str]:
        """Jobs that run, by phase."""
        return Counter(self._phase(phase) for phase, _ in self._running)

    def silence(self, now: float) -> dict[str, float]:
        """The longest time, in seconds, since a job that runs gave a sign of life; by phase."""
        found: dict[str, float] = {}
        for key in self._running:
            job = self.fold.jobs.get(key)
            heard_at = None if job is None else job.renewed_at
            if heard_at is not None:
                phase = self._phase(key[0])
                found[phase] = max(found.get(phase, 0.0), now - heard_at)
        return found

    def workers(self) -> Counter[str]:
        """Workers that have not left, by state."""
        states = (worker.state for worker in self.fold.workers.values())
        return Counter(state for state in states if state != "gone")

    # What changes

    def _count(
        self, event: Event, kind: str, key: _Key, before: _Before | None, job: State
    ) -> None:
        phase, data = self._phase(key[0]), event.data
        if kind == "submitted":
            if not data.get("repeats") or before is None:
                self.submitted[phase] += 1
            if job.ended and (before is None or before.submitted_at != job.submitted_at):
                self.ended[phase, job.state] += 1  # it was removed, which was told before
            return
        if before is not None and micro(before.submitted_at) != micro(job.submitted_at):
            before = None  # another job of that name
        is_step = kind in _ENDS or kind == "started"
        if before is not None and is_step and before[2:4] == (event.source, event.time):
            return  # it was recorded twice
        if kind == "renewed" and number(data.get("late")) is not None:
            self.late[phase] += 1
        if kind == "deleted":
            attempt, began = job.attempt, None
        else:
            attempt = attempt_of(data)
            if before is not None and before.state not in ENDED and attempt < before.attempt:
                return
            began = event.time if kind == "started" else moment(data.get("started_at"))
        if before is not None and before.state == "running":
            if is_step and (attempt > before.attempt or event.source != before.worker):
                self.lost[phase] += max(1, attempt - before.attempt)
        elif before is not None and before.state in ENDED:
            pass  # it was redriven, and nobody says when
        elif is_step or kind == "deleted":
            self._waits_no_longer(phase, key, kind, began, event, attempt)
        outcome = "cancelled" if kind == "deleted" else _ENDS.get(kind)
        if outcome is None:
            return
        if began is not None:
            self.ran[phase, outcome].add(max(event.time - began, 0.0))
        if outcome == "retried":
            self.retried[phase] += 1
        elif outcome == "given_back":
            self.given_back[phase] += 1
        else:
            self.ended[phase, outcome] += 1

    def _waits_no_longer(
        self, phase: str, key: _Key, kind: str, began: float | None, event: Event, attempt: int
    ) -> None:
        place = self._places.get(key)
        if place is not None:
            since: float | None = place.since
        elif attempt <= 1:  # that it was submitted is told later, or no longer
            since = moment(event.data.get("submitted_at"))
        else:
            since = None
        if since is None:
            return
        outcome = "dead" if kind == "died" else "cancelled"
        if began is not None:
            outcome = "started"
        end = event.time if began is None else began
        self.waited[phase, outcome].add(max(end - since, 0.0))

    def _move(self, key: _Key, job: State | None, event: Event) -> None:
        """Note where a job is after an event."""
        self._running.discard(key)
        old = self._places.get(key)
        if job is None or job.ended or job.state == "running":
            if old is not None:
                self._leave(key, old)
            if job is not None and job.state == "running":
                self._running.add(key)
            return
        rank = job.rank if job.rank in RANKS else OTHER
        phase = self._phase(key[0])
        if job.state in ("delayed", "retrying") and job.due_at is not None:
            place = _Place(phase, rank, False, job.due_at)
        elif old is not None and old.is_ready and old.rank == rank:
            place = old
        else:
            begun = job.submitted_at if event.type == "job.submitted" else event.time
            place = _Place(phase, rank, True, event.time if begun is None else begun)
        if place != old:
            if old is not None:
                self._leave(key, old)
            self._enter(key, place)

    def _enter(self, key: _Key, place: _Place) -> None:
        self._places[key] = place
        if place.is_ready:
            self._ready[place.phase, place.rank] += 1
            waiting = self._oldest[place.phase]
            heappush(waiting, (place.since, key))
            if len(waiting) > 2 * len(self._places) + _SLACK:  # most have left from further behind
                waiting[:] = [
                    each for each in waiting if self._is_at(each[1], place.phase, each[0])
                ]
                heapify(waiting)
        else:
            self._later[place.phase] += 1
            heappush(self._due, (place.since, key))

    def _leave(self, key: _Key, place: _Place) -> None:
        del self._places[key]
        if place.is_ready:
            self._ready[place.phase, place.rank] -= 1
        else:
            self._later[place.phase] -= 1

    def _settle(self, now: float) -> None:
        """What is due is ready."""
        while self._due and self._due[0][0] <= now:
            since, key = heappop(self._due)
            place = self._places.get(key)
            if place is not None and not place.is_ready and place.since == since:
                self._leave(key, place)
                self._enter(key, place._replace(is_ready=True))

    def _is_at(self, key: _Key, phase: str, since: float) -> bool:
        place = self._places.get(key)
        return place is not None and (place.phase, place.is_ready, place.since) == (
            phase, True, since,
        )  # fmt: skip

    def _phase(self, name: str) -> str:
        return name if name in self.phases else OTHER


def _keys(event: Event) -> Iterator[_Key]:
    """Which jobs an event is about."""
    data = event.data
    phase = str(data["phase"])
    ids = data["ids"] if event.type == "job.submitted" else (data["id"],)
    for job_id in dict.fromkeys(map(str, ids)):
        yield phase, job_id


def _look(job: State | None) -> _Before | None:
    if job is None:
        return None
    return _Before(job.state, job.attempt, job.worker, job.renewed_at, job.submitted_at)

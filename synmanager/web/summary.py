"""All jobs at a glance: counted in one go, as often as that is affordable."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from heapq import nlargest, nsmallest

from synmanager.journal.fold import State
from synmanager.message import Rank
from synmanager.web.observer import Observer

__all__ = ["MOST", "Lane", "Summaries", "Summary", "ahead_of"]

#: Jobs of a list: more is nothing that anybody reads.
MOST = 100

#: A look over all jobs takes this part of the time at most.
_SHARE = 0.1

#: Seconds for which a look is good, even while much happens.
_GOOD = 0.4


@dataclass
class Lane:
    """What waits in a phase.

    Attributes:
        ranks: how many are due, by rank.
        later: how many are delayed, or wait for their next attempt.
        oldest: when the oldest that is due was submitted.
        first: those that are next, in the order in which they run.
        soon: of those that are not due, the first.
    """

    ranks: Counter[str] = field(default_factory=Counter)
    later: int = 0
    oldest: float | None = None
    first: list[State] = field(default_factory=list)
    soon: list[State] = field(default_factory=list)


@dataclass
class Summary:
    """All jobs at a moment.

    Attributes:
        at: seconds since the epoch.
        states: how many are in which state.
        running: the first of them, the longest first.
        ended: those that ended last, the last first.
        lanes: what waits, by phase.
    """

    at: float
    states: Counter[str] = field(default_factory=Counter)
    running: list[State] = field(default_factory=list)
    ended: list[State] = field(default_factory=list)
    lanes: dict[str, Lane] = field(default_factory=dict)


class Summaries:
    """The newest summary of what an observer keeps."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._lock = threading.Lock()
        self._known: Summary | None = None
        self._version = -1
        self._good_until = 0.0

    def newest(self) -> Summary:
        """One that is hardly older than a moment."""
        with self._lock:
            return self._newest(time.monotonic())

    def _newest(self, now: float) -> Summary:
        known = self._known
        if known is not None and (
            now < self._good_until
            or (self._version == self._observer.version and time.time() - known.at < 5.0)
        ):
            return known
        self._version = self._observer.version
        with self._observer.looking():
            known = self._known = _made(self._observer.jobs.fold.jobs.values(), time.time())
        end = time.monotonic()
        self._good_until = end + max(_GOOD, (end - now) / _SHARE)
        return known


def ahead_of(observer: Observer, job: State) -> int:
    """How many jobs of its phase run before one that is queued."""
    mine, now = _turn(job), time.time()
    ahead, is_before = 0, True
    with observer.looking():
        for other in observer.jobs.fold.jobs.values():
            if other.phase == job.phase and other.id == job.id:
                is_before = False  # of those that were submitted at once, the order tells
            elif other.phase == job.phase and _state(other, now) == "queued":
                turn = _turn(other)
                ahead += turn < mine or (is_before and turn == mine)
    return ahead


def _made(jobs: Iterable[State], now: float) -> Summary:
    summary = Summary(now)
    states = summary.states
    running: list[State] = []
    ended: list[State] = []
    queued: dict[str, list[State]] = {}
    later: dict[str, list[State]] = {}
    for job in jobs:
        state = _state(job, now)
        states[state] += 1
        if state == "queued":
            queued.setdefault(job.phase, []).append(job)
        elif state == "running":
            running.append(job)
        elif job.finished_at is not None:
            ended.append(job)
        else:
            later.setdefault(job.phase, []).append(job)
    for phase, some in queued.items():
        lane = summary.lanes.setdefault(phase, Lane())
        lane.ranks.update(job.rank for job in some)
        lane.oldest = min((job.submitted_at or now) for job in some)
        lane.first = [
            replace(job, state="queued", due_at=None) for job in nsmallest(MOST, some, key=_turn)
        ]
    for phase, some in later.items():
        lane = summary.lanes.setdefault(phase, Lane())
        lane.later = len(some)
        lane.soon = [replace(job) for job in nsmallest(MOST, some, key=lambda j: j.due_at or 0.0)]
    summary.running = [
        replace(job) for job in nsmallest(MOST, running, key=lambda job: job.started_at or 0.0)
    ]
    summary.ended = [
        replace(job) for job in nlargest(MOST, ended, key=lambda job: job.finished_at or 0.0)
    ]
    return summary


def _state(job: State, now: float) -> str:
    if job.due_at is not None and job.due_at <= now and job.state in ("delayed", "retrying"):
        return "queued"
    return job.state


def _turn(job: State) -> tuple[int, float]:
    """What comes first is smaller."""
    rank = _RANKS.get(job.rank, Rank.NORMAL)
    return -rank, job.submitted_at or 0.0


_RANKS = {rank.name.lower(): rank for rank in Rank}

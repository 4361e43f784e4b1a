"""Whether jobs ran by rank, judged by what was seen from outside.

A worker asks for a job after its last one has ended, and starts it once it has one; when in
between the broker decided is not seen. A job is surely ready from the moment its submission was
confirmed until the one who got it asked for it. So it is surely a mistake to start a job if a
higher-ranked one was confirmed before this worker asked, and was asked for by its own worker after
this start; and only such mistakes are counted.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from noting import Event
from threads import in_thread, until

from synmanager.message import Rank
from synmanager.phases import WORK_PHASES, WorkPhase

__all__ = ["Crew", "Start", "Submission", "contested", "mistakes", "run_thousand_jobs", "starts"]

JOBS = 1000

#: Of these, how many are queued before a worker runs: enough that none has nothing to do while the
#: others are submitted. RabbitMQ 4.3 may send a job of each queue to one that waits for all of
#: them, and what it has beside the one that it starts is not ready until it is back.
QUEUED = 700

#: Seconds; the machine may be slow, and a lease has to end.
PATIENCE = 90.0


@dataclass(frozen=True)
class Submission:
    """A job and when it was submitted: not before ``begun``, not after ``confirmed``."""

    key: int
    phase: str
    rank: Rank
    begun: float
    confirmed: float

    def outranks(self, other: Submission) -> bool:
        mine = (WORK_PHASES.index(self.phase), -self.rank)
        others = (WORK_PHASES.index(other.phase), -other.rank)
        return mine < others or (mine == others and self.confirmed < other.begun)


@dataclass(frozen=True)
class Start:
    """A job that a worker started at a moment, having asked for it not before another."""

    worker: str
    key: int
    asked: float
    at: float


def starts(events: Iterable[Event]) -> list[Start]:
    found: list[Start] = []
    asked: dict[str, float] = {}
    for event in sorted(events, key=lambda event: float(event["at"])):
        if event["event"] == "started":
            worker = event["worker"]
            found.append(Start(worker, event["key"], asked[worker], event["at"]))
        asked[event["worker"]] = event["at"]
    return found


def mistakes(jobs: Iterable[Submission], runs: list[Start]) -> list[str]:
    """Starts of a job while one that outranks it was surely ready."""
    return [
        f"{run.worker} started {low} while {high} was ready"
        for run, low, high in _pairs(jobs, runs)
        if high.outranks(low)
    ]


def contested(jobs: Iterable[Submission], runs: list[Start]) -> int:
    """How many starts were a choice: a job that this one outranks was surely ready."""
    return len({run for run, chosen, left in _pairs(jobs, runs) if chosen.outranks(left)})


def _pairs(
    jobs: Iterable[Submission], runs: list[Start]
) -> Iterable[tuple[Start, Submission, Submission]]:
    """A start, its job, and another job that was surely ready then."""
    by_key = {job.key: job for job in jobs}
    often = Counter(run.key for run in runs)
    # A job that was started twice was leased in between, nobody knows how long.
    others = [(by_key[run.key], run.asked) for run in runs if often[run.key] == 1]
    for run in runs:
        for other, asked_for in others:
            if other.confirmed <= run.asked and run.at <= asked_for:
                yield run, by_key[run.key], other


class Crew(Protocol):
    """Workers that note what they run, as threads or as processes."""

    def start(self, name: str, *, hold_at: int | None = None) -> None: ...

    def kill(self, name: str) -> None:
        """End it at once, without a goodbye."""

    def events(self) -> list[Event]: ...

    def stop(self) -> None:
        """End all others as one ends a Worker; raises, should one not end well."""


def run_thousand_jobs(crew: Crew, producers: Callable[[str], Any], seed: int = 1) -> int:
    """Submit jobs of random phases and ranks, the last ones while three workers run.

    One of them is killed.

    Args:
        producers: makes a connected producer of a phase.

    Returns:
        How many starts were a choice between ranks.
    """
    chance = random.Random(seed)
    jobs = [(key, chance.choice(WORK_PHASES), chance.choice(list(Rank))) for key in range(JOBS)]
    submissions: list[Submission] = []

    def submit(mine: list[tuple[int, WorkPhase, Rank]]) -> None:
        by_phase = {phase: producers(phase) for phase in WORK_PHASES}
        for key, phase, rank in mine:
            begun = time.monotonic()
            by_phase[phase].submit({"key": key, "seconds": 0.001}, priority=rank)
            submissions.append(Submission(key, phase, rank, begun, time.monotonic()))

    submit(jobs[:QUEUED])
    for name in ("first", "second"):
        crew.start(name)
    crew.start("doomed", hold_at=50)
    until(lambda: len(_seen(crew, "ready")) == 3, "three workers", PATIENCE)
    joins = [in_thread(submit, jobs[QUEUED + half :: 2]) for half in range(2)]
    until(lambda: _seen(crew, "holds"), "a worker that holds a job", PATIENCE)
    crew.kill("doomed")
    until(lambda: len({e["key"] for e in _seen(crew, "finished")}) == JOBS, "the end", PATIENCE)
    for join in joins:
        join()
    crew.stop()

    events = crew.events()
    runs = starts(events)
    (held,) = _seen(crew, "holds")
    again = {key for key, often in Counter(run.key for run in runs).items() if often > 1}
    assert again == {held["key"]}, f"ran again: {sorted(again)}"
    wrong = mistakes(submissions, runs)
    assert not wrong, f"{len(wrong)} mistakes, such as: {wrong[0]}"
    return contested(submissions, runs)


def _seen(crew: Crew, kind: str) -> list[Event]:
    return [event for event in crew.events() if event["event"] == kind]

"""The checks of the fault table, over the journals of a test.

=====  ============================================================================
``L``  nothing confirmed is lost: confirmed is a subset of done, queued, dead letters
``D``  extra runs are no more than redeliveries (and repeated publishes)
``X``  no two live consumers run one job at once
``O``  order is kept, with one producer and one consumer
``T``  work goes on within a bounded time
=====  ============================================================================

A job is known by the key in its payload, which its producer gave it; see ``programs``. Events
that count: ``confirmed`` (key), ``repeated`` (key: its publish was interrupted and done again),
``started`` and ``finished`` (key, attempt), ``killed`` and ``frozen`` (victim: a pid).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from pathlib import Path

from harness.journal import Event, Journals


class Violation(AssertionError):
    """An invariant did not hold; the message lists what broke it."""


@dataclass
class Run:
    """One call of a callback."""

    key: str
    attempt: int
    who: str
    pid: int
    began: float
    ended: float = inf
    finished: bool = False


class History:
    """What the processes of a test noted, and the checks over it."""

    def __init__(self, events: Iterable[Event]) -> None:
        self.events = sorted(events, key=lambda event: float(event["at"]))
        events = self.events
        self.confirmed = [str(e["key"]) for e in events if e["event"] == "confirmed"]
        self.runs = _runs(events)

    @classmethod
    def of(cls, directory: Path) -> History:
        return cls(Journals(directory).read())

    @property
    def done(self) -> set[str]:
        return {run.key for run in self.runs if run.finished}

    @property
    def extra_runs(self) -> int:
        return len(self.runs) - len({run.key for run in self.runs})

    @property
    def redeliveries(self) -> int:
        """Deliveries that the broker marked as not the first, of those that were run."""
        return sum(run.attempt > 1 for run in self.runs)

    @property
    def repeated_publishes(self) -> int:
        return self.count("repeated")

    def count(self, event: str) -> int:
        return sum(e["event"] == event for e in self.events)

    def runs_of(self, key: str) -> list[Run]:
        return [run for run in self.runs if run.key == key]

    def said(self, text: str) -> list[Event]:
        """The log records, of warning and above, that contain this text."""
        return [e for e in self.events if e["event"] == "log" and text in e["text"]]

    def check_nothing_lost(self, queued: Iterable[str] = (), dead: Iterable[str] = ()) -> None:
        """**L**. ``queued`` and ``dead`` are what the broker holds at the end."""
        lost = set(self.confirmed) - self.done - set(queued) - set(dead)
        if lost:
            raise Violation(f"{len(lost)} confirmed jobs are lost: {_some(lost)}")

    def check_extra_runs(self) -> None:
        """**D**, for every job by itself: a job whose last attempt was the n-th ran n times.

        A publish that was interrupted and repeated may have left one more copy.
        """
        copies = Counter(str(e["key"]) for e in self.events if e["event"] == "repeated")
        attempts: dict[str, int] = {}
        for run in self.runs:
            attempts[run.key] = max(run.attempt, attempts.get(run.key, 0))
        runs = Counter(run.key for run in self.runs)
        over = {
            f"{key} ({number} runs, {attempts[key]} attempts, {copies[key]} repeats)"
            for key, number in runs.items()
            # Each repeated copy has a count of attempts of its own.
            if number > attempts[key] * (1 + copies[key])
        }
        if over:
            raise Violation(f"{len(over)} jobs ran without being redelivered: {_some(over)}")

    def check_no_overlap(self) -> None:
        """**X**. A killed consumer's run ends with its life."""
        by_key: dict[str, list[Run]] = {}
        for run in self.runs:
            by_key.setdefault(run.key, []).append(run)
        for key, runs in by_key.items():
            runs.sort(key=lambda run: run.began)
            for earlier, later in pairwise(runs):
                if later.began < earlier.ended:
                    raise Violation(
                        f"job {key} was started by {later.who} while {earlier.who} still ran it"
                    )

    def check_order(self) -> None:
        """**O**: jobs began in the order in which they were confirmed."""
        first: dict[str, None] = dict.fromkeys(run.key for run in self.runs)
        expected = [key for key in dict.fromkeys(self.confirmed) if key in first]
        for number, (began, confirmed) in enumerate(zip(first, expected, strict=False)):
            if began != confirmed:
                raise Violation(f"number {number} to start was {began}, not {confirmed}")

    def check_resumed(self, since: float, within: float) -> float:
        """**T**: a job started within so many seconds after ``since``; return in how many."""
        later = [run.began - since for run in self.runs if run.began >= since]
        if not later or min(later) > within:
            when = f"after {min(later):.2f} s" if later else "never"
            raise Violation(f"work went on {when}, not within {within:g} s")
        return min(later)

    def longest_gap(self, since: float) -> float:
        """The longest time without the start of a job, from then until all is published."""
        until = max(float(e["at"]) for e in self.events if e["event"] == "confirmed")
        began = [run.began for run in self.runs if since <= run.began <= until]
        return max(b - a for a, b in pairwise(sorted([since, *began, until])))


def _runs(events: Sequence[Event]) -> list[Run]:
    runs: list[Run] = []
    current: dict[tuple[int, int], Run] = {}  # by process and thread: each runs one at a time
    for event in events:
        kind = event["event"]
        if kind == "started":
            run = Run(str(event["key"]), event["attempt"], event["who"], event["pid"], event["at"])
            runs.append(run)
            current[event["pid"], event["thread"]] = run
        elif kind in ("finished", "failed"):
            run = current.pop((event["pid"], event["thread"]))
            run.ended = min(run.ended, event["at"])
            run.finished = kind == "finished"
        elif kind in ("killed", "frozen"):  # a frozen one is not live, though it may finish later
            for (pid, _), run in current.items():
                if pid == event["victim"]:
                    run.ended = min(run.ended, event["at"])
    return runs


def _some(items: Iterable[str]) -> str:
    ordered = sorted(items)
    return ", ".join(ordered[:10]) + (", ..." if len(ordered) > 10 else "")

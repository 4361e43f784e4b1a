"""The sweeps of the journal: a byte for each of their jobs, and the best of their figures."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from synmanager.journal import events
from synmanager.journal.events import Event
from synmanager.journal.fold import State
from synmanager.phases import PHASES

__all__ = ["STATES", "Figure", "SweepView", "Sweeps"]

#: What a job's byte means, in the order in which people want to read it.
STATES = ("queued", "delayed", "running", "retrying", "succeeded", "dead", "cancelled")

#: Sweeps, jobs of all of them, and figures of one.
_MOST, _MOST_JOBS, _MOST_FIGURES = 500, 2_000_000, 12

#: Characters of a result that is looked into for figures.
_LONGEST_RESULT = 20_000


@dataclass
class Figure:
    """The lowest and the highest that jobs of a sweep have said or returned under a name."""

    name: str
    lowest: float
    lowest_id: str
    highest: float
    highest_id: str

    def take(self, value: float, job_id: str) -> None:
        if value < self.lowest:
            self.lowest, self.lowest_id = value, job_id
        if value > self.highest:
            self.highest, self.highest_id = value, job_id


@dataclass
class SweepView:
    """A sweep, as it is.

    Attributes:
        members: the state of each job by its number, an index into :data:`STATES`.
        figures: by name.
        is_complete: all of it was submitted.
    """

    name: str
    phase: str
    total: int
    submitted_at: float
    members: bytearray
    counts: Counter[str] = field(default_factory=Counter)
    figures: dict[str, Figure] = field(default_factory=dict)
    is_complete: bool = False

    @property
    def ended(self) -> int:
        return self.counts["succeeded"] + self.counts["dead"] + self.counts["cancelled"]

    def state_of(self, number: int) -> str:
        return STATES[self.members[number]]


class Sweeps:
    """All of them, the youngest last."""

    def __init__(self) -> None:
        self.by_name: OrderedDict[str, SweepView] = OrderedDict()
        self._jobs = 0

    def heard(self, event: Event) -> None:
        """Take an event about a sweep in."""
        kind, data = event.type.removeprefix("sweep."), event.data
        name = str(data["name"])
        if kind == "begun" and name not in self.by_name:
            total, phase, at = (
                int(data["total"]),
                str(data["phase"]),
                events.moment(data["submitted_at"]),
            )
            if not 0 < total <= _MOST_JOBS or phase not in PHASES or at is None:
                return
            made = SweepView(name, phase, total, at, bytearray(total))
            made.counts["queued"] = total
            self.by_name[name] = made
            self._jobs += total
            while len(self.by_name) > _MOST or self._jobs > _MOST_JOBS:
                self._jobs -= self.by_name.popitem(last=False)[1].total
        elif kind == "submitted" and name in self.by_name:
            self.by_name[name].is_complete = True

    def changed(self, job: State, event: Event) -> None:
        """A job of a sweep is in another state, or has said something."""
        sweep = self.by_name.get(job.sweep or "")
        if sweep is None:
            return
        name, _, text = job.id.rpartition(".")
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 9 else -1
        if name != sweep.name or not 0 <= number < sweep.total:
            return
        sweep.counts[sweep.state_of(number)] -= 1
        sweep.members[number] = STATES.index(job.state)
        sweep.counts[job.state] += 1
        figures = event.data.get("figures")
        result = event.data.get("result")
        if isinstance(result, str) and 0 < len(result) <= _LONGEST_RESULT:
            figures = json.loads(result)
        if isinstance(figures, dict):
            self._figures(sweep, figures, job.id)

    @staticmethod
    def _figures(sweep: SweepView, figures: dict[str, object], job_id: str) -> None:
        for name, said in figures.items():
            value = events.number(said)
            if value is None:
                continue
            known = sweep.figures.get(name)
            if known is not None:
                known.take(value, job_id)
            elif len(sweep.figures) < _MOST_FIGURES:
                sweep.figures[name] = Figure(name, value, job_id, value, job_id)

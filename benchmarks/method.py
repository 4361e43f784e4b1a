"""How things are measured: in rounds that interleave the sides, and never by one number alone."""

from __future__ import annotations

import gc
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from statistics import median

__all__ = ["Comparison", "Curve", "Goal", "Result", "Samples", "Side", "percentile", "rounds"]

#: One measured run of one side: returns a figure such as jobs per second. Whatever prepares the
#: run or cleans up after it happens inside the call, outside the time that it takes.
Side = Callable[[], float]

#: Seconds between two runs, for a broker to be done with what the last one left behind.
_REST = 0.3


def rounds(
    sides: Mapping[str, Side], repeats: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Run every side once per round, in turn; return each side's figures in order of the rounds.

    A machine that slows down or a broker that tires hits all sides alike; and each round begins
    with another side, so that none profits from its place.
    """
    figures: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(-1 if warm_up else 0, repeats):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            time.sleep(_REST)
            figure = sides[name]()
            if number >= 0:
                figures[name].append(figure)
    return figures


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True)
class Goal:
    """A limit that a figure has to keep: ``bound`` is ``>=``, ``<=``, ``>`` or ``<``."""

    bound: str
    limit: float
    unit: str = "x"

    def met(self, value: float) -> bool:
        compare = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
        return bool(compare[self.bound](value, self.limit))

    def __str__(self) -> str:
        return f"{self.bound} {self.limit:g} {self.unit}"


@dataclass(frozen=True)
class Comparison:
    """Ours against another, round by round.

    Attributes:
        ours, theirs: one figure per round; the figures of one round belong together.
        unit: of both.
        goal: for the median of the rounds' ratios; None for a row that is only shown.
        settings: how the other side was set up, a line each.
    """

    work: str
    against: str
    unit: str
    ours: list[float]
    theirs: list[float]
    goal: Goal | None = None
    settings: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def value(self) -> float:
        return median(self.ratios)

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.goal.met(self.value)


@dataclass(frozen=True)
class Samples:
    """Many figures of one thing, of which a percentile has to keep a limit.

    Attributes:
        values: in ``unit``.
        share: which percentile counts, 0.5 for the median.
    """

    work: str
    against: str
    unit: str
    values: list[float]
    share: float
    goal: Goal | None = None
    settings: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def value(self) -> float:
        return percentile(self.values, self.share)

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.goal.met(self.value)


@dataclass(frozen=True)
class Curve:
    """How a figure grows: ``points`` are ``(x, y)`` in the order of x."""

    work: str
    x: str
    unit: str
    series: str
    points: list[tuple[float, float]]
    note: str = ""


Result = Comparison | Samples | Curve

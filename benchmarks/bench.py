"""What a row is, and what it is given to run with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.brokers import Brokers
from benchmarks.method import Result

__all__ = ["Bench", "Row"]


@dataclass
class Bench:
    """The brokers, and how much is measured.

    Attributes:
        most: how many jobs the longest queue holds.
    """

    brokers: Brokers
    repeats: int
    quick: bool
    most: int

    def count(self, full: int) -> int:
        """How many jobs to use where the full benchmark uses ``full``."""
        return max(full // 50, min(full, 200)) if self.quick else full

    def fewer(self, most: int) -> int:
        """How many rounds to run where a round takes minutes."""
        return min(self.repeats, most)


@dataclass(frozen=True)
class Row:
    """One line, or a few that belong together, of the table; can be run alone by its name."""

    name: str
    title: str
    run: Callable[[Bench], Iterator[Result]]

"""Outcomes of jobs that could not be settled, for when their jobs come back."""

from __future__ import annotations

from dataclasses import dataclass, replace

from synmanager.backends.base import Delivery
from synmanager.engine.outcomes import End, Outcome
from synmanager.engine.results import submission_of

__all__ = ["Kept"]

#: How many are kept, how many bytes of results, and how many values of unknown size.
MOST = 1_000
MOST_BYTES = 64 * 1024 * 1024
MOST_VALUES = 16


@dataclass(frozen=True)
class _Kept:
    outcome: Outcome
    attempt: int

    @property
    def size(self) -> int:
        return 0 if self.outcome.result is None else len(self.outcome.result.body)


class Kept:
    """What ran and is not settled, by submission; the oldest are forgotten first.

    A job comes back to whoever is free. Comes it here, it need not run again.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[object, ...], _Kept] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, delivery: Delivery, outcome: Outcome | None, attempt: int) -> None:
        """Keep an outcome, unless it means nothing but that the job has to run.

        Args:
            attempt: that it is of; an earlier one than this delivery's if it was kept before.
        """
        if outcome is None or outcome.end is End.UNCOUNTED:
            return
        if outcome.result is not None:
            outcome = replace(outcome, value=None)  # what counts of it is in the message
        self._kept[submission_of(delivery)] = _Kept(outcome, attempt)
        self._forget()

    def take(self, delivery: Delivery) -> tuple[Outcome, int] | None:
        """The outcome of an earlier delivery of the very same job, and which attempt that was.

        A first delivery is a job of its own, even where it looks like an earlier one.
        """
        if delivery.attempt == 1 or not self._kept:
            return None
        found = self._kept.pop(submission_of(delivery), None)
        return None if found is None else (found.outcome, found.attempt)

    def _forget(self) -> None:
        size = values = 0
        for number, (key, each) in enumerate(reversed(self._kept.copy().items())):
            size += each.size
            values += each.outcome.value is not None
            if number and (number >= MOST or size > MOST_BYTES or values > MOST_VALUES):
                self._kept.pop(key, None)

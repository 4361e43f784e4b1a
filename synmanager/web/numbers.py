"""Numbers of strangers, which JSON bounds by nothing: what a float can hold, or none."""

from __future__ import annotations

import math

from synmanager.journal.fold import State

__all__ = ["end_of", "finite", "moment"]

#: Seconds since the epoch, of the year 5138: what comes later is no time.
_LATEST = 1e11


def finite(value: object) -> float | None:
    """A number as it is, if a float can hold it; None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:
        return None


def moment(value: object) -> float | None:
    """A time, in seconds since the epoch, that can be one."""
    number = finite(value)
    return number if number is not None and 0 <= number < _LATEST else None


def end_of(job: State) -> float | None:
    """When a job should end, by the pace that it claims, in seconds since the epoch."""
    try:
        return moment(job.eta)
    except OverflowError:
        return None

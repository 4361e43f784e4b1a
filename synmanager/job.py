"""What a running callback can know about its own job."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from synmanager.message import Rank

__all__ = ["Job", "current_job"]


@dataclass(eq=False)
class Job:
    """The job that a callback is running.

    Attributes:
        id: stays the same over every attempt.
        phase: the queue it came from.
        rank: its priority within the phase.
        attempt: 1 for the first time; counts failures and crashes of earlier attempts.
        submitted_at: seconds since the epoch; None if its producer did not say.
        lease_lost: True once the broker has taken the job back, after which another worker may
            be running it and nothing that this one returns is published. A long callback can
            look at it between steps and stop early.
    """

    id: str
    phase: str
    rank: Rank
    attempt: int
    submitted_at: float | None
    lease_lost: bool = False


running: ContextVar[Job | None] = ContextVar("synmanager_job", default=None)


def current_job() -> Job | None:
    """The job that the calling thread is running, or None outside a callback."""
    return running.get()

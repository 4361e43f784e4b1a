"""What a running callback can know about its own job, and say of it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from synmanager.clock import Clock
from synmanager.errors import Cancelled, LeaseLost, NoJob, TimeLimit, Unsupported
from synmanager.message import Rank

__all__ = ["Job", "Reporter", "current_job"]

#: Seconds between two looks at whether the job was cancelled.
_BETWEEN_LOOKS = 1.0

_CLOCK = Clock()


class Reporter(Protocol):
    """What a job needs of the journal."""

    def progress(
        self, done: Any, total: Any, text: Any, figures: dict[str, Any]
    ) -> None: ...  # pragma: no cover

    def look(self) -> bool: ...  # pragma: no cover

    def save(self, state: Any) -> None: ...  # pragma: no cover

    def saved(self) -> Any: ...  # pragma: no cover

    def renewed(self) -> None: ...  # pragma: no cover


@dataclass(eq=False)
class Job:
    """The job that a callback is running.

    Attributes:
        id: stays the same over every attempt.
        phase: the queue it came from.
        rank: its priority within the phase.
        attempt: 1 for the first time; counts failures and crashes of earlier attempts.
        submitted_at: seconds since the epoch; None if its producer did not say.
        time_limit: seconds that this attempt may take; None for as long as it wants.
        lease_lost: True once the broker has taken the job back, after which another worker may
            be running it and nothing that this one returns is published.
        reporter: how it speaks to the journal; None where there is none.
        clock: by which its time passes.

    Example:
        >>> from synmanager.testkit import run_job
        >>> def train(epochs):
        ...     job = current_job()
        ...     for epoch in range(job.saved or 0, epochs):
        ...         job.progress(epoch, epochs, loss=1 / (epoch + 1))
        ...         job.save(epoch + 1)
        ...     return {"attempt": job.attempt}
        >>> outcome = run_job(train, {"epochs": 3}, saved=1)
        >>> outcome.result, [each.done for each in outcome.progress]
        ({'attempt': 1}, [1, 2])
    """

    id: str
    phase: str
    rank: Rank
    attempt: int
    submitted_at: float | None
    time_limit: float | None = None
    lease_lost: bool = False
    reporter: Reporter | None = field(default=None, repr=False)
    clock: Clock = field(default=_CLOCK, repr=False)
    _cancelled: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        self._began = self._looked = self.clock.now()

    def check(self) -> None:
        """Raise if it is time to leave; a long callback calls it between its steps.

        It costs less than a microsecond, but for once a second, when it looks into the journal
        for 50 ms at most.

        Raises:
            Cancelled: somebody asked that the job ends.
            TimeLimit: the attempt has taken longer than :attr:`time_limit`.
            LeaseLost: the broker has taken the job back.
        """
        if self.time_limit is not None and self.clock.now() - self._began > self.time_limit:
            raise TimeLimit(f"it ran longer than its time limit of {self.time_limit:g} s")
        if self.lease_lost:
            raise LeaseLost("the broker has taken this job back; another worker may run it now")
        if self.cancelled:
            raise Cancelled("somebody has cancelled this job")

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked that the job ends, as :meth:`check` would say by raising."""
        reporter = self.reporter
        if not self._cancelled and reporter is not None:
            now = self.clock.now()
            if now - self._looked >= _BETWEEN_LOOKS:
                self._looked = now
                self._cancelled = reporter.look()
        return self._cancelled

    def progress(
        self, done: float, total: float | None = None, text: str | None = None, **figures: Any
    ) -> None:
        """Say how far the job is, for whoever watches it, and :meth:`check`.

        It may be called as often as one likes: about once a second it is written down, more
        rarely as the job grows older, and what was said last before the job ends always.

        Args:
            done: so much, of ``total``.
            total: None if nobody knows.
            text: a few words.
            figures: numbers and short texts, such as ``loss=0.3``.

        Raises:
            as :meth:`check`.
        """
        if self.reporter is not None:
            self.reporter.progress(done, total, text, figures)
        self.check()

    def save(self, state: Any) -> None:
        """Keep a checkpoint for the next attempt, wherever that is; confirmed at return.

        It does not make the job succeed or fail: one that cannot save may go on.

        Args:
            state: what JSON can write, 64 KiB at most.

        Raises:
            InvalidJob: it cannot be written, or is too long.
            BrokerUnavailable: the broker went away and did not come back in time.
            AccessRefused: this user must not write to the journal.
            Unsupported: there is none, on this broker or by the settings.
        """
        if self.reporter is None:
            raise Unsupported("there is no journal to save into: SYNMANAGER_JOURNAL=off is set")
        self.reporter.save(state)

    @property
    def saved(self) -> Any:
        """What an attempt of this very submission saved last; None if none did.

        Raises:
            BrokerUnavailable, AccessRefused: as :meth:`save`.
        """
        return None if self.reporter is None else self.reporter.saved()


running: ContextVar[Job | None] = ContextVar("synmanager_job", default=None)


def current_job() -> Job:
    """The job that the calling thread is running.

    A thread that a callback starts has none, unless it is run in a copy of the callback's context:
    ``contextvars.copy_context().run(…)``.

    Raises:
        NoJob: there is none, outside a callback.

    Example:
        >>> from synmanager.testkit import run_job
        >>> def train(lr):
        ...     return {"attempt": current_job().attempt}
        >>> run_job(train, {"lr": 0.1}, attempt=2).result
        {'attempt': 2}
    """
    job = running.get()
    if job is None:
        raise NoJob(
            "current_job() is for a running callback, in its own thread; to try one, use "
            "synmanager.testkit.run_job"
        )
    return job

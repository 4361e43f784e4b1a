"""One handler, run as one attempt of one job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal

from synmanager.backends.base import Delivery
from synmanager.backends.memory import MemoryBackend, MemoryBroker
from synmanager.clock import Clock
from synmanager.engine.callbacks import Callback, adapt
from synmanager.engine.results import Results
from synmanager.engine.runner import Runner
from synmanager.engine.session import Session
from synmanager.errors import ConfigurationError
from synmanager.job import Job, Reporter, running
from synmanager.message import TIME_LIMIT, Message, Priority, Rank, decode, encode, new_id
from synmanager.phases import COMPLETED, PHASES, WorkPhase
from synmanager.settings import load_settings
from synmanager.testkit.clock import TravellingClock

__all__ = ["Ended", "Outcome", "Progress", "run_job"]

#: What one attempt can come to; the journal's words.
Ended = Literal["succeeded", "cancelled", "retried", "given_back", "died"]


@dataclass(frozen=True)
class Progress:
    """What a handler said with ``current_job().progress(…)``."""

    done: Any
    total: Any = None
    text: Any = None
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """What one attempt came to.

    Attributes:
        ended: "succeeded"; "cancelled", as it left when it was asked to; "retried", as it failed
            and this was counted; "given_back", which costs no attempt; "died", a dead letter.
        result: what goes out on ``completed``, as an Archiver gets it; None for nothing.
        delay: seconds until the next attempt; None if there is none.
        reason: why it did not succeed, as a dead letter tells it; "" if it did.
        error: what the handler raised; None if it returned.
        progress: all that it said of its progress, in order.
        saved: its last checkpoint; the one that it found, if it saved none; else None.
        job: what ``current_job()`` was.
    """

    ended: Ended = "succeeded"
    result: dict[str, Any] | None = None
    delay: float | None = None
    reason: str = ""
    error: BaseException | None = None
    progress: list[Progress] = field(default_factory=list)
    saved: Any = None
    job: Job | None = None
    _value: Any = field(default=None, repr=False)

    @property
    def value(self) -> Any:
        """What the handler returned.

        Raises:
            Exception: what it raised instead.
        """
        if self.error is not None:
            raise self.error
        if self.job is None:
            raise AssertionError(f"the handler was not called: {self.reason}")
        return self._value


def run_job(
    handler: Callback,
    job: Mapping[str, Any],
    *,
    phase: WorkPhase | Literal["completed"] = "train",
    attempt: int = 1,
    job_id: str | None = None,
    priority: Priority = Rank.NORMAL,
    max_attempts: int | None = None,
    time_limit: float | timedelta | None = None,
    saved: Any = None,
    cancelled: bool = False,
    clock: Clock | None = None,
) -> Outcome:
    """Run a handler as a Worker does, or an Archiver its callback, for one attempt of one job.

    The job is sent through JSON, ``current_job()`` is set, and what the handler returns or raises
    is settled by the very code of a Worker.

    Args:
        handler: called as ``f(**job)``, or as ``f(kwargs, host)`` if these are its parameters.
        job: the payload.
        phase: the queue it is in.
        attempt: 1 for the first.
        job_id: by default a new one.
        priority: "high", "normal" or "low".
        max_attempts: by default ``SYNMANAGER_MAX_ATTEMPTS``, else 5.
        time_limit: seconds, or a timedelta; by default ``SYNMANAGER_TIME_LIMIT``, else none.
        saved: the checkpoint of an earlier attempt.
        cancelled: somebody has cancelled it: ``check()`` and ``progress()`` raise.
        clock: its time; pass the fixture ``synmanager_clock`` to skip some within the handler.

    Raises:
        InvalidJob: the payload, or the id, cannot be sent.
        ConfigurationError: there is no such phase, or no such attempt.
        KeyboardInterrupt: as the handler raised it.

    Example:
        >>> from synmanager import Retry, current_job
        >>> def train(lr):
        ...     current_job().progress(1, 2, loss=0.7)
        ...     if current_job().attempt == 1:
        ...         raise Retry("no GPU is free", delay=3600)
        ...     return {"loss": lr * 2}
        >>> first = run_job(train, {"lr": 0.1})
        >>> first.ended, first.delay, first.progress[0].figures
        ('retried', 3600.0, {'loss': 0.7})
        >>> run_job(train, {"lr": 0.1}, attempt=2).result
        {'loss': 0.2}
    """
    if phase not in PHASES:
        raise ConfigurationError(f"a phase is one of {', '.join(PHASES)}, not {phase!r}")
    if not isinstance(attempt, int) or attempt < 1:
        raise ConfigurationError(f"an attempt is a whole number from 1 on, not {attempt!r}")
    settings = load_settings(url="memory", max_attempts=max_attempts, time_limit=time_limit)
    settings = replace(settings, journal=True)
    headers = {} if settings.time_limit is None else {TIME_LIMIT: repr(settings.time_limit)}
    message = Message(
        encode(job, settings.max_bytes),
        id=job_id or new_id(),
        rank=Rank.parse(priority),
        headers=headers,
    )
    outcome = Outcome(saved=saved)
    called = adapt(handler, None, "localhost")

    def watched(kwargs: dict[str, Any]) -> Any:
        job = running.get()
        assert job is not None
        assert job.reporter is not None
        outcome.job = job
        job.reporter = _Notebook(job.reporter, outcome, cancelled)
        job._looked = float("-inf")  # so that the first look is one
        try:
            outcome._value = called(kwargs)
        except BaseException as error:
            outcome.error = error
            raise
        return outcome._value

    broker = MemoryBroker()
    broker.clients_clock = broker.clock = clock or TravellingClock()
    backend = _Ending(settings.address, broker, outcome)
    session = Session(backend)
    session.open(PHASES[phase].spec, COMPLETED.spec)
    results = None if phase == "completed" else _results(settings.max_bytes)
    runner = Runner(session, settings, results)
    try:
        spec = PHASES[phase].spec
        backend.publish(spec.exchange.name, spec.routing_key, [message])
        for _ in range(attempt - 1):
            MemoryBackend.nack(backend, _taken(backend, spec.name))
        runner.handle(_taken(backend, spec.name), watched)
        if results is not None:
            published = backend.receive([COMPLETED.queue], 0.0)
            if published is not None:
                outcome.result = decode(published.message.body, settings.max_bytes)
    finally:
        runner.close()
    if outcome.ended == "succeeded" and outcome.error is not None:
        outcome.ended, outcome.reason = "cancelled", str(outcome.error)
    return outcome


def _results(max_bytes: int) -> Results:
    return Results(COMPLETED.exchange.name, COMPLETED.routing_key, max_bytes)


def _taken(backend: MemoryBackend, queue: str) -> Delivery:
    delivery = backend.receive([queue], 0.0)
    assert delivery is not None
    return delivery


class _Ending(MemoryBackend):
    """Notes how the attempt is settled."""

    def __init__(self, address: Any, broker: MemoryBroker, outcome: Outcome) -> None:
        super().__init__(address, broker)
        self._outcome = outcome

    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        super().nack(delivery, delay=delay, count=count)
        self._outcome.ended = "retried" if count else "given_back"
        self._outcome.delay = delay
        error = self._outcome.error
        self._outcome.reason = "" if error is None else f"{type(error).__name__}: {error}"

    def bury(self, delivery: Delivery, reason: str, traceback: str = "") -> None:
        super().bury(delivery, reason, traceback)
        self._outcome.ended, self._outcome.reason = "died", reason


class _Notebook:
    """A job's reporter that also notes what is said."""

    def __init__(self, reporter: Reporter, outcome: Outcome, cancelled: bool) -> None:
        self._reporter = reporter
        self._outcome = outcome
        self._cancelled = cancelled

    def progress(self, done: Any, total: Any, text: Any, figures: dict[str, Any]) -> None:
        self._outcome.progress.append(Progress(done, total, text, dict(figures)))
        self._reporter.progress(done, total, text, figures)

    def look(self) -> bool:
        return self._cancelled

    def save(self, state: Any) -> None:
        self._reporter.save(state)
        self._outcome.saved = self._reporter.saved()  # as JSON has it

    def saved(self) -> Any:
        return self._outcome.saved

    def renewed(self) -> None:
        self._reporter.renewed()

"""The loop that every consumer shares: take a job, keep it, run it, settle it.

All policy about jobs lives here, the same for every broker: what is not fit to run, what a
failure means, in which order results and acknowledgements go out, and what to do with the
outcome of a job that the broker took back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from synmanager.backends.base import Delivery, QueueBackend
from synmanager.errors import (
    BrokerUnavailable,
    ConfigurationError,
    InvalidJob,
    LeaseLost,
    NotConnected,
    Reject,
    Retry,
    SynmanagerError,
    Undecodable,
)
from synmanager.job import Job, running
from synmanager.leases import LeaseKeeper
from synmanager.message import SCHEMA, decode
from synmanager.retry import RetryPolicy
from synmanager.session import Session
from synmanager.settings import Settings
from synmanager.shutdown import Shutdown

__all__ = ["Handler", "Runner"]

logger = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], Any]

#: Seconds that one wait at the broker lasts. Bounds how long ``stop()`` goes unnoticed.
_SLICE = 1.0

#: How many outcomes of lost deliveries are kept in case their jobs come back.
_KEPT = 1000

#: What settling a delivery raises when it is no longer ours: the broker hands the job out again.
_GONE = (LeaseLost, BrokerUnavailable, NotConnected)


@dataclass(frozen=True)
class _Done:
    """The callback returned."""

    value: Any


@dataclass(frozen=True)
class _Failed:
    """The callback raised; ``delay`` None means the policy's backoff."""

    reason: str
    delay: float | None = None


@dataclass(frozen=True)
class _Rejected:
    """The job can never succeed."""

    reason: str


_Outcome = _Done | _Failed | _Rejected


@dataclass(frozen=True)
class _Finished:
    """A job that has only its acknowledgement before it."""

    delivery: Delivery
    job: Job
    outcome: _Done


class Runner:
    """Runs jobs, one at a time per calling thread, in that thread.

    One belongs to a session for as long as that lasts, so that an outcome which could not be
    settled is still known when its job comes back.

    Args:
        session: open.
        on_result: publishes what a handler returned, before its job is acknowledged.
    """

    def __init__(
        self,
        session: Session,
        settings: Settings,
        on_result: Callable[[Job, Any], None] | None = None,
    ) -> None:
        self._session = session
        self._retry = RetryPolicy(settings.max_attempts, settings.retry_delay)
        self._grace = settings.grace
        self._max_bytes = settings.max_bytes
        self._keeper = LeaseKeeper(session, settings.address.lease)
        self._on_result = on_result
        self._kept: OrderedDict[tuple[object, ...], _Outcome] = OrderedDict()  # by _submission()
        self._running: dict[int, tuple[Delivery, Job]] = {}  # by thread
        self._closing: set[Delivery] = set()
        self._loops: set[Shutdown] = set()

    def close(self) -> None:
        """Stop, and close the session; from inside a handler, once its job is settled."""
        self.stop()
        if threading.get_ident() in self._running:
            self._closing.add(self._running[threading.get_ident()][0])
        else:
            self._keeper.close()
            self._session.close()

    def run(
        self,
        handlers: Mapping[str, Handler],
        *,
        max_jobs: int | None = None,
        idle_timeout: float | None = None,
        burst: bool = False,
        acknowledge_first: bool = False,
        called_off: Callable[[], bool] = lambda: False,
    ) -> int:
        """Run jobs until told to stop; return how many.

        Args:
            handlers: what to run for each queue's jobs; the order ranks the queues.
            max_jobs: end after this many.
            idle_timeout: end after this many seconds without a job.
            burst: end when the queues are empty.
            acknowledge_first: settle a job before running it, as AMQP's auto-ack does. The
                caller's explicit choice of "at most once".
            called_off: looked at between jobs; ends the loop as ``stop`` does.

        Raises:
            ConfigurationError: a limit that can never be reached.
        """
        if max_jobs is not None and not max_jobs >= 0:
            raise ConfigurationError(f"max_jobs must be zero or more, not {max_jobs!r}")
        if idle_timeout is not None and not idle_timeout >= 0:
            raise ConfigurationError(f"idle_timeout must be seconds, not {idle_timeout!r}")
        queues = tuple(handlers)
        count = 0
        thread = threading.get_ident()
        with Shutdown(
            self._grace, lambda: thread in self._running, lambda: self._give_back(thread)
        ) as shutdown:
            self._loops.add(shutdown)
            idle_since = time.monotonic()
            finished: _Finished | None = None  # acknowledged with the next look for a job
            try:
                while not shutdown.requested and not called_off() and count != max_jobs:
                    wait = 0.0 if burst else _SLICE
                    if idle_timeout is not None:
                        left = idle_since + idle_timeout - time.monotonic()
                        wait = max(0.0, min(wait, left))
                    try:
                        delivery = self._take(queues, wait, shutdown, finished)
                    except LeaseLost as error:
                        assert finished is not None  # of which alone it can speak
                        self._keep(finished.job, finished.outcome, error)
                        finished = None
                        continue
                    if delivery is not None:
                        finished = None
                    elif burst or wait < _SLICE:
                        break
                    if delivery is not None and shutdown.requested:
                        self._put_back(delivery)
                    elif delivery is not None:
                        handler = handlers[delivery.queue]
                        finished = self._process(delivery, handler, acknowledge_first)
                        count += 1
                        idle_since = time.monotonic()
                if finished is not None:
                    self._acknowledge(finished)
            finally:
                self._loops.discard(shutdown)
        return count

    def run_one(self, handlers: Mapping[str, Handler], *, acknowledge_first: bool = False) -> Any:
        """Run one job if there is one; return what its handler returned, None if it failed."""
        queues = tuple(handlers)
        delivery = self._session.call(lambda backend: backend.receive(queues, 0.0))
        if delivery is None:
            return None
        handler = handlers[delivery.queue]
        return self.handle(delivery, handler, acknowledge_first=acknowledge_first)

    def stop(self) -> None:
        """End every running ``run`` after the job at hand; from any thread, or a handler."""
        for loop in tuple(self._loops):
            loop.request()

    def overdue(self) -> bool:
        """Whether a ``run`` was told to stop, and its grace period is over."""
        return any(loop.overdue for loop in tuple(self._loops))

    def handle(
        self, delivery: Delivery, handler: Handler, *, acknowledge_first: bool = False
    ) -> Any:
        """Run and settle one delivery.

        Returns:
            what its handler returned; None if it failed, or if the job is no longer ours: then
            that is returned when the job comes back.
        """
        finished = self._process(delivery, handler, acknowledge_first)
        if finished is None or not self._acknowledge(finished):
            return None
        return finished.outcome.value

    def _process(
        self, delivery: Delivery, handler: Handler, acknowledge_first: bool
    ) -> _Finished | None:
        """Run one delivery, and settle it but for the acknowledgement of a success."""
        message = delivery.message
        job = Job(message.id, delivery.queue, message.rank, delivery.attempt, message.submitted_at)
        # A first delivery is a job of its own, even where it shares the id of an earlier one.
        outcome = self._kept.pop(_submission(job), None) if delivery.attempt > 1 else None
        try:
            if outcome is not None:
                logger.info("job %s came back after it had run; settling it", job.id)
            else:
                outcome = self._run(delivery, job, handler, acknowledge_first)
            finished = self._settle(delivery, job, outcome)
            if finished is not None and delivery in self._closing:
                self._acknowledge(finished)  # while there is a connection
            return finished
        except _GONE as error:
            logger.warning("job %s was to be acknowledged first, and is gone: %s", job.id, error)
            return None
        finally:
            if delivery in self._closing:
                self._closing.discard(delivery)
                self.close()

    def _take(
        self, queues: Sequence[str], wait: float, shutdown: Shutdown, finished: _Finished | None
    ) -> Delivery | None:
        done = None if finished is None else finished.delivery
        try:
            return self._session.call(
                lambda backend: backend.receive(queues, wait, done),
                endless=True,
                called_off=lambda: shutdown.requested,
            )
        except (BrokerUnavailable, NotConnected):
            if shutdown.requested:
                return None
            raise

    def _give_back(self, thread: int) -> None:
        """Return the thread's running job to its queue, uncounted; its outcome is dropped."""
        delivery, job = self._running.get(thread, (None, None))
        if delivery is None or job is None:
            return
        job.lease_lost = True
        self._put_back(delivery)

    def _put_back(self, delivery: Delivery) -> None:
        try:
            self._session.backend.nack(delivery, count=False)
        except _GONE as error:
            job_id = delivery.message.id
            logger.warning("job %s goes back when the broker notices: %s", job_id, error)

    def _run(
        self, delivery: Delivery, job: Job, handler: Handler, acknowledge_first: bool
    ) -> _Outcome:
        try:
            kwargs = self._read(delivery)
        except Undecodable as error:
            return _Rejected(str(error))
        if delivery.attempt > self._retry.max_attempts:
            return _Rejected(
                f"started {delivery.attempt - 1} times without an end: its workers died, or lost "
                "the broker"
            )
        if acknowledge_first:
            self._call(lambda backend: backend.ack(delivery))
        thread = threading.get_ident()
        token = running.set(job)
        around = self._running.get(thread)  # a handler may take another job itself
        self._running[thread] = (delivery, job)
        try:
            self._keeper.keep(delivery, job)
            try:
                return _Done(handler(kwargs))
            finally:
                self._keeper.let_go(delivery)
        except Retry as instruction:
            return _Failed(str(instruction) or "the callback asked for a retry", instruction.delay)
        except Reject as instruction:
            return _Rejected(str(instruction) or "rejected by the callback")
        except Exception as error:
            logger.exception("job %s of %s failed", job.id, job.phase)
            return _Failed(f"{type(error).__name__}: {error}")
        except BaseException:
            self._give_back(thread)
            raise
        finally:
            running.reset(token)
            if around is None:
                del self._running[thread]
            else:
                self._running[thread] = around

    def _read(self, delivery: Delivery) -> dict[str, Any]:
        if delivery.defect is not None:
            raise Undecodable(delivery.defect)
        if delivery.message.schema > SCHEMA:
            raise Undecodable(
                f"written by a newer synmanager (schema {delivery.message.schema}, this one reads "
                f"{SCHEMA}); upgrade this component and redrive"
            )
        return decode(delivery.message.body, self._max_bytes)

    def _settle(self, delivery: Delivery, job: Job, outcome: _Outcome) -> _Finished | None:
        """Settle what has run; a success that is published is returned for its acknowledgement."""
        finished = _Finished(delivery, job, outcome) if isinstance(outcome, _Done) else None
        if delivery.settled:  # given back at shutdown, or acknowledged first
            return finished
        try:
            if isinstance(outcome, _Done):
                self._publish(delivery, job, outcome)
            elif isinstance(outcome, _Rejected) or self._retry.exhausted(delivery.attempt):
                self._bury(delivery, job, outcome.reason)
            else:
                delay = self._retry.delay(delivery.attempt)
                if outcome.delay is not None:
                    delay = outcome.delay
                logger.info("job %s is tried again in %.1f s", job.id, delay)
                self._call(lambda backend: backend.nack(delivery, delay=delay))
        except SynmanagerError as error:
            self._keep(job, outcome, error)
            return None
        return finished

    def _acknowledge(self, finished: _Finished) -> bool:
        """Acknowledge; False if the job was no longer ours."""
        if finished.delivery.settled:
            return True
        try:
            self._call(lambda backend: backend.ack(finished.delivery))
        except SynmanagerError as error:
            self._keep(finished.job, finished.outcome, error)
            return False
        return True

    def _publish(self, delivery: Delivery, job: Job, outcome: _Done) -> None:
        if self._on_result is not None and outcome.value is not None:
            # A result of a job that is another's by now must not go out.
            self._call(lambda backend: backend.renew(delivery))
            try:
                self._on_result(job, outcome.value)
            except InvalidJob as error:
                self._bury(delivery, job, f"its result cannot be published: {error}")

    def _bury(self, delivery: Delivery, job: Job, reason: str) -> None:
        logger.error("job %s of %s becomes a dead letter: %s", job.id, job.phase, reason)
        self._call(lambda backend: backend.bury(delivery, reason))

    def _call(self, operation: Callable[[QueueBackend], None]) -> None:
        # A loop has nothing better to do than to wait for the broker: the job is done.
        self._session.call(operation, endless=bool(self._loops), called_off=self.overdue)

    def _keep(self, job: Job, outcome: _Outcome, error: SynmanagerError) -> None:
        """Keep an outcome that could not be settled: the job comes back, and need not run again.

        Raises:
            SynmanagerError: the given error, unless it says that the job is no longer ours.
        """
        self._kept[_submission(job)] = outcome
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        if not isinstance(error, _GONE):
            raise error
        logger.warning("job %s ran, but was no longer ours to settle: %s", job.id, error)


def _submission(job: Job) -> tuple[object, ...]:
    """What tells a job from others: its submitter may use an id again, there or elsewhere."""
    return job.phase, job.id, job.submitted_at

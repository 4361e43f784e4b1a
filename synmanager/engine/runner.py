"""The loop that every consumer shares: take a job, keep it, run it, settle it.

What anything that comes on the way means is decided in ``outcomes``; here it is done.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from synmanager.backends.base import Delivery, QueueBackend
from synmanager.engine import forks
from synmanager.engine.callbacks import Unfit
from synmanager.engine.kept import Kept
from synmanager.engine.leases import LeaseKeeper
from synmanager.engine.limits import LAST_RESORT, Limit, limit_of
from synmanager.engine.outcomes import (
    End,
    Outcome,
    Step,
    after_error,
    after_failure,
    after_return,
    cut,
    describe,
)
from synmanager.engine.results import Results
from synmanager.engine.retry import RetryPolicy
from synmanager.engine.session import Session
from synmanager.engine.shutdown import Shutdown
from synmanager.errors import (
    ConfigurationError,
    InvalidJob,
    LeaseLost,
    TimeLimit,
    Undecodable,
)
from synmanager.interrupts import is_from_handler
from synmanager.job import Job, running
from synmanager.journal.desk import Desk, Report
from synmanager.message import SCHEMA, TIME_LIMIT, decode
from synmanager.settings import Settings
from synmanager.text import shown
from synmanager.tracing import Trace, processing

__all__ = ["Beside", "Handler", "Runner"]

logger = logging.getLogger(__name__)

Handler = Callable[[dict[str, Any]], Any]

#: Seconds without a job after which a loop says that it is idle.
_PAUSE = 1.0

#: Seconds that one wait at the broker lasts from then on. ``stop()`` ends it earlier.
_REST = 60.0

#: Seconds between two looks of a loop, all of whose phases are paused, at whether it goes on.
_LOOK = 0.1

#: Seconds that a job waits beside a queue that is full.
_ROOM = 1.0


class Beside(Protocol):
    """What a loop does besides, between two jobs."""

    @property
    def is_due(self) -> bool:
        """Whether there is something to do; ends a wait for a job within about a second."""

    def tell(self, stopping: Callable[[], bool]) -> None:
        """Do it, until that is true. What it raises ends the loop."""


@dataclass
class _Attempt:
    """One delivery on its way through this process.

    Attributes:
        report: what is told of it.
        trace: what is around its callback.
        counts_as: which attempt its outcome is of: an earlier one, where it had run already.
        outcome: what its run came to; None until then.
        is_lost: it is not ours to settle any more.
        has_begun: it has had its turn here, however that went.
        hand: who settles it, under the key 0, once that is decided: an event that is set when that
            is done.
        generation: of the process that took it, see ``forks``. A fork that comes out of the
            callback has nothing to settle.
    """

    delivery: Delivery
    job: Job
    report: Report
    trace: Trace
    counts_as: int
    outcome: Outcome | None = None
    is_lost: bool = False
    has_begun: bool = True
    hand: dict[int, threading.Event] = field(default_factory=dict)
    generation: int = field(default_factory=forks.generation)

    @property
    def name(self) -> str:
        return f"job {shown(self.job.id)} of {shown(self.job.phase)}"

    def end(self) -> None:
        """Its callback has ended: its own thread settles it, unless another one is just at it."""
        done = threading.Event()
        done.set()
        self.hand.setdefault(0, done).wait(LAST_RESORT)

    def settle_over_its_head(self, settle: Callable[[], None]) -> None:
        """Settle it from another thread, unless its callback has ended."""
        done = threading.Event()
        if self.delivery.settled or self.hand.setdefault(0, done) is not done:
            return
        try:
            settle()
        finally:
            self.is_lost = self.delivery.settled
            done.set()


class Runner:
    """Runs jobs, one at a time per calling thread, in that thread.

    One belongs to a session for as long as that lasts, so that an outcome which could not be
    settled is still known when its job comes back.

    Args:
        session: open.
        results: publishes what a handler returned, before its job is acknowledged.
        tags, only_deaths: as for ``Desk``.
    """

    def __init__(
        self,
        session: Session,
        settings: Settings,
        results: Results | None = None,
        *,
        tags: Collection[str] = (),
        only_deaths: bool = False,
    ) -> None:
        self._session = session
        self._desk = Desk(session, settings, tags, only_deaths=only_deaths)
        self._retry = RetryPolicy(settings.max_attempts, settings.retry_delay)
        self._grace = settings.grace
        self._time_limit = settings.time_limit
        self._max_bytes = settings.max_bytes
        self._keeper = LeaseKeeper(session, settings.address.lease)
        self._results = results
        self._kept = Kept()
        self._running: dict[int, _Attempt] = {}  # by thread
        self._closing: set[Delivery] = set()
        self._loops: set[Shutdown] = set()

    def close(self) -> None:
        """Stop, and close the session; from inside a handler, once its job is settled."""
        self.stop()
        if threading.get_ident() in self._running:
            self._closing.add(self._running[threading.get_ident()].delivery)
        else:
            self._desk.close()
            self._session.close()
            self._keeper.close()

    def shutdown(self) -> Shutdown:
        """What :meth:`run` obeys: a ``with`` around it, and around what comes before."""
        thread = threading.get_ident()
        return Shutdown(
            self._grace,
            lambda: thread in self._running,
            lambda: self._give_back(thread),
            self._desk.stopping,
        )

    def run(
        self,
        handlers: Mapping[str, Handler],
        shutdown: Shutdown,
        *,
        max_jobs: int | None = None,
        idle_timeout: float | None = None,
        burst: bool = False,
        acknowledge_first: bool = False,
        beside: Beside | None = None,
    ) -> int:
        """Run jobs until told to stop; return how many.

        Args:
            handlers: what to run for each queue's jobs; the order ranks the queues.
            shutdown: entered.
            max_jobs: end after this many.
            idle_timeout: end after this many seconds without a job.
            burst: end when the queues are empty.
            acknowledge_first: settle a job before running it, as AMQP's auto-ack does. The
                caller's explicit choice of "at most once".
            beside: done between two jobs.

        Raises:
            ConfigurationError: a limit that can never be reached.
            SynmanagerError: what ends a loop, see ``outcomes``.
        """
        if max_jobs is not None and not max_jobs >= 0:
            raise ConfigurationError(f"max_jobs must be zero or more, not {max_jobs!r}")
        if idle_timeout is not None and not idle_timeout >= 0:
            raise ConfigurationError(f"idle_timeout must be seconds, not {idle_timeout!r}")
        queues = tuple(handlers)
        count = 0
        clock = self._session.backend.clock
        idle_since = clock.now()
        done: _Attempt | None = None  # is acknowledged with the next look for a job
        self._loops.add(shutdown)
        is_waiting = False
        paused: tuple[str, ...] = ()
        logger.info("takes jobs of %s", ", ".join(map(shown, queues)))
        self._desk.up(queues)
        try:
            while not shutdown.requested and count != max_jobs:
                shutdown.look()
                if beside is not None and beside.is_due:
                    if done is not None:  # its lease is not renewed any more
                        self._acknowledge(done)
                        done = None
                    beside.tell(lambda: shutdown.requested)
                wait = 0.0 if burst else _REST if is_waiting else _PAUSE
                if idle_timeout is not None:
                    left = idle_since + idle_timeout - clock.now()
                    wait = max(0.0, min(wait, left))
                before, paused = paused, self._desk.paused(queues)
                self._tell_of_pauses(before, paused)
                try:
                    delivery = self._take(queues, paused, wait, shutdown, done, beside)
                except LeaseLost as error:
                    if done is not None:  # of which alone it can speak
                        self._keep(done, error)
                    done = None
                    continue
                if done is not None and done.delivery.settled:
                    done = None  # and what its callback returned is let go
                if delivery is None:
                    if burst or (
                        idle_timeout is not None and clock.now() - idle_since >= idle_timeout
                    ):
                        break
                    if not is_waiting:
                        is_waiting = True
                        logger.info("no job of %s is there; waiting", ", ".join(map(shown, queues)))
                    self._desk.idle()
                elif shutdown.requested or self._is_paused(delivery):
                    self._put_back(delivery)
                else:
                    is_waiting = False
                    attempt = self._process(delivery, handlers[delivery.queue], acknowledge_first)
                    done = attempt if _succeeded(attempt) else None
                    count += attempt.has_begun
                    del attempt
                    idle_since = clock.now()
            if done is not None:
                self._acknowledge(done)
        except BaseException:
            if done is not None and not done.delivery.settled:
                self._kept.keep(done.delivery, done.outcome, done.counts_as)
            raise
        finally:
            self._loops.discard(shutdown)
            self._desk.leaving()
        return count

    def run_one(self, handlers: Mapping[str, Handler], *, acknowledge_first: bool = False) -> Any:
        """Run one job if there is one; return what its handler returned, None if it failed."""
        queues = tuple(handlers)
        delivery = self._session.call(lambda backend: backend.receive(queues, 0.0))
        if delivery is None:
            return None
        handler = handlers[delivery.queue]
        return self.handle(delivery, handler, acknowledge_first=acknowledge_first)

    def handle(
        self, delivery: Delivery, handler: Handler, *, acknowledge_first: bool = False
    ) -> Any:
        """Run and settle one delivery.

        Returns:
            what its handler returned; None if it failed, or if the job is no longer ours: then
            that is returned when the job comes back.
        """
        attempt = self._process(delivery, handler, acknowledge_first)
        if not _succeeded(attempt) or not self._acknowledge(attempt):
            return None
        assert attempt.outcome is not None
        return attempt.outcome.value

    def stop(self) -> None:
        """End every running ``run`` after the job at hand; from any thread, or a handler."""
        for loop in self._loops.copy():
            loop.request()

    def overdue(self) -> bool:
        """Whether a ``run`` was told to stop, and its grace period is over."""
        return any(loop.overdue for loop in self._loops.copy())

    # One delivery

    def _process(self, delivery: Delivery, handler: Handler, acknowledge_first: bool) -> _Attempt:
        """Run one delivery, and settle it but for the acknowledgement of a success."""
        message = delivery.message
        limit = limit_of(message.headers.get(TIME_LIMIT), self._time_limit)
        job = Job(
            message.id,
            delivery.queue,
            message.rank,
            delivery.attempt,
            message.submitted_at,
            limit,
            clock=self._session.backend.clock,
        )
        report = self._desk.report(delivery, delivery.attempt)
        job.reporter = report
        trace = processing(self._session.backend.address, delivery)
        attempt = _Attempt(delivery, job, report, trace, delivery.attempt)
        try:
            known = self._kept.take(delivery)
            if known is not None:
                attempt.outcome, attempt.counts_as = known
                logger.info("%s came back after it had run; settling it", attempt.name)
            elif delivery.hold_off and not self._hold_off(delivery, job):
                attempt.has_begun = False
                self._put_back(delivery)
            elif self._desk.cancelled(delivery):
                attempt.outcome = Outcome(End.KEEP, "cancelled before it ran", cancelled=True)
                report.attempt -= 1  # which has not begun
            else:
                self._run(attempt, handler, acknowledge_first)
            self._conclude(attempt)
            # Mostly it is told before the acknowledgement, which goes with the next look for a job.
            if _succeeded(attempt) and (not job.lease_lost or self._acknowledge(attempt)):
                self._tell(attempt)
            if delivery in self._closing and _succeeded(attempt):
                self._acknowledge(attempt)  # while there is a connection
        except BaseException:
            # Interrupted. What has run is known if it comes back; what has not goes back.
            if not delivery.settled and attempt.outcome is None:
                self._put_back(delivery)
                report.ended("given_back", reason="its worker leaves")
            elif not delivery.settled:
                self._kept.keep(delivery, attempt.outcome, attempt.counts_as)
            raise
        finally:
            if delivery in self._closing:
                self._closing.discard(delivery)
                self.close()
        return attempt

    def _hold_off(self, delivery: Delivery, job: Job) -> bool:
        """Let whoever ran the job before learn that it is not his any more; False if it is not to
        be run here after all.
        """
        clock = self._session.backend.clock
        logger.info("job %s was lost by its worker; it begins in a moment", shown(job.id))
        until = clock.now() + delivery.hold_off
        try:
            self._keeper.keep(delivery, job)
            while (left := until - clock.now()) > 0:
                is_over = any(loop.requested for loop in self._loops.copy())
                if job.lease_lost or is_over or not self._session.is_open:
                    return False
                clock.sleep(min(left, _LOOK))
            return True
        finally:
            self._keeper.let_go(delivery)

    def _run(self, attempt: _Attempt, handler: Handler, acknowledge_first: bool) -> None:
        """Call the handler, and note what it came to."""
        try:
            kwargs = self._read(attempt.delivery)
        except Unfit as error:
            attempt.outcome = after_failure(error, stopping=False, ours=True)
            return
        if acknowledge_first and not self._acknowledge(attempt):
            return
        if logger.isEnabledFor(logging.INFO):  # a name takes longer than the rest of this
            logger.info("%s begins, attempt %d", attempt.name, attempt.counts_as)
        attempt.report.started()
        try:
            with attempt.trace:
                value = self._call_handler(attempt, handler, kwargs)
        except BaseException as error:
            stopping = any(loop.is_interruption for loop in self._loops.copy())
            outcome = after_failure(
                error,
                stopping=stopping,
                ours=not attempt.job.lease_lost,
                cancelled=attempt.job.cancelled,
            )
            if outcome.end is End.END:
                raise  # and the job goes back, uncounted
        else:
            outcome = after_return(value)
        attempt.outcome = outcome

    def _call_handler(self, attempt: _Attempt, handler: Handler, kwargs: dict[str, Any]) -> Any:
        delivery, job = attempt.delivery, attempt.job
        thread = threading.get_ident()
        token = running.set(job)
        around = self._running.get(thread)  # a handler may take another job itself
        self._running[thread] = attempt
        try:
            self._keeper.keep(delivery, job)
            if job.time_limit is None:
                return handler(kwargs)
            limit = Limit(job, self._grace, lambda error: self._give_up(attempt, error))
            return limit.run(lambda: handler(kwargs))
        finally:
            self._keeper.let_go(delivery)
            running.reset(token)
            if around is None:
                self._running.pop(thread, None)
            else:
                self._running[thread] = around
            attempt.end()

    def _read(self, delivery: Delivery) -> dict[str, Any]:
        """The job's keys.

        Raises:
            Unfit: it cannot be run, now or ever.
        """
        if delivery.defect is not None:
            raise Unfit(delivery.defect)
        if delivery.message.schema > SCHEMA:
            raise Unfit(
                f"written by a newer synmanager (schema {delivery.message.schema}, this one reads "
                f"{SCHEMA}); upgrade this component and redrive"
            )
        try:
            kwargs = decode(delivery.message.body, self._max_bytes)
        except Undecodable as error:
            raise Unfit(str(error)) from None
        if delivery.attempt > self._retry.max_attempts:
            raise Unfit(
                f"started {delivery.attempt - 1} times without an end: its workers died, or lost "
                "the broker"
            )
        return kwargs

    def _conclude(self, attempt: _Attempt) -> None:
        """Do what an outcome says, but for the acknowledgement of a success."""
        outcome = attempt.outcome
        if outcome is None or attempt.delivery.settled:  # given back, or acknowledged first
            return
        if forks.generation() != attempt.generation:
            logger.warning("%s is its parent's to settle: this is a fork", attempt.name)
            attempt.is_lost = True
            return
        match outcome.end:
            case End.KEEP:
                if not outcome.cancelled:
                    self._publish(attempt, outcome)
            case End.UNCOUNTED:
                self._try_again(attempt, outcome)
            case End.AGAIN if not self._retry.exhausted(attempt.counts_as):
                self._try_again(attempt, outcome)
            case _:
                self._bury(attempt, outcome)

    def _publish(self, attempt: _Attempt, outcome: Outcome) -> None:
        """Publish what a handler returned."""
        results, delivery = self._results, attempt.delivery
        if results is None:
            attempt.report.returned(outcome.value)
            return
        result = outcome.result
        if result is None and outcome.value is not None:
            try:
                result = results.message(delivery, outcome.value)
            except InvalidJob as error:
                self._bury(attempt, _unpublishable(error, outcome.value))
                return
        # From here on all that counts of the value is in the message.
        attempt.outcome = Outcome(End.KEEP, result=result)
        if result is None:
            return
        attempt.report.result = result.body

        def publish() -> None:
            with attempt.trace.after():
                self._session.publish(
                    results.exchange,
                    results.routing_key,
                    [result],
                    holding=delivery,
                    **self._waiting(Step.PUBLISH),
                )

        if self._settle(Step.PUBLISH, attempt, publish):
            attempt.outcome = Outcome(End.KEEP)
            results.look_at_the_queue(self._session.backend)

    def _try_again(self, attempt: _Attempt, outcome: Outcome) -> None:
        delivery = attempt.delivery
        delay = self._retry.delay(attempt.counts_as) if outcome.delay is None else outcome.delay
        longest = self._session.backend.features.longest_delay
        if delay > longest:
            logger.warning(
                "%s: the broker delays by %.0f s at most, not by %.0f s",
                attempt.name,
                longest,
                delay,
            )
            delay = longest
        # One that has come back since was counted by that.
        counts = outcome.end is End.AGAIN and attempt.counts_as == delivery.attempt
        tries = itertools.count()

        def put_back(backend: QueueBackend) -> None:
            # A queue that is full takes nothing; what is delayed waits beside it.
            wait = delay if next(tries) == 0 else max(delay, _ROOM)
            backend.nack(delivery, delay=wait, count=counts)

        logger.log(
            logging.WARNING if outcome.traceback or outcome.end is End.AGAIN else logging.INFO,
            "%s, attempt %d of %d: %s; again in %.1f s%s",
            attempt.name,
            attempt.counts_as,
            self._retry.max_attempts,
            shown(outcome.reason, 500),
            delay,
            _lines(outcome.traceback),
        )
        if self._settle(Step.NACK, attempt, lambda: self._insist(Step.NACK, delivery, put_back)):
            attempt.report.ended(
                "retried" if counts else "given_back",
                reason=outcome.reason,
                traceback=outcome.traceback,
                due_at=time.time() + delay,
            )

    def _bury(self, attempt: _Attempt, outcome: Outcome) -> None:
        delivery, reason = attempt.delivery, cut(outcome.reason)
        attempt.outcome = replace(outcome, end=End.BURY, value=None, result=None)
        logger.error(
            "%s becomes a dead letter: %s%s",
            attempt.name,
            shown(reason, 500),
            _lines(outcome.traceback),
        )

        def bury(backend: QueueBackend) -> None:
            backend.bury(delivery, reason, outcome.traceback)

        if self._settle(Step.BURY, attempt, lambda: self._insist(Step.BURY, delivery, bury)):
            attempt.report.ended("died", reason=reason, traceback=outcome.traceback)

    def _tell(self, attempt: _Attempt) -> None:
        """Say how a job that is only to be acknowledged has ended."""
        outcome = attempt.outcome
        assert outcome is not None
        kind = "cancelled" if outcome.cancelled else "succeeded"
        if logger.isEnabledFor(logging.INFO):
            logger.info("%s has %s", attempt.name, "been cancelled" if outcome.cancelled else kind)
        if outcome.cancelled:
            attempt.report.ended(kind, reason=outcome.reason)
        else:
            attempt.report.ended(kind)

    def _acknowledge(self, attempt: _Attempt) -> bool:
        """Acknowledge; False if the job was no longer ours."""
        return attempt.delivery.settled or self._settle(
            Step.ACK,
            attempt,
            lambda: self._session.call(
                lambda backend: backend.ack(attempt.delivery), **self._waiting(Step.ACK)
            ),
        )

    # Steps, and what their errors mean

    def _take(
        self,
        queues: Sequence[str],
        paused: Collection[str],
        wait: float,
        shutdown: Shutdown,
        done: _Attempt | None,
        beside: Beside | None = None,
    ) -> Delivery | None:
        delivery = None if done is None else done.delivery
        open_ones = [queue for queue in queues if queue not in paused] if paused else queues

        def called_off() -> bool:
            return shutdown.requested

        def interrupted() -> bool:
            return (
                shutdown.requested
                or (beside is not None and beside.is_due)
                or self._desk.paused(queues) != paused
            )

        def take(backend: QueueBackend) -> Delivery | None:
            if open_ones:
                return backend.await_job(open_ones, wait, delivery, called_off=interrupted)
            if delivery is not None:
                backend.ack(delivery)
            until = time.monotonic() + min(wait, _PAUSE)
            while not interrupted() and time.monotonic() < until:
                time.sleep(_LOOK)
            return None

        try:
            return self._session.call(
                take,
                step=Step.TAKE,
                endless=True,
                called_off=called_off,
            )
        except Exception as error:
            if not shutdown.requested or isinstance(error, LeaseLost) or is_from_handler(error):
                raise
            return None

    def _is_paused(self, delivery: Delivery) -> bool:
        """Whether a job that was just taken is to go back, as its phase is paused."""
        try:
            return self._desk.has_paused(delivery)
        except BaseException:
            self._put_back(delivery)
            raise

    def _tell_of_pauses(self, before: Collection[str], paused: Collection[str]) -> None:
        if before == paused:
            return
        for queue in paused:
            if queue not in before:
                logger.info("takes no more jobs of %s, which is paused", shown(queue))
        for queue in before:
            if queue not in paused:
                logger.info("takes jobs of %s again", shown(queue))

    def _settle(self, step: Step, attempt: _Attempt, do: Callable[[], object]) -> bool:
        """Do a step; False if the job is no longer ours, or became a dead letter instead."""
        try:
            do()
        except Exception as error:
            match after_error(step, error):
                case End.BURY:
                    self._bury(attempt, Outcome(End.BURY, f"at {step.value}: {describe(error)}"))
                case End.END:
                    self._kept.keep(attempt.delivery, attempt.outcome, attempt.counts_as)
                    raise
                case _:
                    self._keep(attempt, error)
            return False
        return True

    def _insist(
        self, step: Step, delivery: Delivery, operation: Callable[[QueueBackend], None]
    ) -> None:
        """Do what a broker may refuse for long, and keep the lease of the delivery meanwhile."""
        is_repeated = False

        def attempt(backend: QueueBackend) -> None:
            nonlocal is_repeated
            if is_repeated:
                # Where it is lost, the operation says so; or that the last try has done it.
                with suppress(LeaseLost):
                    backend.renew(delivery)
            is_repeated = True
            operation(backend)

        self._session.call(attempt, **self._waiting(step))

    def _waiting(self, step: Step) -> dict[str, Any]:
        # A loop has nothing better to do than to wait for the broker: the job is done.
        return {"step": step, "endless": bool(self._loops), "called_off": self.overdue}

    def _keep(self, attempt: _Attempt, error: Exception) -> None:
        """Keep an outcome that could not be settled: the job comes back, and need not run again."""
        attempt.is_lost = True
        self._kept.keep(attempt.delivery, attempt.outcome, attempt.counts_as)
        logger.warning("%s is no longer ours to settle: %s", attempt.name, shown(error, 500))

    def _put_back(self, delivery: Delivery) -> None:
        """Return a job to its queue, uncounted."""
        try:
            self._session.backend.nack(delivery, count=False)
        except Exception as error:
            if after_error(Step.GIVE_BACK, error) is End.END:
                raise
            logger.warning(
                "job %s goes back when the broker notices: %s",
                shown(delivery.message.id),
                shown(error, 500),
            )

    def _give_back(self, thread: int) -> None:
        """Return the thread's running job to its queue; its outcome is dropped."""
        attempt = self._running.get(thread)
        if attempt is not None:
            attempt.job.lease_lost = True

            def put_back() -> None:
                self._put_back(attempt.delivery)
                attempt.report.ended("given_back", reason="it did not end within the grace")

            attempt.settle_over_its_head(put_back)

    def _give_up(self, attempt: _Attempt, error: TimeLimit) -> None:
        """Settle a job whose callback does not leave, from another thread; its outcome is dropped.

        If the broker does not take it now, the callback's own thread does it if it ever leaves.
        """
        beside = replace(attempt, outcome=after_failure(error, stopping=False, ours=True))
        attempt.settle_over_its_head(lambda: self._conclude(beside))
        attempt.job.lease_lost = attempt.delivery.settled


def _succeeded(attempt: _Attempt) -> bool:
    """Whether only the acknowledgement is left."""
    outcome = attempt.outcome
    return outcome is not None and outcome.end is End.KEEP and not attempt.is_lost


def _unpublishable(error: InvalidJob, value: object) -> Outcome:
    """Hours of work that cannot be written: the dead letter keeps what can be."""
    return Outcome(
        End.BURY, f"its result cannot be published: {error}; it was {shown(value, 4_000)}"
    )


def _lines(traceback: str) -> str:
    """A traceback below a line of the log."""
    return "".join(f"\n  {shown(line, 300)}" for line in traceback.splitlines())

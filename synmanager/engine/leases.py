"""Keeping leases while callbacks run, for as long as they take."""

from __future__ import annotations

import itertools
import logging
import threading

from synmanager.backends.base import Delivery
from synmanager.engine import forks
from synmanager.engine.outcomes import End, Step, after_error
from synmanager.engine.session import Session
from synmanager.errors import LeaseLost
from synmanager.job import Job
from synmanager.text import shown

__all__ = ["LeaseKeeper"]

logger = logging.getLogger(__name__)

#: Seconds between two looks at a lease that lasts as long as its connection.
_LOOK = 0.5


class LeaseKeeper:
    """Renews the leases of running jobs, from one thread beside the callbacks.

    Three renewals fit in a lease, so that one lost on the way does no harm. A lease that ends with
    its connection is another's at once, and so is looked at more often: that asks nobody.
    """

    def __init__(self, session: Session, lease: float) -> None:
        self._session = session
        self._interval = lease / 3
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._start_over()
        session.backend.clock.keep_up(self._interval, self._renew_all)

    def keep(self, delivery: Delivery, job: Job) -> None:
        """Keep a delivery's lease; sets ``job.lease_lost`` if it is lost all the same."""
        if not self._is_running():  # without the lock, which every job would take
            self._ensure_running()
        self._held[delivery] = job

    def let_go(self, delivery: Delivery) -> None:
        """Keep it no longer: its callback has ended."""
        self._held.pop(delivery, None)

    def close(self) -> None:
        """End the thread; the session is closed already, so none is started after it."""
        with self._starting:
            self._closing.set()

    def _start_over(self) -> None:
        self._generation = forks.generation()
        self._starting = threading.RLock()  # a signal handler may come in between
        self._held: dict[Delivery, Job] = {}

    def _is_running(self) -> bool:
        return (
            self._thread is not None
            and self._thread.is_alive()
            and not self._closing.is_set()
            and self._generation == forks.generation()
        )

    def _ensure_running(self) -> None:
        if (
            self._generation != forks.generation()
        ):  # a fork: what is held, and the lock, are the parent's
            self._start_over()
        with self._starting:
            if self._session.is_open and not self._is_running():
                self._closing = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._closing,), name="synmanager-leases", daemon=True
                )
                self._thread.start()

    def _run(self, closing: threading.Event) -> None:
        is_timed = self._session.backend.features.timed_lease
        looks = 1 if is_timed else max(round(self._interval / _LOOK), 1)
        for number in itertools.count(1):
            if closing.wait(self._interval / looks):
                return
            if number % looks:
                self._look()
            else:
                self._renew_all()

    def _look(self) -> None:
        """Find out what is lost already; no connection is waited for."""
        for delivery, job in self._held.copy().items():
            try:
                self._session.backend.renew(delivery)
            except LeaseLost as error:
                self._lose(delivery, job, error)
            except Exception:  # the next renewal says it
                continue

    def _renew_all(self) -> None:
        for delivery, job in self._held.copy().items():
            if not delivery.settled:
                self._renew(delivery, job)

    def _renew(self, delivery: Delivery, job: Job) -> None:
        # Longer than until the next renewal nobody waits: there are other jobs.
        clock = self._session.backend.clock
        until = clock.now() + self._interval
        try:
            self._session.call(
                lambda backend: backend.renew(delivery),
                step=Step.RENEW,
                endless=True,
                called_off=lambda: self._closing.is_set() or clock.now() > until,
            )
            if job.reporter is not None:
                job.reporter.renewed()
        except Exception as error:
            # Whatever it is, a thread that ended would lose the lease of every job.
            if after_error(Step.RENEW, error) is End.WAIT:
                logger.warning(
                    "could not renew the lease of job %s, will try again: %s",
                    shown(job.id),
                    shown(error),
                )
            else:
                self._lose(delivery, job, error)

    def _lose(self, delivery: Delivery, job: Job, error: Exception) -> None:
        if self._held.pop(delivery, None) is not None:
            job.lease_lost = True
            logger.warning("job %s lost its lease while running: %s", shown(job.id), shown(error))

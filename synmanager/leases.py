"""Keeping leases while callbacks run, for as long as they take."""

from __future__ import annotations

import logging
import os
import threading

from synmanager.backends.base import Delivery
from synmanager.errors import LeaseLost, SynmanagerError
from synmanager.job import Job
from synmanager.session import Session

__all__ = ["LeaseKeeper"]

logger = logging.getLogger(__name__)


class LeaseKeeper:
    """Renews the leases of running jobs, from one thread beside the callbacks.

    Three renewals fit in a lease, so that one lost on the way does no harm.
    """

    def __init__(self, session: Session, lease: float) -> None:
        self._session = session
        self._interval = lease / 3
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._start_over()

    def keep(self, delivery: Delivery, job: Job) -> None:
        """Keep a delivery's lease; sets ``job.lease_lost`` if it is lost all the same."""
        if not self._is_running():  # without the lock, which every job would take
            self._ensure_running()
        self._held[delivery] = job

    def let_go(self, delivery: Delivery) -> None:
        """Keep it no longer: its callback has ended."""
        self._held.pop(delivery, None)

    def close(self) -> None:
        self._closing.set()

    def _start_over(self) -> None:
        self._process = os.getpid()
        self._starting = threading.Lock()
        self._held: dict[Delivery, Job] = {}

    def _is_running(self) -> bool:
        return (
            self._thread is not None
            and self._thread.is_alive()
            and not self._closing.is_set()
            and self._process == os.getpid()
        )

    def _ensure_running(self) -> None:
        if self._process != os.getpid():  # a fork: what is held, and the lock, are the parent's
            self._start_over()
        with self._starting:
            if not self._is_running():
                self._closing = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._closing,), name="synmanager-leases", daemon=True
                )
                self._thread.start()

    def _run(self, closing: threading.Event) -> None:
        while not closing.wait(self._interval):
            for delivery, job in tuple(self._held.items()):
                if not delivery.settled:
                    self._renew(delivery, job)

    def _renew(self, delivery: Delivery, job: Job) -> None:
        try:
            self._session.call(
                lambda backend: backend.renew(delivery), called_off=self._closing.is_set
            )
        except LeaseLost as error:
            if self._held.pop(delivery, None) is not None:
                job.lease_lost = True
                logger.warning("job %s lost its lease while running: %s", job.id, error)
        except SynmanagerError as error:
            logger.warning("could not renew the lease of job %s, will try again: %s", job.id, error)
        except Exception:
            # Whatever it is, a thread that ended would lose the lease of every job.
            logger.exception("could not renew the lease of job %s, will try again", job.id)

"""What Worker and Archiver share: one connection that runs the jobs of some queues."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NoReturn

from synmanager.backends.base import ExchangeSpec, QueueSpec
from synmanager.backends.registry import create_backend
from synmanager.engine.results import Results
from synmanager.engine.runner import Handler, Runner
from synmanager.engine.session import Session
from synmanager.engine.shutdown import Shutdown
from synmanager.errors import BrokerUnavailable, SynmanagerError
from synmanager.journal.failures import Failures
from synmanager.settings import Settings

__all__ = ["Service"]


class Service:
    """A long-running consumer with a connection of its own."""

    def __init__(
        self,
        settings: Settings,
        handlers: Mapping[str, Handler],
        specs: Sequence[ExchangeSpec | QueueSpec],
        results: Results | None = None,
        *,
        tags: Collection[str] = (),
        only_deaths: bool = False,
        failures: Failures | None = None,
    ) -> None:
        self._handlers = handlers
        self._specs = tuple(specs)
        self._session = Session(create_backend(settings.address), settings.reconnect)
        self._runner = Runner(self._session, settings, results, tags=tags, only_deaths=only_deaths)
        self._failures = failures
        self._stopped = False
        self._shutdown: Shutdown | None = None  # of the run that there is

    def run(
        self,
        *,
        burst: bool = False,
        max_jobs: int | None = None,
        idle_timeout: float | None = None,
    ) -> int:
        """Connect, and run jobs in this thread until told to stop.

        SIGTERM, SIGINT and :meth:`stop` end it after the job at hand; see ``SYNMANAGER_GRACE``.
        A broker that is not there yet is waited for, see ``SYNMANAGER_RECONNECT``.

        Args:
            burst: end when the queues are empty.
            max_jobs: end after this many jobs.
            idle_timeout: end after this many seconds without a job.

        Returns:
            How many jobs were run.

        Raises:
            BrokerUnavailable: the broker stayed away for longer than the user's limit.
            AccessRefused, TopologyError: trying again would not help.
        """
        if self._session.is_open:
            raise SynmanagerError(f"this {type(self).__name__} is already running")
        try:
            # Also while the broker is waited for: in a container, nothing else obeys SIGTERM.
            with self._runner.shutdown() as shutdown:
                self._shutdown = shutdown
                if self._stopped:
                    shutdown.request()
                if not self._open(shutdown):
                    return 0
                if self._failures is not None and not burst:
                    self._failures.open()
                count = self._runner.run(
                    self._handlers,
                    shutdown,
                    burst=burst,
                    max_jobs=max_jobs,
                    idle_timeout=idle_timeout,
                    beside=self._failures,
                )
                if self._failures is not None and burst:
                    self._failures.tell_all(lambda: shutdown.requested)
                return count
        finally:
            self._shutdown = None
            if self._failures is not None:
                self._failures.close()
            self._runner.close()
            self._stopped = False

    def stop(self) -> None:
        """End :meth:`run` after the job at hand; from any thread, or from a handler.

        Called before ``run`` has begun, it ends that at once.
        """
        self._stopped = True
        shutdown = self._shutdown
        if shutdown is not None:
            shutdown.request()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} holds a connection and cannot be pickled; make one in the "
            "other process"
        )

    def _open(self, shutdown: Shutdown) -> bool:
        """Connect; False if told to stop while the broker was not there."""
        try:
            self._session.open(*self._specs, patient=True, called_off=lambda: shutdown.requested)
        except BrokerUnavailable:
            if shutdown.requested:
                return False
            raise
        return True

"""What Worker and Archiver share: one connection that runs the jobs of some queues."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from synmanager.backends.base import ExchangeSpec, QueueSpec
from synmanager.backends.registry import create_backend
from synmanager.errors import BrokerUnavailable, SynmanagerError
from synmanager.job import Job
from synmanager.runner import Handler, Runner
from synmanager.session import Session
from synmanager.settings import Settings

__all__ = ["Service"]


class Service:
    """A long-running consumer with a connection of its own."""

    def __init__(
        self,
        settings: Settings,
        handlers: Mapping[str, Handler],
        specs: Sequence[ExchangeSpec | QueueSpec],
        on_result: Callable[[Job, Any], None] | None = None,
    ) -> None:
        self._handlers = handlers
        self._specs = tuple(specs)
        self._session = Session(create_backend(settings.address), settings.reconnect)
        self._runner = Runner(self._session, settings, on_result)
        self._stopped = False

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
            if not self._open():
                return 0
            return self._runner.run(
                self._handlers,
                burst=burst,
                max_jobs=max_jobs,
                idle_timeout=idle_timeout,
                called_off=lambda: self._stopped,
            )
        finally:
            self._runner.close()
            self._stopped = False

    def stop(self) -> None:
        """End :meth:`run` after the job at hand; from any thread, or from a handler.

        Called before ``run`` has begun, it ends that at once.
        """
        self._stopped = True
        self._runner.stop()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"a {type(self).__name__} holds a connection and cannot be pickled; make one in the "
            "other process"
        )

    def _open(self) -> bool:
        """Connect; False if told to stop while the broker was not there."""
        try:
            self._session.open(*self._specs, patient=True, called_off=lambda: self._stopped)
        except BrokerUnavailable:
            if self._stopped:
                return False
            raise
        return True

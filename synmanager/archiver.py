"""What a Director runs: every result to a callback, one at a time, in order."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TypeVar

from synmanager.backends.base import DeadLetter, QueueBackend, QueueSpec
from synmanager.backends.registry import create_backend
from synmanager.engine.callbacks import Callback, adapt, check_takes_one
from synmanager.engine.service import Service
from synmanager.engine.session import Session
from synmanager.errors import (
    ConfigurationError,
    SynmanagerError,
    TopologyError,
    Unsupported,
)
from synmanager.journal.actions import acted, record
from synmanager.journal.events import source
from synmanager.journal.failures import Failure, Failures
from synmanager.phases import COMPLETED
from synmanager.settings import Settings, load_settings

__all__ = ["Archiver"]

T = TypeVar("T")


class Archiver(Service):
    """Hands the results of ``completed`` to a callback, and failures to another one.

    Args:
        callback: called as ``f(**result)``, or as ``f(kwargs, host)`` if these are the names of
            its first two parameters.
        subscriber: each named subscriber gets every result from the moment it first ran, also
            those published while it is away, until it unsubscribes. Without a name, this is one
            of the consumers that share 0.1.0's ``completed`` queue.
        host, port, url, lease, max_attempts: as for an operator.
        on_failure: called as ``f(failure)``, with a :class:`Failure` for each job that became a
            dead letter, and for each of these very results that did: between two results, in the
            thread that called :meth:`run`. A named subscriber is told of what happened since it
            first ran, also while it was away, as far as the journal goes back, and of some
            twice, if it was killed in between; of two that run under one name, both are told.
            Without a name it is told of what happens while it runs. What it raises is logged,
            and costs no result. ``docs/journal.md`` says what nobody is told of.

    Raises:
        ConfigurationError: a setting, or the subscriber's name, is wrong.
        InvalidCallback: the callback cannot take a result, or ``on_failure`` no failure.
        Unsupported: ``on_failure`` needs the journal, and the broker keeps none, or
            ``SYNMANAGER_JOURNAL=off`` is set.

    Example:
        >>> from synmanager.completed import CompletedProducerOperator
        >>> with CompletedProducerOperator(url="memory") as producer:
        ...     text = producer.process(loss=0.2)
        >>> Archiver(lambda loss: print("loss", loss), url="memory").run(burst=True)
        loss 0.2
        1
    """

    def __init__(
        self,
        callback: Callback,
        subscriber: str | None = None,
        host: str | None = None,
        port: int | str | None = None,
        *,
        url: str | None = None,
        lease: float | None = None,
        max_attempts: int | None = None,
        on_failure: Callable[[Failure], object] | None = None,
    ) -> None:
        settings = load_settings(host, port, url=url, lease=lease, max_attempts=max_attempts)
        queue = COMPLETED.queue
        if subscriber is not None:
            # No dot: "<queue>.dead" is taken, for a queue's dead letters.
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", subscriber):
                raise ConfigurationError(
                    f"a subscriber's name is 1 to 100 letters, digits, - or _; not {subscriber!r}"
                )
            queue = f"{COMPLETED.queue}-{subscriber}"
        self._settings = settings
        self._spec = QueueSpec(queue, COMPLETED.exchange, COMPLETED.routing_key)
        super().__init__(
            settings,
            {queue: adapt(callback, None, settings.address.host or "localhost")},
            [COMPLETED.spec, self._spec],
            only_deaths=True,
            failures=None if on_failure is None else _told(settings, on_failure, queue),
        )

    def subscribe(self) -> None:
        """Make the subscription exist, without running: results wait in it from now on.

        Raises:
            BrokerUnavailable: nobody answers.
        """
        if self._session.is_open:  # run() has made it
            return
        try:
            self._session.open(*self._specs)
        finally:
            self._session.close()
        if self._failures is not None:
            self._failures.begin()

    def unsubscribe(self) -> int:
        """End a named subscription: its queue is removed from the broker, with all that is in it.

        What was not archived by then is gone, and so are its dead letters; who wants them runs
        once more before, with ``burst=True``. Nothing is kept for this subscriber any more, until
        one of this name runs or subscribes again, which begins with nothing. Other subscribers
        keep what is theirs. Another process that still runs under this name subscribes anew:
        stop it first. Ending a subscription that does not exist is no error.

        Returns:
            How many results were removed that nobody had archived, dead letters included.

        Raises:
            ConfigurationError: this Archiver has no name; ``completed`` is everybody's.
            SynmanagerError: it is running.
            Unsupported: the broker cannot remove a queue.
            BrokerUnavailable: nobody answers.
            AccessRefused: this user may not.
        """
        if self._spec.name == COMPLETED.queue:
            raise ConfigurationError(
                "only a named subscriber can unsubscribe; the queue completed is everybody's"
            )
        if self._session.is_open:
            raise SynmanagerError("this Archiver is running; stop it before it unsubscribes")
        left = self._act("unsubscribe", self._remove)
        if self._failures is not None:
            self._failures.forget()
        return left

    def dead_letters(self, limit: int = 100) -> list[DeadLetter]:
        """The oldest results that could not be archived, with their reasons.

        Raises:
            TopologyError: nobody has subscribed under this name. So do the next two.
        """
        return self._briefly(lambda backend: backend.dead_letters(self._there(backend), limit))

    def redrive(self, limit: int = 1_000_000) -> int:
        """Put dead letters back, oldest first, to be archived again; return how many."""
        return self._act("redrive", lambda backend: backend.redrive(self._there(backend), limit))

    def purge_dead_letters(self) -> int:
        """Remove dead letters for good; return how many."""
        return self._act("purge", lambda backend: backend.purge_dead_letters(self._there(backend)))

    def _act(self, kind: str, operation: Callable[[QueueBackend], int]) -> int:
        """Do something to results, and record it."""

        def act(backend: QueueBackend) -> int:
            at, number = time.time(), operation(backend)
            if self._settings.journal and backend.features.journal:
                events = acted(kind, source("archiver"), at, number, queue=self._spec.name)
                record(lambda write: write(backend), events)
            return number

        return self._briefly(act)

    def _briefly(self, operation: Callable[[QueueBackend], T]) -> T:
        """Do something on the connection of :meth:`run`, or on one for this alone."""
        if self._session.is_open:
            return self._session.call(operation)
        address = self._session.backend.address
        session = Session(create_backend(address), self._settings.reconnect)  # declares nothing
        try:
            session.open()
            return session.call(operation)
        finally:
            session.close()

    def _there(self, backend: QueueBackend) -> str:
        backend.count(self._spec.name)
        return self._spec.name

    def _remove(self, backend: QueueBackend) -> int:
        try:
            counts = backend.count(self._spec.name)
            left = counts.ready + (counts.delayed or 0) + (counts.leased or 0) + counts.dead
        except TopologyError:
            left = 0
        backend.undeclare(self._spec)
        return left


def _told(settings: Settings, callback: Callable[[Failure], object], queue: str) -> Failures:
    """What tells of the failures of all jobs, and of the results of one queue."""
    check_takes_one(callback)
    session = Session(create_backend(settings.address), settings.reconnect)
    if not (settings.journal and session.backend.features.journal):
        raise Unsupported(
            f"on_failure needs the journal, which {settings.address.scheme} does not keep"
            if settings.journal
            else "on_failure needs the journal, and SYNMANAGER_JOURNAL=off is set"
        )

    def is_meant(phase: str) -> bool:
        # Other subscribers have their own failures.
        return phase == queue or not f"{phase}-".startswith(f"{COMPLETED.queue}-")

    return Failures(session, callback, is_meant, None if queue == COMPLETED.queue else queue)

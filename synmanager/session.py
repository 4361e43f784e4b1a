"""A backend that comes back: reconnection, written once for every broker."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from synmanager.backends.base import ExchangeSpec, QueueBackend, QueueSpec
from synmanager.errors import BrokerUnavailable, NotConnected, PublishInterrupted
from synmanager.message import Message

__all__ = ["Session"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that a call keeps trying when the user has set no limit.
CALL_PATIENCE = 60.0

#: Seconds between two looks at whether a waiting call has been called off.
_TICK = 0.2


class Session:
    """A connection to a broker as its user sees it: opened once, closed once, kept in between.

    An operation that finds the broker gone is repeated after reconnecting, with exponential
    backoff, for as long as the caller has patience. Everything declared is declared again on a
    new connection, because the broker may have come back empty.

    Args:
        backend: not opened yet.
        reconnect: the user's limit in seconds, see ``Settings.reconnect``.
    """

    def __init__(self, backend: QueueBackend, reconnect: float | None = None) -> None:
        self.backend = backend
        self._reconnect = reconnect
        self._specs: dict[ExchangeSpec | QueueSpec, None] = {}
        self._opened = False
        self._declared = False  # on the connection that there is
        self._reopening = threading.Lock()
        _sessions.add(self)

    def open(
        self,
        *specs: ExchangeSpec | QueueSpec,
        patient: bool = False,
        called_off: Callable[[], bool] = lambda: False,
    ) -> None:
        """Connect and declare.

        Args:
            patient: wait for a broker that is not there yet, as for one that went away; by
                default fail at once.
            called_off: stop waiting once this is true.
        """
        self._opened = True
        if patient:
            self.call(lambda backend: None, endless=True, called_off=called_off)
        else:
            self._current()
        self.declare(*specs)

    def close(self) -> None:
        self._opened = False
        self.backend.close()

    @property
    def is_open(self) -> bool:
        """Whether it was opened and not closed; the broker may be away in between."""
        return self._opened

    def declare(self, *specs: ExchangeSpec | QueueSpec) -> None:
        """Make sure that these exist, now and after every reconnection."""
        new = [spec for spec in specs if spec not in self._specs]
        if new:
            self.call(lambda backend: backend.declare(*new))
            self._specs.update(dict.fromkeys(new))

    def publish(
        self,
        exchange: str,
        routing_key: str,
        messages: Sequence[Message],
        *,
        delay: float = 0.0,
        endless: bool = False,
        called_off: Callable[[], bool] = lambda: False,
    ) -> None:
        """Publish; after an interruption repeat what is in doubt, with the same ids."""
        remaining = messages

        def attempt(backend: QueueBackend) -> None:
            nonlocal remaining
            try:
                backend.publish(exchange, routing_key, remaining, delay=delay)
            except PublishInterrupted as interruption:
                remaining = interruption.unconfirmed
                raise

        self.call(attempt, endless=endless, called_off=called_off)

    def call(
        self,
        operation: Callable[[QueueBackend], T],
        *,
        endless: bool = False,
        called_off: Callable[[], bool] = lambda: False,
    ) -> T:
        """Do an operation, reconnecting as often as needed.

        Args:
            operation: safe to repeat.
            endless: keep trying for ever, unless the user has set a limit.
            called_off: stop trying once this is true.

        Raises:
            NotConnected: the session is not open, or was closed meanwhile.
            BrokerUnavailable: the broker did not come back in time.
        """
        if not self._opened:
            raise NotConnected("not connected; call connect() first")
        try:
            return operation(self._current())
        except BrokerUnavailable as error:
            lost = error
        patience = self._reconnect
        if patience is None:
            patience = float("inf") if endless else CALL_PATIENCE
        deadline = time.monotonic() + patience
        logger.warning("lost the broker (%s); reconnecting", lost)
        for pause in _backoff():
            if not self._sleep(pause, deadline, called_off):
                raise lost
            try:
                result = operation(self._current())
            except BrokerUnavailable as error:
                lost = error
            else:
                logger.warning("the broker is back")
                return result
        raise AssertionError("the backoff never ends")

    def _current(self) -> QueueBackend:
        if not (self.backend.is_open and self._declared):
            with self._reopening:
                if not self.backend.is_open:
                    self._declared = False
                    self.backend.open()
                    if not self._opened:  # closed meanwhile: that close came too early
                        self.backend.close()
                        raise NotConnected("disconnected while connecting")
                if not self._declared:
                    # If it fails, the next call declares: closing would give back what runs.
                    if self._specs:
                        self.backend.declare(*self._specs)
                    self._declared = True
        return self.backend

    def _sleep(self, seconds: float, deadline: float, called_off: Callable[[], bool]) -> bool:
        """Sleep; False if there is no point in another try."""
        until = min(time.monotonic() + seconds, deadline)
        while True:
            if not self._opened:
                raise NotConnected("disconnected while waiting for the broker")
            left = until - time.monotonic()
            if called_off() or time.monotonic() >= deadline:
                return False
            if left <= 0:
                return True
            time.sleep(min(left, _TICK))

    def _forked(self) -> None:
        self._reopening = threading.Lock()
        self.backend.abandon()


def _backoff() -> Iterator[float]:
    """0.1 s doubling to 3 s: a broker that is back is found within 5 s; jitter spreads a herd."""
    pause = 0.1
    while True:
        yield pause * random.uniform(0.75, 1.25)
        pause = min(pause * 2, 3.0)


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for session in tuple(_sessions):
        session._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

"""A backend that comes back: reconnection, written once for every broker."""

from __future__ import annotations

import itertools
import logging
import os
import random
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from typing import TypeVar

from synmanager.backends.base import Delivery, ExchangeSpec, QueueBackend, QueueSpec
from synmanager.clock import Clock
from synmanager.engine.outcomes import End, Step, after_error
from synmanager.errors import (
    AccessRefused,
    BrokerUnavailable,
    NotConnected,
    NotPublished,
    PublishInterrupted,
    SynmanagerError,
    TopologyError,
)
from synmanager.interrupts import is_from_handler
from synmanager.message import Message
from synmanager.text import shown
from synmanager.tracing import sending

__all__ = ["Session"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds that a call keeps trying when the user has set no limit.
CALL_PATIENCE = 60.0

#: Seconds for which a broker is tried on that refuses a login which worked before: brokers that
#: boot refuse those whom they know. The pauses are long, lest anybody take it for an attack.
LOGIN_PATIENCE = 60.0
LOGIN_PAUSE = 10.0

#: Seconds between two words in the log about a broker that is still away.
REMINDER = 60.0

#: Seconds between two looks at whether a waiting call has been called off.
_TICK = 0.5


class Session:
    """A connection to a broker as its user sees it: opened once, closed once, kept in between.

    An operation that comes to nothing, for a reason that may pass, is repeated with exponential
    backoff, on a new connection where the old one is gone, for as long as the caller has patience;
    ``outcomes.after_error`` says for which errors, at which step. Everything declared is declared
    again on a new connection, because the broker may have come back empty.

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
        self._admitted = False  # a login has worked
        self._refused_at: float | None = None  # since when it no longer does
        self._reopenings: dict[str, _Reopening] = {}  # the one that is under way
        _sessions.add(self)

    def open(
        self,
        *specs: ExchangeSpec | QueueSpec,
        patient: bool = False,
        called_off: Callable[[], bool] = lambda: False,
    ) -> None:
        """Connect and declare.

        Args:
            patient: wait for a broker that is not there yet, or in which nothing can be declared,
                as for one that went away; by default fail at once, and soon.
            called_off: stop waiting once this is true.
        """
        self._opened = True
        if patient:
            self.call(lambda backend: None, step=Step.OPEN, endless=True, called_off=called_off)
        else:
            self._current()
        self.declare(*specs, endless=patient, called_off=called_off)

    def close(self) -> None:
        self._opened = False
        self.backend.close()

    @property
    def is_open(self) -> bool:
        """Whether it was opened and not closed; the broker may be away in between."""
        return self._opened

    def declare(
        self,
        *specs: ExchangeSpec | QueueSpec,
        endless: bool = False,
        called_off: Callable[[], bool] = lambda: False,
    ) -> None:
        """Make sure that these exist, now and after every reconnection; else as :meth:`call`."""
        new = [spec for spec in specs if spec not in self._specs]
        if new:
            self.call(lambda backend: backend.declare(*new), endless=endless, called_off=called_off)
            self._specs.update(dict.fromkeys(new))

    def publish(
        self,
        exchange: str,
        routing_key: str,
        messages: Sequence[Message],
        *,
        delay: float = 0.0,
        holding: Delivery | None = None,
        step: Step = Step.CALL,
        endless: bool = False,
        called_off: Callable[[], bool] = lambda: False,
    ) -> int:
        """Publish; after an interruption repeat what is in doubt, with the same ids.

        Args:
            holding: whose result it is. Its lease is renewed before each try: nothing goes out
                for a job that is another's since the last one, and a long wait does not lose it.

        Returns:
            how many were not queued, because their ids are; 0 if there is doubt about it.

        Raises:
            NotPublished: it came to an end; says what was not accepted.
            LeaseLost: what was to be held is not held any more.
        """
        remaining: tuple[Message, ...] = ()
        repeats, in_doubt = 0, False

        def attempt(backend: QueueBackend) -> None:
            nonlocal remaining, repeats, in_doubt
            if holding is not None:
                backend.renew(holding)
            try:
                repeats += backend.publish(exchange, routing_key, remaining, delay=delay)
            except Exception as error:
                in_doubt = True  # what is there already may be our own
                if isinstance(error, NotPublished):
                    remaining = error.unconfirmed or remaining
                raise

        with sending(self.backend.address, exchange, routing_key, messages) as outgoing:
            remaining = tuple(outgoing)
            try:
                self.call(attempt, step=step, endless=endless, called_off=called_off)
            except NotPublished as error:
                error.unconfirmed = remaining
                raise
            except BrokerUnavailable as error:  # while reconnecting: some of it may have been sent
                raise PublishInterrupted(str(error), remaining) from error
        return 0 if in_doubt else repeats

    def call(
        self,
        operation: Callable[[QueueBackend], T],
        *,
        step: Step = Step.CALL,
        endless: bool = False,
        called_off: Callable[[], bool] = lambda: False,
    ) -> T:
        """Do an operation, repeating it as often as needed.

        Args:
            operation: safe to repeat.
            step: what it is for; says which errors are waited out.
            endless: keep trying for ever, unless the user has set a limit.
            called_off: stop trying once this is true.

        Raises:
            NotConnected: the session is not open, or was closed meanwhile.
            SynmanagerError: what cannot pass, or did not pass in time.
        """
        if not self._opened:
            raise NotConnected("not connected; call connect() first")
        trouble: _Trouble | None = None
        while True:
            try:
                result = operation(self._current())
            except Exception as error:
                if trouble is None:
                    clock = self.backend.clock
                    trouble = _Trouble(
                        self._patience(endless),
                        clock,
                        longest_pause=self.backend.address.lease / 3,
                        was_there=self._admitted,
                    )
                lost = self._look_at(error, step, trouble)
            else:
                if trouble is not None:
                    trouble.is_over()
                return result
            if not self._sleep(trouble.pause(), trouble.deadline, called_off):
                raise lost

    def _patience(self, endless: bool) -> float:
        if self._reconnect is not None:
            return self._reconnect
        return float("inf") if endless else CALL_PATIENCE

    def _look_at(self, error: Exception, step: Step, trouble: _Trouble) -> Exception:
        """Return what to raise if nobody waits any longer; raise it now if waiting cannot help."""
        if self._admitted and not (isinstance(error, SynmanagerError) or is_from_handler(error)):
            error = self._unknown(error, step, trouble)
            if step is Step.CALL and trouble.unknown > 1:
                raise error
        if after_error(step, error) is not End.WAIT:
            raise error
        if isinstance(error, TopologyError):
            if step is Step.CALL and (trouble.is_topology or not self._specs):
                raise error
            self._declared = False  # what is gone is made again, before the next try
        if not self._opened:  # its own closing ended the call: no trouble to tell of
            raise NotConnected("disconnected meanwhile") from error
        trouble.report(error)
        return error

    def _unknown(self, error: Exception, step: Step, trouble: _Trouble) -> BrokerUnavailable:
        """What nobody expected, as a broker that is not available.

        The connection is dropped if it comes once more; not for a renewal, since closing gives
        back what runs.
        """
        logger.warning("unexpected trouble with the broker; trying again", exc_info=error)
        trouble.unknown += 1
        if trouble.unknown > 1 and step is not Step.RENEW:
            with suppress(Exception):
                self.backend.close()
        unknown = BrokerUnavailable(f"unexpected {type(error).__name__}: {shown(error, 500)}")
        unknown.__cause__ = error
        return unknown

    def _current(self) -> QueueBackend:
        if self.backend.is_open and self._declared:
            return self.backend
        mine = _Reopening(threading.get_ident())
        try:
            # No lock: who waited for one would wait for all that came before, each of which tries
            # the same; and a signal handler that interrupted its holder would wait for ever.
            first = self._reopenings.setdefault("", mine)
            if mine.thread == first.thread:
                self._reopen()
            else:
                while not first.done.wait(_TICK):
                    if not self._opened:
                        raise NotConnected("disconnected while connecting")
                if first.error is not None:
                    raise copy(first.error)
        except SynmanagerError as error:
            mine.error = error
            raise
        finally:
            if self._reopenings.get("") is mine:
                self._reopenings.clear()
            mine.done.set()
        return self.backend

    def _reopen(self) -> None:
        if not self.backend.is_open:
            self._declared = False
            try:
                self.backend.open()
            except AccessRefused as refusal:
                self._excuse(refusal)
            self._admitted, self._refused_at = True, None
            if not self._opened:  # closed meanwhile: that close came too early
                self.backend.close()
                raise NotConnected("disconnected while connecting")
        if not self._declared:
            # If it fails, the next call declares: closing would give back what runs.
            if self._specs:
                self.backend.declare(*self._specs)
            self._declared = True

    def _excuse(self, refusal: AccessRefused) -> None:
        """Raise a refusal, as something that may pass while there is hope that it does."""
        now = self.backend.clock.now()
        if self._refused_at is None:
            self._refused_at = now
        if not self._admitted or now - self._refused_at >= LOGIN_PATIENCE:
            raise refusal
        raise _RefusedForNow(str(refusal)) from refusal

    def _sleep(self, seconds: float, deadline: float, called_off: Callable[[], bool]) -> bool:
        """Sleep; False if there is no point in another try."""
        clock = self.backend.clock
        until = min(clock.now() + seconds, deadline)
        while True:
            if not self._opened:
                raise NotConnected("disconnected while waiting for the broker")
            left = until - clock.now()
            if called_off() or clock.now() >= deadline:
                return False
            if left <= 0:
                return True
            clock.sleep(min(left, _TICK))

    def _forked(self) -> None:
        self._reopenings = {}
        self.backend.abandon()


class _RefusedForNow(BrokerUnavailable):
    """A refusal of a login that worked before."""


class _Reopening:
    """A try to open the backend and to declare, whose end is shared by all who need that."""

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self.done = threading.Event()
        self.error: SynmanagerError | None = None


class _Trouble:
    """What keeps one call from succeeding.

    Args:
        longest_pause: seconds. Who keeps a lease by its tries needs three of them in one.

    Attributes:
        deadline: when its caller's patience ends, by the backend's clock.
        unknown: how many errors came that no driver should raise.
        is_topology: the last error said that something declared is gone.
    """

    def __init__(
        self, patience: float, clock: Clock, *, longest_pause: float, was_there: bool
    ) -> None:
        self.deadline = float("inf")
        self.unknown = 0
        self.is_topology = False
        self._patience = patience
        self._clock = clock
        self._longest_pause = longest_pause
        self._was_there = was_there
        self._pauses = _backoff()
        self._is_login = False
        self._began: float | None = None
        self._reported: float | None = None

    def report(self, error: Exception) -> None:
        """Note it, and say so in the log: at first, and every minute while it lasts."""
        now = self._clock.now()
        if self._began is None:
            self._began, self.deadline = now, now + self._patience
        self._is_login = isinstance(error, _RefusedForNow)
        was_topology, self.is_topology = self.is_topology, isinstance(error, TopologyError)
        if self._reported is None:
            if self.is_topology and not was_topology:
                return  # it is made again at once, and the next try tells
            self._reported = now
            if not self._was_there:
                logger.warning("the broker is not there (%s); waiting for it", shown(error, 500))
            elif isinstance(error, BrokerUnavailable):
                logger.warning("lost the broker (%s); reconnecting", shown(error, 500))
            else:
                logger.warning("the broker does not do it (%s); trying again", shown(error, 500))
        elif now - self._reported >= REMINDER:
            self._reported = now
            seconds = now - self._began
            logger.warning("waiting for the broker for %.0f s: %s", seconds, shown(error, 500))

    def pause(self) -> float:
        """Seconds until the next try."""
        pause = min(next(self._pauses), self._longest_pause)
        return max(pause, LOGIN_PAUSE) if self._is_login else pause

    def is_over(self) -> None:
        if self._reported is not None:
            logger.warning("the broker is %s", "back" if self._was_there else "there")


def _backoff() -> Iterator[float]:
    """0.1 s doubling to 3 s: a broker that is back is found within 5 s; jitter spreads a herd."""
    for doublings in itertools.count():
        yield min(0.1 * 2 ** min(doublings, 10), 3.0) * random.uniform(0.75, 1.25)


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for session in tuple(_sessions):
        session._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

"""Time that a test can drive, so that hours pass in milliseconds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

__all__ = ["Clock", "ManualClock"]


class Clock:
    """Monotonic seconds, and waiting for a condition variable by them."""

    def now(self) -> float:
        return time.monotonic()

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        """Wait until notified or ``seconds`` have passed. The caller holds the condition."""
        condition.wait(seconds)

    def wait_until(self, until: float, ends: Callable[[float], bool]) -> bool:
        """Wait by a function that takes seconds and tells whether what it waits for has come."""
        return ends(max(0.0, until - self.now()))

    def sleep(self, seconds: float) -> None:
        """Let so many seconds pass."""
        time.sleep(seconds)

    def keep_up(self, interval: float, chore: Callable[[], object]) -> None:
        """Do a bound method at least every ``interval`` seconds where time can jump.

        Whoever asks has a thread of its own, for which time passes as it does.
        """


class ManualClock(Clock):
    """A clock that stands still until :meth:`advance` moves it."""

    def __init__(self) -> None:
        self._now = 0.0
        self._waiting: set[threading.Condition] = set()

    def now(self) -> float:
        return self._now

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        self._waiting.add(condition)
        # Bounded in real time: an advance() between the caller's look at the clock and this
        # line would notify nobody. The caller looks again after every return.
        condition.wait(0.05)

    def advance(self, seconds: float) -> None:
        """Move time forward and wake everyone who waits."""
        self._now += seconds
        for condition in self._waiting.copy():
            with condition:
                condition.notify_all()

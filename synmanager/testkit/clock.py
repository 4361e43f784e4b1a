"""Hours that pass at once."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from datetime import timedelta

from synmanager.clock import ManualClock
from synmanager.settings import in_seconds

__all__ = ["TravellingClock"]

#: Seconds between two looks at a clock that may jump.
_LOOK = 0.01


class TravellingClock(ManualClock):
    """Real time, plus what a test skips with :meth:`advance`.

    Delays, leases, time limits, ``idle_timeout`` and the patience with a broker that is away go by
    it, for all who use one :class:`~synmanager.testkit.FakeBroker`; whoever pauses between two
    tries moves it and does not wait. What is written down for people, such as ``submitted_at``
    and the times of the journal, stays the wall clock's.

    Example:
        >>> clock = TravellingClock()
        >>> before = clock.now()
        >>> clock.advance(3600)
        >>> 3600 <= clock.now() - before < 3660
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self._chores: list[tuple[float, weakref.WeakMethod[Callable[[], object]]]] = []
        self._is_keeping_up = False

    def now(self) -> float:
        """Seconds, of which only differences mean anything."""
        return time.monotonic() + super().now()

    def advance(self, seconds: float | timedelta) -> None:
        """Let time pass at once.

        Leases of jobs that run are renewed on the way, as they are in as many real seconds.

        Args:
            seconds: zero or more, or a timedelta.

        Raises:
            ValueError: it would go back.
        """
        left = in_seconds(seconds)
        if not 0 <= left < float("inf"):
            raise ValueError(f"time goes forward, by a number of seconds, not by {seconds!r}")
        if self._is_keeping_up:  # a chore that pauses
            super().advance(left)
            return
        self._is_keeping_up = True
        try:
            while True:
                self._chores = [each for each in self._chores if each[1]() is not None]
                step = min([left, *(interval for interval, _ in self._chores)])
                super().advance(step)
                left -= step
                for _, reference in tuple(self._chores):
                    chore = reference()
                    if chore is not None:
                        chore()
                if left <= 0:
                    return
        finally:
            self._is_keeping_up = False

    def sleep(self, seconds: float) -> None:
        """Pause: time passes, and nobody waits."""
        self.advance(seconds)

    def wait_until(self, until: float, ends: Callable[[float], bool]) -> bool:
        while not ends(_LOOK):
            if self.now() >= until:
                return False
        return True

    def keep_up(self, interval: float, chore: Callable[[], object]) -> None:
        self._chores.append((interval, weakref.WeakMethod(chore)))

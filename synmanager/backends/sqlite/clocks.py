"""The two clocks of the file, and for how long this client has been awake."""

from __future__ import annotations

import math
import time

__all__ = ["Clocks", "Watch"]


class Clocks:
    """Seconds, by both clocks. A test may have others."""

    def now(self) -> float:
        """By the monotonic one, which is the same for all processes until the next boot."""
        return time.monotonic()

    def wall(self) -> float:
        """Since the epoch."""
        return time.time()


class Watch:
    """Tells a worker that died from one that was frozen together with everybody else.

    When a machine wakes up from a pause, every lease may have run out although every holder
    lives, and will renew within a third of it. So an expired lease is believed only by who has
    been looking for half of that lease, without a gap of half its own.

    Args:
        lease: our own, in seconds.
    """

    def __init__(self, lease: float) -> None:
        self._longest_gap = lease / 2
        self._since = math.inf
        self._last = -math.inf

    def look(self, now: float) -> float:
        """Say that we are awake; return for how many seconds we have been."""
        if now - self._last > self._longest_gap:
            self._since = now
        self._last = now
        return now - self._since

"""When a failed job runs again: one pure policy, the same for every broker."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["RetryPolicy"]

#: Seconds. A job that still fails after hours of waiting needs a person, not more patience.
LONGEST_DELAY = 3600.0


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential backoff with jitter, up to a number of attempts.

    Attributes:
        max_attempts: how often a job is started, crashes included, before it is given up.
        first_delay: seconds before the second attempt; each further wait is four times longer,
            up to an hour: 1, 4, 16 and 64 seconds by default.
    """

    max_attempts: int = 5
    first_delay: float = 1.0

    def exhausted(self, attempt: int) -> bool:
        """Whether there is no attempt after this one."""
        return attempt >= self.max_attempts

    def delay(
        self, attempt: int, uniform: Callable[[float, float], float] = random.uniform
    ) -> float:
        """Seconds to wait after the given attempt failed.

        The jitter of a quarter either way keeps jobs that failed together, because something
        they share was down, from coming back together.
        """
        backoff = min(self.first_delay * 4.0 ** min(attempt - 1, 32), LONGEST_DELAY)
        return backoff * uniform(0.75, 1.25)

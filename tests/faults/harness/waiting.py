"""Bounded waits for conditions: nothing here sleeps for a time that was guessed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_POLL = 0.02


def wait_until(condition: Callable[[], T], within: float, what: str) -> T:
    """Return the condition's first true value.

    Raises:
        AssertionError: it was not true within so many seconds; ``what`` says of what.
    """
    deadline = time.monotonic() + within
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:g} s: {what}")
        time.sleep(_POLL)

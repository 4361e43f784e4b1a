"""Work that runs beside a test, and how to wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ["WAIT", "in_thread", "until"]

#: Seconds within which what must happen has happened, on a slow and busy machine that stands still
#: for a while.
WAIT = 30.0


def in_thread(work: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
    """Run beside the test; the returned function joins, and returns or raises what it did."""
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((work(*args, **kwargs), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def join() -> Any:
        thread.join(WAIT)
        assert outcome, f"not done within {WAIT} s"
        value, error = outcome[0]
        if error is not None:
            raise error
        return value

    return join


def until(condition: Callable[[], Any], what: str = "it", within: float = WAIT) -> None:
    """Wait for something that no call can wait for."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s: {what}"
        time.sleep(0.005)

"""Telling what a caller's own signal handler raises from what a broker or its driver does.

A handler of SIGALRM that raises ``TimeoutError`` does so in the middle of whatever the main
thread is doing, for instance waiting for a broker. That is no answer of the broker's, although it
may be of the same type: it is the caller's, and has to reach the caller.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from types import CodeType, TracebackType

__all__ = ["is_from_handler"]

#: As plain numbers: a thousand workers whose broker is away ask for them all the time.
_NUMBERS = tuple(map(int, signal.valid_signals()))


def is_from_handler(error: BaseException) -> bool:
    """Whether an exception came out of a signal handler that is installed in this process."""
    if threading.get_ident() != threading.main_thread().ident:
        return False  # Python calls them in the main thread
    handlers = set(_handlers())
    traceback: TracebackType | None = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code in handlers:
            return True
        traceback = traceback.tb_next
    return False


def _handlers() -> Iterator[CodeType]:
    """The code of the handlers: functions, methods, and objects that are called."""
    for number in _NUMBERS:
        handler = signal.getsignal(number)
        handler = getattr(handler, "func", handler)  # functools.partial's
        if callable(handler) and not hasattr(handler, "__code__"):
            handler = getattr(handler, "__func__", type(handler).__call__)
        code = getattr(handler, "__code__", None)
        if isinstance(code, CodeType):
            yield code

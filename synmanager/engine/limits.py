"""Jobs that may take so long and no longer."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

from synmanager.errors import TimeLimit
from synmanager.job import Job
from synmanager.text import shown

__all__ = ["Limit", "limit_of"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between asking a callback to leave and ending the process under it: native code that
#: never returns to the interpreter hears nothing.
LAST_RESORT = 5.0

#: The exit code of a process that ended itself; timeout(1) uses it too.
EXIT_CODE = 124


def limit_of(header: str | None, otherwise: float | None) -> float | None:
    """The limit that a job brings, in seconds; ``otherwise`` if it brings none that is one."""
    try:
        seconds = float(header or "")
    except ValueError:
        return otherwise
    return seconds if 0 < seconds < math.inf else otherwise


class Limit:
    """Runs a callback that may take ``job.time_limit`` seconds.

    When the time is up, ``job.check()`` raises. If the callback has not left ``grace`` seconds
    later, the job is settled over its head, ``TimeLimit`` is raised in its thread, and in the end
    the process is ended.

    Args:
        let_go: settles the job as failed; called from another thread.
    """

    def __init__(self, job: Job, grace: float, let_go: Callable[[TimeLimit], None]) -> None:
        assert job.time_limit is not None
        self._job = job
        self._limit = job.time_limit
        self._clock = job.clock
        self._over = job.clock.now() + self._limit + grace
        self._let_go = let_go
        self._thread = threading.get_ident()
        self._is_over = False
        # Plain locks and queues: an Event has code of its own, in which TimeLimit could come.
        self._leaving = threading.Lock()  # held while the callback's thread is told
        self._bell: SimpleQueue[None] = SimpleQueue()

    def run(self, callback: Callable[[], T]) -> T:
        """Return or raise what the callback does; after it, no ``TimeLimit`` comes any more."""
        watch = threading.Thread(target=self._watch, name="synmanager-limit", daemon=True)
        try:
            watch.start()
            return callback()
        finally:
            # TimeLimit comes once, at any bytecode: it cannot cut short both.
            try:
                self._leave()
            finally:
                self._leave()

    def _leave(self) -> None:
        with self._leaving:
            self._is_over = True
            self._raise_in_thread(None)
        self._bell.put(None)

    def _has_left(self, seconds: float) -> bool:
        """Whether the callback has ended, or ends within this time."""
        try:
            self._bell.get(timeout=min(seconds, threading.TIMEOUT_MAX))
        except Empty:
            return self._is_over
        return True

    def _watch(self) -> None:
        if self._clock.wait_until(self._over, self._has_left):
            return
        error = TimeLimit(f"it ran longer than its time limit of {self._limit:g} s")
        logger.warning("job %s does not leave: %s; giving it up", shown(self._job.id), error)
        settling = threading.Thread(
            target=self._settle, args=(error,), name="synmanager-limit", daemon=True
        )
        settling.start()
        settling.join(LAST_RESORT)  # a broker that is away does not keep a callback alive
        with self._leaving:
            if not self._is_over:
                self._raise_in_thread(TimeLimit)
        if not self._has_left(LAST_RESORT):
            logger.critical("the callback does not let go; ending the process")
            os._exit(EXIT_CODE)

    def _settle(self, error: TimeLimit) -> None:
        try:
            self._let_go(error)
        except Exception:
            logger.exception("could not settle job %s", shown(self._job.id))

    def _raise_in_thread(self, error: type[BaseException] | None) -> None:
        """Raise an error where the callback is, at its next bytecode; None takes it back."""
        import ctypes  # only a job with a limit pays for it

        thread = ctypes.c_ulong(self._thread)
        exception = None if error is None else ctypes.py_object(error)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, exception)

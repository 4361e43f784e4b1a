"""Leaving in an orderly way: SIGTERM, SIGINT and ``stop()``."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Shutdown"]

logger = logging.getLogger(__name__)

#: Seconds between asking the main thread to leave and ending the process under it: native code
#: that never returns to the interpreter hears no signal.
LAST_RESORT = 5.0


class Shutdown:
    """Turns signals and ``request()`` into one orderly end, inside a ``with`` block.

    The first signal asks the loop to stop. A job still running ``grace`` seconds later is given
    back. A second signal leaves at once: KeyboardInterrupt for SIGINT, SystemExit for SIGTERM.
    Signals are handled only where Python allows it, in the main thread.

    Args:
        grace: seconds.
        busy: whether a job is running.
        give_back: return the running job to its queue; called from another thread.
    """

    def __init__(
        self, grace: float, busy: Callable[[], bool], give_back: Callable[[], None]
    ) -> None:
        self._grace = grace
        self._busy = busy
        self._give_back = give_back
        self.requested = False
        self._deadline = float("inf")
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}
        self._wake: int | None = None
        self._left = threading.Event()

    def request(self) -> None:
        """Ask for the end; from any thread, from a callback, from a signal handler."""
        # No lock is taken: a signal handler may interrupt the holder of any lock.
        if not self.requested:
            self.requested = True
            self._deadline = time.monotonic() + self._grace
            if self._wake is not None:
                os.write(self._wake, b"!")

    @property
    def overdue(self) -> bool:
        """Whether the end was asked for, and the grace period is over."""
        return time.monotonic() >= self._deadline

    def __enter__(self) -> Shutdown:
        reader, self._wake = os.pipe()
        threading.Thread(
            target=self._enforce_grace,
            args=(reader,),
            name="synmanager-shutdown",
            daemon=True,
        ).start()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._previous.clear()
        self._left.set()
        wake, self._wake = self._wake, None
        if wake is not None:
            os.close(wake)  # ends the watching thread

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None and not self.requested:
            self._signal = number
            self.request()
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + number)

    def _enforce_grace(self, reader: int) -> None:
        """Wait for the request, then for the job; give it back when its time is up."""
        try:
            if not os.read(reader, 1):
                return
        finally:
            os.close(reader)
        if self._left.wait(self._grace) or not self._busy():
            return
        logger.warning("the job did not finish within %g s; giving it back", self._grace)
        self._give_back()
        if self._signal is None:
            return  # stop(): the callback may go on, its outcome is dropped
        signal.pthread_kill(threading.main_thread().ident or 0, self._signal)
        if not self._left.wait(LAST_RESORT):
            logger.critical("the callback does not let go; ending the process")
            os._exit(128 + self._signal)

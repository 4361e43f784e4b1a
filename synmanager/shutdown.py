"""Leaving in an orderly way: SIGTERM, SIGINT and ``stop()``."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
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
    Signals are handled only where Python allows it, in the main thread. Where a callback enters
    another Shutdown, a signal is meant for both. A process forked meanwhile hears signals as if
    there were no Shutdown: they are sent to it, not to the loop of its parent.

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
        self._around: Shutdown | None = None  # the one whose callback this one runs in
        self._process = os.getpid()
        # Unlike any lock, it may be rung by a signal handler that interrupted another ringing;
        # unlike a pipe, it is not shared with a fork, nor is there a number to be used again.
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._left = threading.Event()
        self._pushed = threading.Lock()  # held once the main thread has been told to leave

    def request(self) -> None:
        """Ask for the end; from any thread, from a callback, from a signal handler."""
        # No lock is taken: a signal handler may interrupt the holder of any lock.
        if not self.requested:
            self.requested = True
            self._deadline = time.monotonic() + self._grace
            self._bell.put(None)

    @property
    def overdue(self) -> bool:
        """Whether the end was asked for, and the grace period is over."""
        return time.monotonic() >= self._deadline

    def __enter__(self) -> Shutdown:
        global _innermost
        if threading.current_thread() is threading.main_thread():
            self._around, _innermost = _innermost, self
            if self._around is not None:
                self._pushed = self._around._pushed
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
            if self._around is not None and self._around._signal is not None:
                self._signal = self._around._signal  # a loop begun after the signal takes no job
                self.request()
        threading.Thread(
            target=self._enforce_grace, name="synmanager-shutdown", daemon=True
        ).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _innermost
        if os.getpid() != self._process:
            return  # a fork that came out of the callback; the thread is the parent's
        if self._previous:
            for number in self._previous:
                self._restore(number)
            self._previous.clear()
            _innermost = self._around
        self._left.set()
        self._bell.put(None)  # ends the watching thread

    def _restore(self, number: int) -> None:
        """Let a signal mean what it meant before."""
        handler = self._previous.get(number)
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _forked(self) -> None:
        """Hear no signals, in the child; a handler that the callback set stays."""
        for number in self._previous:
            if signal.getsignal(number) == self._on_signal:
                self._restore(number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # called by a handler that took the place of this one
            previous = self._previous.get(number)
            if callable(previous):
                previous(number, frame)
            elif previous is not signal.SIG_IGN:
                self._restore(number)
                signal.raise_signal(number)
            return
        unaware = [shutdown for shutdown in self._outwards() if not shutdown.requested]
        if unaware:
            for shutdown in unaware:
                shutdown._signal = number
                shutdown.request()
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + number)

    def _outwards(self) -> Iterator[Shutdown]:
        """This one, the one whose callback it runs in, and so on."""
        shutdown: Shutdown | None = self
        while shutdown is not None:
            yield shutdown
            shutdown = shutdown._around

    def _enforce_grace(self) -> None:
        """Wait for the request, then for the job; give it back when its time is up."""
        self._bell.get()
        if self._left.wait(self._grace) or not self._busy():
            return
        logger.warning("the job did not finish within %g s; giving it back", self._grace)
        self._give_back()
        if self._signal is None:
            return  # stop(): the callback may go on, its outcome is dropped
        if self._pushed.acquire(blocking=False):  # once leads through all the callbacks
            signal.pthread_kill(threading.main_thread().ident or 0, self._signal)
        if not self._left.wait(LAST_RESORT):
            logger.critical("the callback does not let go; ending the process")
            os._exit(128 + self._signal)


#: The one that handles signals now; the others that are entered in the main thread are around it.
_innermost: Shutdown | None = None


#: Of the thread that forks: the signals that it had blocked, None if it leaves them so.
_forking = threading.local()


def _before_fork() -> None:
    # The interpreter drops what its child hears first: let that wait for the right handlers.
    _forking.blocked = None
    if _innermost is not None:
        _forking.blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGINT))


def _after_fork() -> None:
    if _forking.blocked is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.blocked)


def _after_fork_in_child() -> None:
    """Drop what is the parent's: nobody has asked its loops to end."""
    global _innermost
    innermost, _innermost = _innermost, None
    for shutdown in innermost._outwards() if innermost is not None else ():
        shutdown._forked()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )

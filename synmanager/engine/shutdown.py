"""Leaving in an orderly way: SIGTERM, SIGINT and ``stop()``."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from types import FrameType, TracebackType
from typing import Any

from synmanager.engine.ear import Ear

__all__ = ["Shutdown"]

logger = logging.getLogger(__name__)

#: Seconds between asking the main thread to leave and ending the process under it: native code
#: that never returns to the interpreter hears no signal.
LAST_RESORT = 5.0

#: Seconds in which the main thread runs a signal's handler, if it can; then it is taken for deaf.
_DEAF = 1.0

#: Seconds between two looks at whether a grace was cut short.
_TICK = 0.5

#: Seconds. To ask for a signal's handler takes longer than a short job.
_BETWEEN_LOOKS = 0.05


class Shutdown:
    """Turns signals and ``request()`` into one orderly end, inside a ``with`` block.

    The first signal asks the loop to stop. A job still running ``grace`` seconds later is given
    back. A second signal leaves at once: KeyboardInterrupt for SIGINT, SystemExit for SIGTERM.
    Signals are handled only where Python allows it, in the main thread; while that is in native
    code, another one hears of them, and asks for the end in its place. Where a callback enters
    another Shutdown, a signal is meant for both. A process forked meanwhile hears signals as if
    there were no Shutdown: they are sent to it, not to the loop of its parent.

    Attributes:
        requested: the end was asked for.
        is_interruption: and not by the callback itself.

    Args:
        grace: seconds.
        busy: whether a job is running.
        give_back: return the running job to its queue; called from another thread.
        tell: say that the end was asked for while a job runs; called from that thread.
    """

    def __init__(
        self,
        grace: float,
        busy: Callable[[], bool],
        give_back: Callable[[], None],
        tell: Callable[[], None],
    ) -> None:
        self._grace = grace
        self._busy = busy
        self._give_back = give_back
        self._tell = tell
        self._thread = threading.get_ident()
        self.requested = False
        self.is_interruption = False
        self._deadline = float("inf")
        self._signal: int | None = None
        self._previous: dict[int, Any] = {}
        self._look_again = 0.0
        self._robbed: set[int] = set()  # whose handler a callback has replaced
        self._around: Shutdown | None = None  # the one whose callback this one runs in
        self._process = os.getpid()
        # Unlike any lock, it may be rung by a signal handler that interrupted another ringing;
        # unlike a pipe, it is not shared with a fork, nor is there a number to be used again.
        self._bell: SimpleQueue[None] = SimpleQueue()
        self._left = threading.Event()
        self._ear: Ear | None = None  # of the outermost
        self._handled = 0  # how many handlers were run; the outermost counts
        self._is_ahead = False  # the end was asked for before that signal's handler was run
        self._is_hurried = False
        self._pushed = threading.Lock()  # held once the main thread has been told to leave

    def request(self) -> None:
        """Ask for the end; from any thread, from a callback, from a signal handler."""
        # No lock is taken: a signal handler may interrupt the holder of any lock.
        if not self.requested:
            self.is_interruption = self._signal is not None or (
                threading.get_ident() != self._thread
            )
            self.requested = True
            self._deadline = time.monotonic() + self._grace
            self._bell.put(None)

    @property
    def overdue(self) -> bool:
        """Whether the end was asked for, and the grace period is over."""
        return time.monotonic() >= self._deadline

    def look(self) -> None:
        """Take the signals back from whoever took them meanwhile; called between jobs.

        A framework that a callback uses may set handlers of its own and leave them behind: the
        loop would be deaf for good.
        """
        now = time.monotonic()
        if now < self._look_again or os.getpid() != self._process:
            return
        self._look_again = now + _BETWEEN_LOOKS
        if self._ear is not None:
            self._ear.listen()
        for number in self._previous:
            if signal.getsignal(number) != self._on_signal:
                signal.signal(number, self._on_signal)
                if number not in self._robbed:
                    self._robbed.add(number)
                    logger.warning(
                        "a callback left a handler of its own for %s behind; it is replaced, so "
                        "that the loop can be told to end (said once)",
                        signal.Signals(number).name,
                    )

    def __enter__(self) -> Shutdown:
        global _innermost
        if threading.current_thread() is threading.main_thread():
            self._around, _innermost = _innermost, self
            if self._around is not None:
                self._pushed = self._around._pushed
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._on_signal)
            if self._around is None:
                self._ear = Ear.open()
            if self._around is not None and self._around._signal is not None:
                self._signal = self._around._signal  # a loop begun after the signal takes no job
                self.request()
        threading.Thread(
            target=self._enforce_grace, name="synmanager-shutdown", daemon=True
        ).start()
        if self._ear is not None:
            threading.Thread(
                target=self._overhear, args=(self._ear,), name="synmanager-ear", daemon=True
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
        if self._ear is not None:
            self._ear.close()
        self._bell.put(None)  # ends the watching thread

    def _restore(self, number: int) -> None:
        """Let a signal mean what it meant before."""
        handler = self._previous.get(number)
        signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _forked(self) -> None:
        """Hear no signals, in the child; a handler that the callback set stays."""
        if self._ear is not None:
            self._ear.forked()
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
        *_, outermost = self._outwards()
        if outermost._ear is not None:
            outermost._ear.take()  # all that this is for, and only then:
        outermost._handled += 1
        if outermost._is_ahead:
            outermost._is_ahead = False
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

    def _overhear(self, ear: Ear) -> None:
        """Ask for the end in place of a main thread that does not run its handlers."""
        while ear.wait():
            handled = self._handled  # of what is taken now, no handler was run before
            for number in {*ear.take()} & {int(signal.SIGTERM), int(signal.SIGINT)}:
                innermost = _innermost
                if (
                    not self._pushed.locked()
                    and not self._is_heard(handled)
                    and innermost is not None
                    and signal.getsignal(number) == innermost._on_signal  # else it is another's
                ):
                    self._speak_for(number, innermost)

    def _is_heard(self, handled: int) -> bool:
        """Whether more handlers than these are run in time, or none is needed any more."""
        until = time.monotonic() + _DEAF
        while self._handled == handled and not self._left.is_set():
            if time.monotonic() >= until:
                return False
            time.sleep(0.01)
        return True

    def _speak_for(self, number: int, innermost: Shutdown) -> None:
        """Do what a signal's handler would, from beside a main thread that does not run it."""
        unaware = [shutdown for shutdown in innermost._outwards() if not shutdown.requested]
        if not unaware:  # a second one
            for shutdown in innermost._outwards():
                shutdown._signal = shutdown._signal or number
                shutdown._is_hurried = True
            return
        handled, self._is_ahead = self._handled, True
        for shutdown in unaware:
            shutdown._signal = number
            shutdown.request()
        if self._handled != handled:
            self._is_ahead = False  # it was heard at this moment

    def _say_what_is_waited_for(self) -> None:
        # Not by the handler: it may have interrupted whoever writes a line of the log.
        if not (self.requested and self._busy()):
            return
        with suppress(Exception):  # the grace is enforced whatever comes of it
            self._tell()
        if self._signal is None or self._around is not None:
            return
        name = signal.Signals(self._signal).name
        again = "Ctrl-C again" if self._signal == signal.SIGINT else f"a second {name}"
        logger.warning(
            "%s: waiting for the running job, %g s at most; %s leaves at once and gives it back",
            name,
            self._grace,
            again,
        )

    def _enforce_grace(self) -> None:
        """Wait for the request, then for the job; give it back when its time is up."""
        self._bell.get()
        self._say_what_is_waited_for()
        until = time.monotonic() + self._grace
        while not self._is_hurried and (left := until - time.monotonic()) > 0:
            if self._left.wait(min(left, _TICK)):
                return
        if not self._busy():
            return
        if self._is_hurried:
            logger.warning("giving the running job back")
        else:
            logger.warning("the job did not finish within %g s; giving it back", self._grace)
        try:
            self._give_back()
        except Exception:  # the last resort comes whatever the broker says
            logger.exception("the job could not be given back")
        if self._signal is None:
            return  # stop(): the callback may go on, its outcome is dropped
        if self._pushed.acquire(blocking=False):  # once leads through all the callbacks
            *_, outermost = self._outwards()
            outermost._is_ahead = False  # its handler is to raise now
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

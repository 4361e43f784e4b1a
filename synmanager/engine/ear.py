"""Hearing of signals beside the main thread, in which alone Python runs their handlers.

While that is in native code, or waits for something that a signal does not interrupt, a handler
is not run, for however long. But at the signal itself the interpreter writes its number into a
pipe, if it is told to; another thread reads it there.
"""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
from contextlib import suppress

__all__ = ["Ear"]

#: Where the pipe's numbers lie, if there are so many: new files get the lowest free number, so
#: that these are hardly given to others, should somebody close all files, as daemons do. The
#: interpreter would go on writing.
_HIGH = 900

_END = 0  # no signal has this number


class Ear:
    """A pipe that signals are written into. Made and closed in the main thread."""

    def __init__(self, ends: tuple[int, int]) -> None:
        self._read, self._write = ends
        self._identities = [_identity(end) for end in ends]
        self._is_over = False

    @classmethod
    def open(cls) -> Ear | None:
        """Listen; None if somebody else does, or if there is no room for a pipe."""
        try:
            ends = os.pipe()
        except OSError:
            return None
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        lowest = _HIGH if most == resource.RLIM_INFINITY or most > _HIGH + 100 else 3
        high = []
        try:
            for end in ends:
                high.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, lowest))
        except OSError:
            for end in high:
                os.close(end)
            return None
        finally:
            for end in ends:
                os.close(end)
        ear = cls((high[0], high[1]))
        for end in high:
            os.set_blocking(end, False)
        if not ear.listen():
            ear._close_both()
            return None
        return ear

    def listen(self) -> bool:
        """Be who listens; False if somebody else does, as asyncio does for its own handlers.

        Who listens ends with -1, as asyncio does, or with whom it found; so it is asked for again.
        """
        if _identity(self._write) != self._identities[1]:
            return False
        before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        if before in (-1, self._write):
            return True
        signal.set_wakeup_fd(before)
        return False

    def wait(self) -> bool:
        """Wait for a signal; False once it is closed. For one thread, which closes the pipe."""
        waiting = select.poll()  # for any number; select() ends at 1023
        waiting.register(self._read, select.POLLIN)
        if not self._is_over:
            waiting.poll()
        if self._is_over:
            self._close_both()
        return not self._is_over

    def take(self) -> bytes:
        """The numbers of the signals that have come; from any thread, at once."""
        try:
            if _identity(self._read) != self._identities[0]:
                raise BrokenPipeError
            heard = os.read(self._read, 512)
        except BlockingIOError:
            return b""
        except OSError:
            heard = b""
        if not heard:  # the other end is closed
            self._is_over = True
        elif _END in heard:
            self._is_over = True
            self._wake_up()  # whoever waits, if that is another
        return heard.replace(bytes([_END]), b"")

    def close(self) -> None:
        """Listen no longer; the thread that waits is told."""
        self._leave()
        self._wake_up()

    def _wake_up(self) -> None:
        if _identity(self._write) == self._identities[1]:
            with suppress(OSError):
                os.write(self._write, bytes([_END]))

    def forked(self) -> None:
        """In a fork: what comes is not for the parent."""
        self._leave()
        self._close_both()

    def _leave(self) -> None:
        before = signal.set_wakeup_fd(-1)
        if before not in (-1, self._write):
            with suppress(OSError, ValueError):
                signal.set_wakeup_fd(before)

    def _close_both(self) -> None:
        for end, identity in zip((self._read, self._write), self._identities, strict=True):
            if _identity(end) == identity:
                os.close(end)


def _identity(number: int) -> tuple[int, int] | None:
    """What a number stands for at present, see ``sockets.identity``."""
    try:
        status = os.fstat(number)
    except OSError:
        return None
    return status.st_dev, status.st_ino

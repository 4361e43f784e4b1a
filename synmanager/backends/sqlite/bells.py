"""Doorbells: how a waiting client learns at once that there may be something to take.

For each queue that somebody has waited for, a named pipe hangs in a directory beside the file,
called after the queue's number. Whoever has committed something for the queue writes a byte into
it. All who wait for the queue have that one pipe open, and the kernel wakes one of them, though
none who is frozen. That one reads all that is in the pipe and looks into the file; what it leaves
there it rings for in its turn. So a job wakes one, whoever else waits, and a batch as many as take
of it, one after the other.

Who follows a log of the journal hangs up a pipe of his own: all of them are to hear.

A pipe, because a path to it may be long, and because it holds nothing once nobody hears. A bell
that is not heard, or whose hearer dies before he looks, is no harm: every second a waiting client
looks whether the file was written to.

Older versions hang up a pipe of each waiting client's own, which is rung in the same way. They ring
every pipe that has a queue's number in its name, and remove any that nobody hears.
"""

from __future__ import annotations

import errno
import os
import secrets
import select
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path

from synmanager.backends.sqlite.file import LOCK, give_away, open_up
from synmanager.interrupts import is_from_handler

__all__ = ["Bell", "Bells"]

#: How the name of a queue's pipe begins, which stays when nobody hears it.
_SHARED = "queue-"

#: Nanoseconds after which no change of a directory bears the time of an earlier one.
_TICK = 100_000_000

#: How often a pipe is made that others remove.
_TRIES = 3


class Bell:
    """What one waiting thread hears by: the pipes of its queues, and one of its own.

    Attributes:
        heard: the queues that it was rung for and has not looked into yet. Others who wait for
            them sleep on.
    """

    def __init__(self) -> None:
        self.heard: set[int] = set()
        self._path: str | None = None
        self._shared: dict[int, int] = {}  # queues by their pipes
        # Both ends are ours: without a writer a pipe would report its end.
        self._ends: list[int] = []
        self._epoll = select.epoll() if hasattr(select, "epoll") else None

    def hear(self, directory: str, queues: Collection[int], mode: int) -> None:
        """Hear what rings for these queues."""
        try:
            for queue in queues:
                self._shared[_open_shared(directory, queue, mode)] = queue
        except PermissionError:  # another user's, who lets nobody else hear it
            while self._shared:
                os.close(self._shared.popitem()[0])
            self.hear_alone(directory, "-".join(map(str, queues)), mode)
            return
        self._ends.extend(os.pipe())
        for end in self._ends:
            os.set_blocking(end, False)
        if self._epoll is not None:
            self._epoll.register(self._ends[0], select.EPOLLIN)
            for end in self._shared:
                try:
                    self._epoll.register(end, select.EPOLLIN | select.EPOLLEXCLUSIVE)
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                    self._epoll.register(end, select.EPOLLIN)  # a kernel that wakes all of them

    def hear_alone(self, directory: str, log: str, mode: int) -> None:
        """Hear what rings for a log, as all others do who follow it."""
        unique = secrets.token_hex(8)
        # Under a hidden name until it is heard, lest it is taken for a dead one.
        self._path = os.path.join(directory, f".{unique}")
        os.mkfifo(self._path)
        os.chmod(self._path, mode)
        for flag in (os.O_RDONLY, os.O_WRONLY):
            self._ends.append(os.open(self._path, flag | os.O_NONBLOCK))
        if self._epoll is not None:
            self._epoll.register(self._ends[0], select.EPOLLIN)
        shown = os.path.join(directory, f"{unique}-{log}-")
        os.rename(self._path, shown)
        self._path = shown

    def wait(self, seconds: float) -> bool:
        """Wait until it rings or the time is over; whether it has rung, and nobody else answers."""
        until = time.monotonic() + seconds
        left = max(0.0, seconds)
        while not [end for end in self._ready(left) if self._answer(end)]:
            left = until - time.monotonic()
            if left <= 0:
                return False
        return True

    def _ready(self, seconds: float) -> list[int]:
        try:
            if self._epoll is not None:
                found = self._epoll.poll(seconds)
            else:  # then all are woken, of whom one finds something to read
                poll = select.poll()
                for end in (self._ends[0], *self._shared):
                    poll.register(end, select.POLLIN)
                found = poll.poll(seconds * 1000)
        except BaseException:  # a signal handler's; perhaps it was just being woken
            self.heard.update(self._shared.values())
            raise
        return [end for end, _ in found]

    def _answer(self, end: int) -> bool:
        """Read all that is in a pipe; whether there was something."""
        queue = self._shared.get(end)
        if queue is not None:
            self.heard.add(queue)  # before it is so: a signal may come at any time
        rung = False
        try:
            while len(os.read(end, 4096)) == 4096:
                rung = True
        except BlockingIOError:
            if not rung and queue is not None:
                self.heard.discard(queue)
            return rung
        return True

    def ring(self) -> None:
        """Wake up this one alone."""
        with suppress(OSError, IndexError):
            os.write(self._ends[1], b"!")

    def close(self) -> None:
        """Take it down. Idempotent."""
        if self._path is not None:
            with suppress(OSError):
                os.unlink(self._path)
        self.forget()

    def forget(self) -> None:
        """Close our ends and leave the name: it is another process's."""
        if self._epoll is not None:
            self._epoll.close()
        while self._ends:
            os.close(self._ends.pop())
        while self._shared:
            os.close(self._shared.popitem()[0])


class Bells:
    """The bells beside one file.

    Args:
        directory: where they hang.
        mode: permissions of a bell: whoever may write to the file may ring.
    """

    def __init__(self, directory: Path, mode: int) -> None:
        self._name = str(directory)
        self._mode = mode
        self._ours: set[Bell] = set()
        self._seen: tuple[int, list[str]] = (0, [])  # when the directory changed, what it held

    def hang(self, queues: Collection[int]) -> Bell | None:
        """Wait for these queues; None where that cannot be: then there is only looking."""
        return self._hang(lambda bell: bell.hear(self._name, queues, self._mode))

    def follow(self, log: str) -> Bell | None:
        """Wait for a log, as :meth:`hang` for queues."""
        return self._hang(lambda bell: bell.hear_alone(self._name, log, self._mode))

    def _hang(self, hear: Callable[[Bell], None]) -> Bell | None:
        bell = None
        try:
            bell = Bell()
            hear(bell)
        except BaseException as error:
            if bell is not None:
                bell.close()
            if not isinstance(error, OSError) or is_from_handler(error):
                raise
            return None
        self._ours.add(bell)
        return bell

    def take_down(self, bell: Bell) -> None:
        """End a wait; another one is woken for what it has heard and not answered."""
        self._ours.discard(bell)
        bell.close()
        if bell.heard:
            self.ring(bell.heard)

    def ring(self, queues: Iterable[int | str]) -> None:
        """Ring for these queues, or logs; take down what hears no more."""
        try:
            names = self._names()
            if names:
                wanted = [f"-{queue}-" for queue in queues]
                for name in names:
                    if "-" not in name or any(w in name for w in wanted):
                        self._ring(name)
        except OSError:
            return

    def _ring(self, name: str) -> None:
        path = os.path.join(self._name, name)
        try:
            end = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            # Nobody hears it. A pipe of one client will not be heard again.
            if error.errno == errno.ENXIO and not name.startswith(_SHARED):
                with suppress(OSError):
                    os.unlink(path)
            return
        try:
            os.write(end, b"!")
        except OSError:
            pass  # it is full: it has been rung often enough
        finally:
            os.close(end)

    def _names(self) -> list[str]:
        """The bells that hang, listed again only where the directory was changed since."""
        changed = os.stat(self._name).st_mtime_ns
        seen, names = self._seen
        if changed != seen:
            names = [name for name in os.listdir(self._name) if name[0] != "."]
            # The kernel's clock for this goes by milliseconds: what comes within the same tick
            # does not show.
            if time.time_ns() - changed > _TICK:
                self._seen = changed, names
        return names

    def ring_ours(self) -> None:
        """Wake up every thread of this client."""
        for bell in self._ours.copy():
            bell.ring()

    def sweep(self) -> None:
        """Take down what the killed left behind, and open to others what the file is open to."""
        with suppress(OSError):
            for name in os.listdir(self._name):
                if name[0] == "." and name != LOCK:
                    self._ring(name)
                elif name.startswith(_SHARED):
                    open_up(os.path.join(self._name, name), self._mode)

    def forget(self) -> None:
        """In the child after a fork: the bells are the parent's."""
        while self._ours:
            self._ours.pop().forget()


def _open_shared(directory: str, queue: int, mode: int) -> int:
    """Open the pipe of a queue, to be heard and, lest it reports its end, written to."""
    path = os.path.join(directory, f"{_SHARED}{queue}-")
    for _ in range(_TRIES):
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_NONBLOCK)
        # Nobody may find one that he may not open, or replace one that another one hears.
        hidden = os.path.join(directory, f".{secrets.token_hex(8)}")
        os.mkfifo(hidden)
        try:
            give_away(hidden, os.stat(directory))
            os.chmod(hidden, mode)
            with suppress(FileExistsError):
                os.link(hidden, path)
        finally:
            os.unlink(hidden)
    return os.open(path, os.O_RDWR | os.O_NONBLOCK)

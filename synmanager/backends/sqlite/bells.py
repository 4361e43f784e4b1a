"""Doorbells: how a waiting client learns at once that there may be something to take.

Each waiting thread hangs a bell into a directory beside the file, a named pipe called after the
queues that it waits for, by their numbers, or after a log of the journal; whoever has committed
something for one of them writes a byte into it.
A pipe, because a path to it may be long, and because one whose reader was killed says so. A bell
that is not heard is no harm: a waiting client looks every second whether the file was written to.
"""

from __future__ import annotations

import errno
import os
import secrets
import select
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from synmanager.backends.sqlite.file import LOCK

__all__ = ["Bell", "Bells"]

#: A name longer than this is cut to one that rings for every queue.
_LONGEST_NAME = 200

#: Nanoseconds after which no change of a directory bears the time of an earlier one.
_TICK = 100_000_000


class Bell:
    """One waiting thread's pipe. Both ends are ours: without a writer it would report its end."""

    def __init__(self, directory: Path, queues: Collection[int | str], mode: int) -> None:
        name = "-".join(("", *sorted(map(str, queues)), ""))
        if len(name) > _LONGEST_NAME:
            name = ""
        unique = secrets.token_hex(8)
        self._path = directory / f"{unique}{name}"
        # Under a hidden name until it is heard, lest it is taken for a dead one.
        hidden = directory / f".{unique}"
        self._ends: list[int] = []
        try:
            os.mkfifo(hidden)
            os.chmod(hidden, mode)
            self._ends.append(os.open(hidden, os.O_RDONLY | os.O_NONBLOCK))
            self._ends.append(os.open(hidden, os.O_WRONLY | os.O_NONBLOCK))
            os.rename(hidden, self._path)
        except BaseException:
            self._path = hidden
            self.close()
            raise

    def wait(self, seconds: float) -> bool:
        """Wait until it rings or the time is over; whether it has rung."""
        poll = select.poll()
        poll.register(self._ends[0], select.POLLIN)
        if not poll.poll(max(0, seconds) * 1000):
            return False
        with suppress(BlockingIOError):
            while len(os.read(self._ends[0], 4096)) == 4096:
                pass
        return True

    def ring(self) -> None:
        with suppress(OSError, IndexError):
            os.write(self._ends[1], b"!")

    def close(self) -> None:
        """Take it down. Idempotent."""
        with suppress(OSError):
            os.unlink(self._path)
        self.forget()

    def forget(self) -> None:
        """Close our ends and leave the name: it is another process's."""
        while self._ends:
            os.close(self._ends.pop())


class Bells:
    """The bells beside one file.

    Args:
        directory: where they hang.
        mode: permissions of a bell: whoever may write to the file may ring.
    """

    def __init__(self, directory: Path, mode: int) -> None:
        self._directory = directory
        self._name = str(directory)
        self._mode = mode
        self._ours: set[Bell] = set()
        self._seen: tuple[int, list[str]] = (0, [])  # when the directory changed, what it held

    def hang(self, queues: Collection[int | str]) -> Bell | None:
        """Hang one up for these queues; None where that cannot be: then there is only looking."""
        try:
            bell = Bell(self._directory, queues, self._mode)
        except OSError:
            return None
        self._ours.add(bell)
        return bell

    def take_down(self, bell: Bell) -> None:
        self._ours.discard(bell)
        bell.close()

    def ring(self, queues: Iterable[int | str]) -> None:
        """Ring for everybody who waits for one of these queues; take down what hears no more."""
        with suppress(OSError):
            names = self._names()
            if names:
                wanted = [f"-{queue}-" for queue in queues]
                for name in names:
                    if "-" not in name or any(w in name for w in wanted):
                        _ring(os.path.join(self._directory, name))

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
        for bell in tuple(self._ours):
            bell.ring()

    def sweep(self) -> None:
        """Take down what the killed left behind before it was heard."""
        with suppress(OSError):
            for name in os.listdir(self._directory):
                if name[0] == "." and name != LOCK:
                    _ring(os.path.join(self._directory, name))

    def forget(self) -> None:
        """In the child after a fork: the bells are the parent's."""
        while self._ours:
            self._ours.pop().forget()


def _ring(path: str) -> None:
    try:
        end = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nobody reads it, and nobody will
            with suppress(OSError):
                os.unlink(path)
        return
    try:
        os.write(end, b"!")
    except OSError:
        pass  # it is full: it has been rung often enough
    finally:
        os.close(end)

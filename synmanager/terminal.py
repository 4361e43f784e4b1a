"""Standard output and error of a command that somebody may have closed, or stopped reading."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

__all__ = ["HANGUP", "Bar", "Unbreakable", "complain", "flush", "open_what_is_closed"]

#: What a shell reports of a tool whose reader has left, as ``head`` does.
HANGUP = 128 + signal.SIGPIPE


def open_what_is_closed() -> None:
    """Let no file or socket of ours become standard input, output or error.

    Whatever is opened takes the lowest number that is free: after ``>&-`` that would be a
    connection to the broker, and what is printed would go there.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # for print(), file=None would be the other one
            nowhere = os.open(os.devnull, os.O_WRONLY)
            setattr(sys, name, os.fdopen(nowhere, "w", closefd=False))


class Unbreakable:
    """Standard error, within a ``with`` block, that takes what nobody can read for written.

    Whoever writes there (a parser, a logger, a warning) has an error to tell, and that it could
    not be told must not take its place.
    """

    def __enter__(self) -> Unbreakable:
        self._stream = sys.stderr
        sys.stderr = self
        return self

    def __exit__(self, *error: object) -> None:
        sys.stderr = self._stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            _forget(2)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            _forget(2)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def flush() -> None:
    """Write out what was printed, and if that fails, forget it, so that the end is a quiet one.

    Called within :class:`Unbreakable`.

    Raises:
        OSError: it cannot be written; ``BrokenPipeError`` where nobody reads any longer.
    """
    sys.stderr.flush()
    try:
        sys.stdout.flush()
    except OSError:
        _forget(1)
        raise


def complain(text: str) -> None:
    """Print a line on standard error, if anybody can read it."""
    with Unbreakable():
        print(text, file=sys.stderr, flush=True)


class Bar:
    """A bar on standard error that shows how far something is, if that is a terminal."""

    def __init__(self) -> None:
        try:
            self._is_shown = sys.stderr.isatty()
        except (AttributeError, ValueError):  # there is none, or it is closed
            self._is_shown = False

    def show(self, done: int, total: int, text: str = "") -> None:
        bar = "#" * (40 * done // max(total, 1))
        self._write(f"\r[{bar:<40}] {done:,}/{total:,} {text}\x1b[K")

    def end(self) -> None:
        self._write("\n")

    def _write(self, text: str) -> None:
        if self._is_shown:
            try:
                sys.stderr.write(text)
                sys.stderr.flush()
            except (OSError, ValueError):
                self._is_shown = False


def _forget(number: int) -> None:
    """Let the interpreter, which flushes at its end, write what is left to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)

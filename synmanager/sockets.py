"""Sockets in a process that closes files, as daemons do.

One that has closed standard input, output and error gives their numbers to the next files that it
opens. Native code that prints then writes into whatever has them, and that must not be a socket
that a broker listens to.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["above_stdio", "identity", "stdio_taken"]

#: The lowest number that nobody prints to.
_FIRST = 3


def above_stdio(sock: socket.socket) -> socket.socket:
    """Return a socket as it is, or moved, if it has one of the numbers 0 to 2.

    Args:
        sock: without TLS on it yet. If it is moved it is closed, but not shut down.

    Raises:
        OSError: no number is free; ``sock`` is closed.
    """
    if not 0 <= sock.fileno() < _FIRST:
        return sock
    with sock:
        number = fcntl.fcntl(sock.fileno(), fcntl.F_DUPFD_CLOEXEC, _FIRST)
        moved = socket.socket(sock.family, sock.type, sock.proto, fileno=number)
        moved.settimeout(sock.gettimeout())
        return moved


def identity(sock: socket.socket) -> tuple[int, int] | None:
    """What a socket's number stands for at present; None if for nothing.

    If it differs from what it was, somebody has closed the number, as daemons close all that they
    find, and perhaps opened another file under it. That is not the socket's owner's to touch.
    """
    try:
        status = os.fstat(sock.fileno())
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def stdio_taken() -> Iterator[None]:
    """See to it that nothing that is opened in here gets one of the numbers 0 to 2.

    For libraries that open their sockets themselves.
    """
    taken = []
    try:
        while (number := os.open(os.devnull, os.O_RDWR)) < _FIRST:
            taken.append(number)
        os.close(number)
        yield
    finally:
        for number in taken:
            os.close(number)

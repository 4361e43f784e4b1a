"""Whoever answers where RabbitMQ was expected."""

from __future__ import annotations

import socket

from synmanager.errors import AccessRefused
from synmanager.interrupts import is_from_handler
from synmanager.sockets import above_stdio

__all__ = ["ask", "refuse_stranger"]

#: What others begin an answer with, and how to say it.
_PROTOCOLS = {
    b"HTTP/": "HTTP",
    b"-ERR": "Redis",
    b"-NOAUTH": "Redis",
    b"-NOPERM": "Redis",
    b"-DENIED": "Redis",
    b"-LOADING": "Redis",
    b"\x15\x03": "TLS, so that the URL should begin with amqps://",
    b"SSH-": "SSH",
    b"220 ": "SMTP or FTP",
}

#: A line that HTTP and Redis both answer, where AMQP's greeting has no end for them.
_QUESTION = b"GET / HTTP/1.0\r\n\r\n"


def ask(host: str, port: int, seconds: float) -> bytes:
    """Say something on a connection of its own that others than RabbitMQ answer as well.

    Returns:
        the beginning of the answer; b"" for none.
    """
    try:
        with above_stdio(socket.create_connection((host, port), seconds)) as sock:
            sock.settimeout(seconds)
            sock.sendall(_QUESTION)
            return sock.recv(100)
    except OSError as error:
        if is_from_handler(error):
            raise
        return b""


def refuse_stranger(answer: bytes, where: str) -> None:
    """Raise if an answer is another protocol's.

    Raises:
        AccessRefused: saying which.
    """
    for beginning, protocol in _PROTOCOLS.items():
        if answer.startswith(beginning):
            raise AccessRefused(
                f"there is no RabbitMQ at {where}: it speaks {protocol} ({answer[:40]!r})"
            )

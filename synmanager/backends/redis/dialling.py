"""redis-py's connections, with a way of their own to the server.

redis-py makes its socket where nobody can reach it. Here, close() in another thread ends an attempt
to connect; no socket has a number that programs print to; and what a signal handler raises is
neither taken for the refusal of one of the server's addresses, nor for a wait that is over.
"""

from __future__ import annotations

import select
import socket
import time
from contextlib import suppress
from typing import Any

import redis

from synmanager.backends.redis.faults import RefusedByGuide, callers_own, is_refusal
from synmanager.backends.redis.guides import Guide, Guides
from synmanager.backends.urls import written_hosts
from synmanager.interrupts import is_from_handler
from synmanager.sockets import above_stdio

__all__ = ["FollowedPlain", "FollowedTls", "Local", "Plain", "Tls", "hang_up"]


class _Reachable(redis.connection.AbstractConnection):
    """A connection whose socket is known from the beginning.

    Attributes:
        dialling: the socket until it is connected, and has its TLS.
    """

    dialling: socket.socket | None = None

    def connect(self) -> None:
        try:
            super().connect()  # type: ignore[no-untyped-call]
        finally:
            dialled, self.dialling = self.dialling, None
            # What has become the connection's has let go of its number, or is the very socket.
            if dialled is not None and dialled is not self._sock:
                dialled.close()

    def can_read(self, timeout: float = 0) -> bool:
        # redis-py takes a handler's TimeoutError for its socket's, which is to say: nothing yet.
        # So only what need not be waited for is left to it.
        if timeout > 0 and not super().can_read(0):
            sock = self._sock
            number = -1 if sock is None else sock.fileno()
            if number >= 0:  # else another thread has closed it
                readable = select.poll()
                readable.register(number, select.POLLIN)
                readable.poll(timeout * 1000)
        return bool(super().can_read(0))

    def _dial(self, sock: socket.socket, address: Any) -> socket.socket:
        self.dialling = sock
        try:
            sock = self.dialling = above_stdio(sock)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            sock.settimeout(self.socket_connect_timeout)
            sock.connect(address)
            sock.settimeout(self.socket_timeout)
        except BaseException:
            sock.close()
            raise
        return sock


class Plain(_Reachable, redis.Connection):
    """A connection over TCP."""

    def _connect(self) -> socket.socket:
        # In the place of redis-py's, which has no public name for it.
        failure: OSError = OSError("its name has no address")
        for family, kind, proto, _, address in socket.getaddrinfo(
            self.host, self.port, 0, socket.SOCK_STREAM
        ):
            try:
                return self._dial(socket.socket(family, kind, proto), address)
            except OSError as error:
                if is_from_handler(error):
                    raise
                failure = error
        raise failure


class Tls(redis.SSLConnection, Plain):
    """A connection over TLS: redis-py wraps what :class:`Plain` connects."""


class Local(_Reachable, redis.UnixDomainSocketConnection):
    """A connection to a socket in the file system."""

    def _connect(self) -> socket.socket:
        return self._dial(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), self.path)


class _Followed(redis.Connection):
    """A connection to whichever server is the primary, until that is another one.

    A server that is frozen, or cut off, ends no connection. So who gets no answer asks in between
    whether to wait on.

    Args:
        guides: tell the primary's host and port.
        silence: seconds after which it is asked whether the server is the primary yet.
    """

    _guide: Guide | None = None  # who was asked about a server that is silent
    _in_doubt = False  # whether it has been silent since

    def __init__(self, *, guides: Guides, silence: float, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]
        self._guides = guides
        self._silence = silence
        self._certain = 0.0  # until when nobody is asked

    def connect(self) -> None:
        try:
            self.host, self.port = self._guides.locate()
        except redis.RedisError as error:
            if is_refusal(error):
                raise RefusedByGuide(str(error)) from error
            raise
        super().connect()  # type: ignore[no-untyped-call]

    def send_packed_command(self, *args: Any, **options: Any) -> None:
        self._certain = time.monotonic() + self._silence
        self._in_doubt = False
        super().send_packed_command(*args, **options)  # type: ignore[no-untyped-call]

    def can_read(self, timeout: float = 0) -> bool:
        if super().can_read(timeout):
            return True
        if time.monotonic() >= self._certain:
            self._look()
            self._certain = time.monotonic() + self._silence
        return False

    def disconnect(self, *args: Any) -> None:
        self._leave_guide()
        super().disconnect(*args)  # type: ignore[no-untyped-call]

    def _leave_guide(self) -> None:
        guide, self._guide = self._guide, None
        if guide is not None:
            guide.connection.disconnect()

    def _look(self) -> None:
        if self._in_doubt:  # perhaps another one knows more
            self._leave_guide()
        self._in_doubt = True
        guide, self._guide = self._guide, None
        try:
            place, self._guide = self._guides.locate_again(guide)
        except (redis.RedisError, OSError) as error:
            if callers_own(error, None):
                raise
            return
        if place != (self.host, self.port):
            raise redis.ConnectionError(f"the primary is now at {written_hosts([place])}")

    def read_response(self, *args: Any, **options: Any) -> Any:
        patience = float(self.socket_timeout or 0)
        give_up = time.monotonic() + patience
        while not self.can_read(min(self._silence, patience)):
            if time.monotonic() >= give_up:
                raise redis.TimeoutError(f"no answer for {patience:g} s")
        return super().read_response(*args, **options)


class FollowedPlain(_Followed, Plain):
    """Over TCP."""


class FollowedTls(_Followed, Tls):
    """Over TLS."""


def hang_up(connection: Any) -> None:
    """End whatever another thread does with a connection; only that thread may touch the rest."""
    # redis-py has no public name for its own.
    for sock in (connection._sock, getattr(connection, "dialling", None)):
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

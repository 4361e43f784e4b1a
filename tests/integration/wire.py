"""A proxy that counts what goes over the wire, in AMQP's methods and Redis' commands."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from contextlib import suppress
from types import TracebackType
from urllib.parse import urlsplit

__all__ = ["Wire"]

_AMQP_METHODS = {
    (20, 10): "channel.open",
    (50, 10): "queue.declare",
    (60, 10): "basic.qos",
    (60, 20): "basic.consume",
    (60, 30): "basic.cancel",
    (60, 40): "basic.publish",
    (60, 60): "basic.deliver",
    (60, 70): "basic.get",
    (60, 71): "basic.get-ok",
    (60, 72): "basic.get-empty",
    (60, 80): "basic.ack",
    (60, 120): "basic.nack",
    (85, 10): "confirm.select",
}
_METHOD_FRAME = 1


class Wire:
    """A TCP proxy before a broker; clients use :attr:`url`. A context manager.

    Attributes:
        url: the broker's, with the proxy's port.
        connections: how many clients have made.
        sent: what clients sent so far, by AMQP method or Redis command, but for the journal.
        journal: what they sent for the journal.
        received: what the broker sent so far, by AMQP method; Redis' replies are not counted.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname or "localhost", parts.port or 0)
        self._counts = _count_resp if parts.scheme == "redis" else _count_amqp
        self.connections = 0
        self.sent: Counter[str] = Counter()
        self.journal: Counter[str] = Counter()
        self.received: Counter[str] = Counter()
        self._replies = threading.Event()
        self._replies.set()
        self._changed = threading.Condition()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        login, at, _ = parts.netloc.rpartition("@")
        port = self._listener.getsockname()[1]
        self.url = parts._replace(netloc=f"{login}{at}127.0.0.1:{port}").geturl()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._replies.set()
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """End all connections; new ones may come."""
        for end in self._sockets:
            with suppress(OSError):  # it has ended by itself
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._sockets.clear()

    def hold_replies(self) -> None:
        """Keep back what the broker says, until :meth:`release_replies`."""
        self._replies.clear()

    def release_replies(self) -> None:
        self._replies.set()

    def say(self, data: bytes) -> None:
        """Send something to every client, as if the broker had."""
        for client in self._sockets[::2]:
            client.sendall(data)

    def wait_until_sent(self, what: str, count: int, within: float = 30.0) -> None:
        """Wait until clients have sent so many.

        Raises:
            AssertionError: they have not.
        """
        with self._changed:
            done = self._changed.wait_for(lambda: self.sent[what] >= count, within)
        assert done, f"{self.sent[what]} x {what} sent, not {count}"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            self.connections += 1
            server = socket.create_connection(self._target)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets += [client, server]
            always = threading.Event()
            always.set()
            for source, target, tally, gate in (
                (client, server, self.sent, always),
                (server, client, self.received, self._replies),
            ):
                threading.Thread(
                    target=self._pump, args=(source, target, tally, gate), daemon=True
                ).start()

    def _pump(
        self,
        source: socket.socket,
        target: socket.socket,
        tally: Counter[str],
        gate: threading.Event,
    ) -> None:
        unread = bytearray()
        journal = self.journal if tally is self.sent else Counter()
        channels: set[int] = set()
        try:
            while chunk := source.recv(65536):
                unread += chunk
                with self._changed:
                    self._counts(unread, tally, journal, channels)
                    self._changed.notify_all()
                gate.wait()
                target.sendall(chunk)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def _count_amqp(
    unread: bytearray, tally: Counter[str], journal: Counter[str], channels: set[int]
) -> None:
    """Count the whole method frames at the beginning, and remove every whole frame.

    Args:
        channels: those that read a log of the journal.
    """
    if unread.startswith(b"AMQP"):
        del unread[:8]
    while len(unread) >= 7:
        kind, size = unread[0], int.from_bytes(unread[3:7], "big")
        if len(unread) < size + 8:
            return
        if kind == _METHOD_FRAME:
            method = (int.from_bytes(unread[7:9], "big"), int.from_bytes(unread[9:11], "big"))
            name = _AMQP_METHODS.get(method, "other")
            channel = int.from_bytes(unread[1:3], "big")
            is_journal = b"synmanager.journal." in unread[7 : size + 7]
            if name == "channel.open":
                channels.discard(channel)
            elif name == "basic.consume" and is_journal:
                channels.add(channel)
            (journal if is_journal or channel in channels else tally)[name] += 1
        del unread[: size + 8]


def _count_resp(
    unread: bytearray, tally: Counter[str], journal: Counter[str], channels: set[int]
) -> None:
    """Count the whole commands (arrays of bulk strings) at the beginning, and remove them.

    What a server sends is not read: it is no such array, or is, and then nobody looks.
    """
    while unread.startswith(b"*"):
        words, place = _line(unread, 1)
        name = b""
        for word in range(words):
            if place < 0 or place >= len(unread):
                return
            size, place = _line(unread, place + 1)
            if place < 0 or len(unread) < place + size + 2:
                return
            if word == 0:
                name = bytes(unread[place : place + size])
            place += size + 2
        if place < 0:
            return
        is_journal = b":journal:" in unread[:place]
        (journal if is_journal else tally)[name.decode().lower()] += 1
        del unread[:place]


def _line(unread: bytearray, start: int) -> tuple[int, int]:
    """The number that begins here, and where its line ends; -1 for a line that is not whole."""
    end = unread.find(b"\r\n", start)
    if end < 0:
        return 0, -1
    return int(unread[start:end]), end + 2

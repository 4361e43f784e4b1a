"""One connection, and one question at a time, each answered in bounded time.

libpq is driven without blocking, so that a wait can be bounded, and ended from another thread by
shutting the socket down. Whatever tears a question up in the middle, an interruption included,
costs the connection: the answer to it would be taken for that to the next.
"""

from __future__ import annotations

import math
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from psycopg import Error, pq

from synmanager.errors import BrokerUnavailable, TopologyError
from synmanager.sockets import stdio_taken
from synmanager_postgresql.faults import of_answer, of_connecting

__all__ = ["Parameter", "Row", "Wire", "array"]

#: How a value goes out: a text, bytes as they are (for ``bytea`` and :func:`array`), or NULL.
Parameter = str | bytes | None

#: How a row comes in.
Row = Sequence[bytes | None]

_GOOD = (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK)


def array(values: Sequence[Parameter], *, of_bytes: bool = False) -> bytes:
    """An array of texts, or of ``bytea``, in PostgreSQL's binary form."""
    parts = [struct.pack("!iii", 1, 1, 17 if of_bytes else 25)]
    parts.append(struct.pack("!ii", len(values), 1))
    for value in values:
        data = value.encode() if isinstance(value, str) else value
        parts.append(struct.pack("!i", -1) if data is None else struct.pack("!i", len(data)))
        parts.append(data or b"")
    return b"".join(parts)


class Wire:
    """A connection that is open.

    Args:
        conninfo: libpq's.
        where: the server, as errors name it.
        timeout: seconds, for connecting.

    Attributes:
        timeout: seconds, for each answer.
        heard: the channels that it listens to.
        sent: whether the question under way has left, and the server may have acted on it.

    Raises:
        BrokerUnavailable, AccessRefused: there is none.
        TopologyError: the database cannot hold every text.
    """

    def __init__(self, conninfo: bytes, where: str, timeout: float) -> None:
        self._where = where
        self.timeout = timeout
        self.heard: frozenset[str] = frozenset()
        self.sent = False
        self._closing = threading.Lock()
        deadline = time.monotonic() + timeout
        with stdio_taken():
            self._libpq = pq.PGconn.connect_start(conninfo)
        try:
            self._connect(deadline)
        except BaseException:
            self._libpq.finish()
            raise
        self._libpq.nonblocking = 1

    def _connect(self, deadline: float) -> None:
        libpq = self._libpq
        state: int = pq.PollingStatus.WRITING
        while libpq.status != pq.ConnStatus.BAD:
            if state == pq.PollingStatus.OK:
                encoding = libpq.parameter_status(b"server_encoding")
                if encoding != b"UTF8":
                    raise TopologyError(
                        f"the database at {self._where} is encoded in {(encoding or b'').decode()}"
                        "; jobs need one in UTF8"
                    )
                return
            if state == pq.PollingStatus.FAILED:
                break
            event = select.POLLIN if state == pq.PollingStatus.READING else select.POLLOUT
            if not self._poll(event, deadline):
                raise BrokerUnavailable(f"{self._where} does not answer")
            with stdio_taken():  # the next address is tried on a new socket
                state = libpq.connect_poll()
        words = libpq.get_error_message()
        raise of_connecting(self._where, words, needs_password=libpq.needs_password)

    # Questions

    def ask(self, question: str, *parameters: Parameter, timeout: float | None = None) -> list[Row]:
        """Ask one question, which is a transaction of its own.

        Args:
            timeout: seconds, instead of the connection's.

        Raises:
            BrokerUnavailable: no answer, or one that nobody knows; the wire is of no use any
                more, unless it is a ``NotDone``.
            SynmanagerError: what the server says to it, see ``faults``.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        values = [value.encode() if isinstance(value, str) else value for value in parameters]
        formats = [
            pq.Format.BINARY if isinstance(value, bytes) else pq.Format.TEXT for value in parameters
        ]
        self.sent = False
        with self._whole():
            if values:
                self._libpq.send_query_params(question.encode(), values, param_formats=formats)
            else:  # several statements in one
                self._libpq.send_query(question.encode())
            self.sent = True
            rows, code, words = self._answer(deadline)
        if code is None:
            return rows
        error = of_answer(self._where, code, words)
        if error is None or not self.is_open:
            self.close()
            error = BrokerUnavailable(f"{self._where} says: {words} ({code})")
        raise error

    def _answer(self, deadline: float) -> tuple[list[Row], str | None, str]:
        """The rows of the last statement; and the code and the words of what went wrong."""
        self._flush(deadline)
        rows: list[Row] = []
        code, words = None, ""
        while True:
            while self._libpq.is_busy():
                if not self._poll(select.POLLIN, deadline):
                    raise BrokerUnavailable(f"{self._where} has not answered in time")
                self._libpq.consume_input()
            result = self._libpq.get_result()
            if result is None:
                return rows, code, words
            if result.status in _GOOD:
                rows = [
                    [result.get_value(number, column) for column in range(result.nfields)]
                    for number in range(result.ntuples)
                ]
            elif code is None:
                code = _text(result.error_field(pq.DiagnosticField.SQLSTATE))
                words = _text(result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY))
                words = words or result.get_error_message()
            result.clear()

    def _flush(self, deadline: float) -> None:
        # While it sends, the server may have to get rid of something itself.
        while self._libpq.flush():
            if not self._poll(select.POLLIN | select.POLLOUT, deadline):
                raise BrokerUnavailable(f"{self._where} takes nothing any more")
            self._libpq.consume_input()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Close what is left in the middle of something."""
        whole = False
        try:
            yield
            whole = True
        except Error as error:
            raise BrokerUnavailable(
                f"the connection to {self._where} is lost: {' '.join(str(error).split())[:500]}"
            ) from None
        finally:
            if not whole:
                self.close()

    # Waiting

    def wait_for_call(self, seconds: float) -> None:
        """Return when a channel is called, or after so many seconds.

        Raises:
            BrokerUnavailable: the connection has ended.
        """
        deadline = time.monotonic() + seconds
        with self._whole():
            while not self.forget_calls() and self._poll(select.POLLIN, deadline):
                self._libpq.consume_input()

    def forget_calls(self) -> bool:
        """Whether there were calls so far."""
        called = False
        while self._libpq.notifies() is not None:
            called = True
        return called

    def _poll(self, events: int, deadline: float) -> bool:
        poll = select.poll()
        poll.register(self._libpq.socket, events)
        left = max(0.0, deadline - time.monotonic())
        return bool(poll.poll(math.ceil(min(left, 86_400.0) * 1000)))

    # The end

    @property
    def is_open(self) -> bool:
        return bool(self._libpq.status == pq.ConnStatus.OK)

    def close(self) -> None:
        """Disconnect. For whoever uses it."""
        with self._closing:
            self._libpq.finish()

    def shut_down(self) -> None:
        """End the connection under whoever uses it, who then closes it."""
        with self._closing, suppress(OSError, Error):
            number = os.dup(self._libpq.socket)
            with socket.socket(fileno=number) as shared:
                shared.shutdown(socket.SHUT_RDWR)


def _text(field: bytes | None) -> str:
    return (field or b"").decode("utf-8", "replace")

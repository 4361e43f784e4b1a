"""A pika connection that does no I/O by itself: whoever waits for something does it.

pika's own adapters bring an event loop, which needs a thread that runs it, and two thread switches
for every call. Here a thread that waits for a reply reads the socket itself. This is a pika
adapter like its others: it gives ``pika.connection.Connection`` a stream, timers, and a way to
emit data, and leaves the protocol to it.
"""

from __future__ import annotations

import math
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from heapq import heappop, heappush
from itertools import count
from typing import Any

import pika
import pika.connection
import pika.exceptions
import pika.frame
import pika.spec

from synmanager.backends.rabbitmq.channel import GreedyChannel
from synmanager.backends.rabbitmq.frames import read
from synmanager.backends.rabbitmq.properties import parse

__all__ = ["Wire"]

#: Bytes. pika cuts each frame off the front of what was read, which is slow for much of it.
_CHUNK = 32_768

#: What a non-blocking socket says when it cannot go on now.
_LATER = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class _Timer:
    """A callback that is due at a moment of the monotonic clock."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback


class Wire(pika.connection.Connection):  # type: ignore[misc]
    """An AMQP connection over a socket that is connected already.

    Its caller sees to it that only one thread at a time is in here; ``poll`` alone may run beside
    another method, and ``wake`` at any time.

    Args:
        parameters: pika's.
        sock: connected; with TLS already on it, if that is wanted. It is owned from now on.
        silence: seconds without a byte from the broker after which the connection is dead.

    Attributes:
        ended: why the connection is over; None while it is not.
        blocked: why the broker does not read what we publish at present; None if it does.
    """

    def __init__(
        self, parameters: pika.connection.Parameters, sock: socket.socket, silence: float
    ) -> None:
        self.ended: BaseException | None = None
        self.blocked: str | None = None
        self._sock = sock
        self._sock_fd = sock.fileno()
        self._unsent: list[bytes | memoryview] = []
        self._can_linger = False
        self._timers: list[tuple[float, int, _Timer]] = []
        self._sequence = count()
        self._waker, self._wake = socket.socketpair()
        self._waker.setblocking(False)
        self._wake.setblocking(False)
        sock.setblocking(False)
        self._poller = select.poll()
        self._poller.register(sock, select.POLLIN)
        self._poller.register(self._waker, select.POLLIN)
        self._watches_writability = False
        self._disposed = False
        super().__init__(
            parameters,
            on_open_error_callback=self._note_end,
            on_close_callback=self._note_end,
            internal_connection_workflow=False,
        )
        self.add_on_connection_blocked_callback(self._note_blocked)
        self.add_on_connection_unblocked_callback(self._note_unblocked)
        self._silence = silence
        self._heard = time.monotonic()
        self._look_for_silence()
        self._on_stream_connected()

    @property
    def next_timer(self) -> float:
        """When the next timer is due, by the monotonic clock; infinity for never."""
        return self._timers[0][0] if self._timers else math.inf

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    def poll(self, seconds: float) -> bool:
        """Wait until there is something to :meth:`process`, or :meth:`wake` is called.

        Returns:
            whether something has arrived.
        """
        if isinstance(self._sock, ssl.SSLSocket) and self._sock.pending():
            return True
        arrived = False
        for fd, event in self._poller.poll(math.ceil(max(seconds, 0.0) * 1000)):
            if fd == self._sock_fd:
                arrived = event != select.POLLOUT
            else:
                with suppress(BlockingIOError):
                    self._waker.recv(4096)
        return arrived

    def wake(self) -> None:
        """End a :meth:`poll` of another thread."""
        with suppress(OSError):  # full, which wakes as well, or disposed of
            self._wake.send(b"!")

    def process(self, *, arrived: bool) -> None:
        """Handle what has arrived, if anything, and what is due; send what there is to send."""
        if arrived:
            self._receive()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heappop(self._timers)[2]
            if timer.callback is not None:
                timer.callback()
        self.flush()

    def flush(self, *, linger: bool = False) -> None:
        """Send what there is to send, as far as the socket takes it at once.

        Args:
            linger: if all of it can, let the kernel keep it for what comes next, for a fifth of a
                second at most. It leaves even if this process dies meanwhile.
        """
        linger = linger and self._can_linger and not isinstance(self._sock, ssl.SSLSocket)
        flags = socket.MSG_MORE if linger else 0
        while self._unsent and self.ended is None:
            # One piece that is left of a large one is not copied again for each part of it.
            whole = self._unsent[0] if len(self._unsent) == 1 else b"".join(self._unsent)
            data = memoryview(whole)
            try:
                sent = self._sock.send(data, flags)
            except _LATER:
                sent = 0
            except OSError as error:
                self._lose(error)
                return
            self._unsent = [data[sent:]] if sent < len(data) else []
            if not sent:
                break
        if bool(self._unsent) != self._watches_writability and self.ended is None:
            self._watches_writability = bool(self._unsent)
            extra = select.POLLOUT if self._unsent else 0
            self._poller.modify(self._sock, select.POLLIN | extra)

    def emit(self, data: bytes, *, can_linger: bool = False) -> None:
        """Put whole frames on the way, past pika's own encoding.

        Args:
            can_linger: it has no answer that anybody would wait for.
        """
        self._can_linger = can_linger and (self._can_linger or not self._unsent)
        self._unsent.append(data)

    def abort(self, reason: str) -> None:
        """End the connection without a word to the broker."""
        self._end(pika.exceptions.AMQPConnectionError(reason))

    def dispose(self) -> None:
        """Free the sockets of a connection that has ended; nobody may be in :meth:`poll`."""
        if not self._disposed:
            self._disposed = True
            self._sock.close()
            self._waker.close()
            self._wake.close()

    # What pika asks of an adapter.

    def _adapter_call_later(self, delay: float, callback: Callable[[], None]) -> _Timer:
        timer = _Timer(time.monotonic() + delay, callback)
        heappush(self._timers, (timer.when, next(self._sequence), timer))
        return timer

    def _adapter_remove_timeout(self, timeout_id: Any) -> None:
        timeout_id.callback = None

    def _adapter_add_callback_threadsafe(self, callback: Callable[..., Any]) -> None:
        raise NotImplementedError("the caller's lock takes its place")

    def _adapter_connect_stream(self) -> None:
        raise NotImplementedError("the socket is connected beforehand")

    def _adapter_disconnect_stream(self) -> None:
        self._adapter_call_later(0, lambda: self._end(None))

    def _adapter_emit_data(self, data: bytes) -> None:
        self.emit(data)

    def _create_channel(self, channel_number: int, on_open_callback: Any) -> GreedyChannel:
        return GreedyChannel(self, channel_number, on_open_callback)

    # What happens to the stream.

    def _receive(self) -> None:
        while self.ended is None:
            try:
                data = self._sock.recv(_CHUNK)
            except _LATER:
                return
            except OSError as error:
                self._lose(error)
                return
            if not data:
                self._lose(ConnectionResetError("the broker closed the connection"))
                return
            self._heard = time.monotonic()
            try:
                self._on_data_available(data)
            except pika.exceptions.AMQPError as error:  # nonsense, such as another protocol
                self._end(error)
            except Exception as error:
                self._end(pika.exceptions.AMQPConnectionError(f"pika failed: {error!r}"))
            if len(data) < _CHUNK and not isinstance(self._sock, ssl.SSLSocket):
                return  # one more call would say the same

    def _on_data_available(self, data_in: bytes) -> None:
        end = 0
        if not self._frame_buffer:  # pika is not in the middle of a frame
            while (found := read(data_in, end)) and found[1] in self._channels:
                value, channel, end = found
                self._channels[channel].take(value)
            self.bytes_received += end
        if end < len(data_in):
            super()._on_data_available(data_in[end:])

    def _read_frame(self) -> Any:
        """Read a frame; also one whose properties pika cannot read, as anybody may send them."""
        try:
            return super()._read_frame()
        except pika.exceptions.AMQPError:
            raise
        except Exception:
            kind, channel, size = struct.unpack_from(">BHL", self._frame_buffer)
            if kind != pika.spec.FRAME_HEADER:
                raise
            (body_size,) = struct.unpack_from(">xxxxQ", self._frame_buffer, 7)
            properties = parse(self._frame_buffer[7 + 12 : 7 + size])
            return 7 + size + 1, pika.frame.Header(channel, body_size, properties)

    def _look_for_silence(self) -> None:
        silent = time.monotonic() - self._heard
        if silent > self._silence:
            self._end(pika.exceptions.AMQPHeartbeatTimeout(f"not a byte for {silent:.1f} s"))
        else:
            self._adapter_call_later(self._silence / 12, self._look_for_silence)

    def _lose(self, error: OSError) -> None:
        self._end(pika.exceptions.StreamLostError(str(error), error))

    def _end(self, error: Exception | None) -> None:
        if self.ended is None:
            # Wakes whoever polls it. It is closed later: the number of a closed socket is given
            # to the next one, and the poller would watch that.
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
            # pika guesses what an end during the login means, and takes a cut for a refusal.
            self.ended = error or self._error
            self._on_stream_terminated(error)
            self._timers.clear()

    def _note_end(self, _: object, error: BaseException) -> None:
        """pika raises the error of a connection that does not open, unless somebody takes it."""

    def _note_blocked(self, _: object, frame: Any) -> None:
        self.blocked = str(frame.method.reason) or "low on resources"

    def _note_unblocked(self, _: object, frame: Any) -> None:
        self.blocked = None

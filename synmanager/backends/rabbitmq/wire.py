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
from heapq import heappop, heappush
from itertools import count
from typing import Any

import pika
import pika.connection
import pika.exceptions
import pika.frame
import pika.spec

from synmanager.backends.rabbitmq.channel import GreedyChannel
from synmanager.backends.rabbitmq.properties import parse
from synmanager.interrupts import is_from_handler
from synmanager.sockets import above_stdio, identity

__all__ = ["Wire"]

#: Bytes. pika cuts each frame off the front of what was read, which is slow for much of it.
_CHUNK = 32_768

#: What a non-blocking socket says when it cannot go on now.
_LATER = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

_KINDS = {
    pika.spec.FRAME_METHOD,
    pika.spec.FRAME_HEADER,
    pika.spec.FRAME_BODY,
    pika.spec.FRAME_HEARTBEAT,
}

#: Type, channel and size of a frame; its end.
_HEAD, _END = struct.Struct(">BHL"), 1


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

    What arrives and is not AMQP, or is nobody's to expect, ends it: whatever comes after that
    could be taken for the answer to something else.

    Args:
        parameters: pika's.
        sock: connected; with TLS already on it, if that is wanted. It is owned from now on.
        silence: seconds without a byte from the broker after which the connection is dead.

    Attributes:
        ended: why the connection is over; None while it is not.
        blocked: why the broker does not read what we publish at present; None if it does.
        is_silent: whether nothing has ever arrived.
        heard: when something did, by the monotonic clock.
    """

    def __init__(
        self, parameters: pika.connection.Parameters, sock: socket.socket, silence: float
    ) -> None:
        self.ended: BaseException | None = None
        self.blocked: str | None = None
        self.is_silent = True
        self._sock = sock
        self._unsent: list[bytes | memoryview] = []
        self._can_linger = False
        self._timers: list[tuple[float, int, _Timer]] = []
        self._sequence = count()
        self._waker, self._wake = map(above_stdio, socket.socketpair())
        self._identities = {each: identity(each) for each in (sock, self._waker, self._wake)}
        self._disposed = False
        self._waker.setblocking(False)
        self._wake.setblocking(False)
        sock.setblocking(False)
        self._sock_fd = sock.fileno()
        self._poller = select.poll()
        self._poller.register(sock, select.POLLIN)
        self._poller.register(self._waker, select.POLLIN)
        self._watches_writability = False
        super().__init__(
            parameters,
            on_open_error_callback=self._note_end,
            on_close_callback=self._note_end,
            internal_connection_workflow=False,
        )
        self.add_on_connection_blocked_callback(self._note_blocked)
        self.add_on_connection_unblocked_callback(self._note_unblocked)
        self._silence = silence
        self.heard = time.monotonic()
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
            elif self._is_ours(self._waker):
                self._waker.recv(4096)
            else:
                arrived = True  # and then it is noticed that all of it is closed
        return arrived

    def wake(self) -> None:
        """End a :meth:`poll` of another thread."""
        try:
            if self._is_ours(self._wake):
                self._wake.send(b"!")
        except OSError as error:  # full, which wakes as well, or disposed of
            if is_from_handler(error):
                raise

    def process(self, *, arrived: bool) -> None:
        """Handle what has arrived, if anything, and what is due; send what there is to send."""
        if arrived:
            self._receive()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heappop(self._timers)[2]
            if timer.callback is not None:
                self._guard(timer.callback)
        self.flush()

    def flush(self, *, linger: bool = False) -> None:
        """Send what there is to send, as far as the socket takes it at once.

        Args:
            linger: if all of it can, let the kernel keep it for what comes next, for a fifth of a
                second at most. It leaves even if this process dies meanwhile.
        """
        linger = linger and self._can_linger and not isinstance(self._sock, ssl.SSLSocket)
        flags = socket.MSG_MORE if linger else 0
        if self._unsent and self.ended is None and not self._is_ours(self._sock):
            self._lose(_closed_by_somebody())
        while self._unsent and self.ended is None:
            # One piece that is left of a large one is not copied again for each part of it.
            whole = self._unsent[0] if len(self._unsent) == 1 else b"".join(self._unsent)
            data = memoryview(whole)
            try:
                sent = self._sock.send(data, flags)
            except OSError as error:
                if is_from_handler(error):
                    raise
                if not isinstance(error, _LATER):
                    self._lose(error)
                    return
                sent = 0
            self._unsent = [data[sent:]] if sent < len(data) else []
            if not sent:
                break
        if bool(self._unsent) != self._watches_writability and self.ended is None:
            self._watches_writability = bool(self._unsent)
            extra = select.POLLOUT if self._unsent else 0
            self._poller.modify(self._sock, select.POLLIN | extra)

    def emit(self, data: bytes, *, can_linger: bool = False) -> None:
        """Put whole frames on the way, past pika, which would wait for one answer before the next.

        Args:
            can_linger: it has no answer that anybody would wait for.
        """
        self._can_linger = can_linger and (self._can_linger or not self._unsent)
        self._unsent.append(data)

    def abort(self, reason: str) -> None:
        """End the connection without a word to the broker."""
        self._end(pika.exceptions.AMQPConnectionError(reason))

    def sever(self) -> None:
        """Cut the connection, without a lock and without a word; its user finds out."""
        if self._is_ours(self._sock):
            _shut_down(self._sock)
        self.wake()

    def dispose(self) -> None:
        """Free the sockets of a connection that has ended; nobody may be in :meth:`poll`."""
        if not self._disposed:
            self._disposed = True
            for sock in self._identities:
                if self._is_ours(sock):
                    sock.close()
                else:
                    sock.detach()

    def __del__(self) -> None:
        if hasattr(self, "_disposed"):
            self.dispose()

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
            if not self._is_ours(self._sock):
                self._lose(_closed_by_somebody())
                return
            try:
                data = self._sock.recv(_CHUNK)
            except OSError as error:
                if is_from_handler(error):
                    raise
                if not isinstance(error, _LATER):
                    self._lose(error)
                return
            if not data:
                self._lose(ConnectionResetError("the broker closed the connection"))
                return
            self.heard = time.monotonic()
            self.is_silent = False
            self._guard(self._on_data_available, data)
            if len(data) < _CHUNK and not isinstance(self._sock, ssl.SSLSocket):
                return  # one more call would say the same

    def _guard(self, work: Callable[..., None], *arguments: Any) -> None:
        """Let pika do something; end the connection if it cannot."""
        try:
            work(*arguments)
        except Exception as error:
            if is_from_handler(error):
                raise
            if not isinstance(error, pika.exceptions.AMQPError):
                error = pika.exceptions.AMQPConnectionError(f"pika failed: {error!r}")
            self._end(error)

    def _read_frame(self) -> Any:
        """Read a frame; also one whose properties pika cannot read, as anybody may send them.

        Raises:
            pika.exceptions.InvalidFrameError: it is none of AMQP's; pika would wait for the rest
                of it.
        """
        self._require_frame(self._frame_buffer)
        try:
            return super()._read_frame()
        except pika.exceptions.AMQPError:
            raise
        except Exception as error:
            kind, channel, size = _HEAD.unpack_from(self._frame_buffer)
            if kind != pika.spec.FRAME_HEADER or is_from_handler(error):
                raise
            (body_size,) = struct.unpack_from(">xxxxQ", self._frame_buffer, _HEAD.size)
            properties = parse(self._frame_buffer[_HEAD.size + 12 : _HEAD.size + size])
            return _HEAD.size + size + _END, pika.frame.Header(channel, body_size, properties)

    def _require_frame(self, data: bytes) -> None:
        if data[0] in _KINDS:
            if len(data) < _HEAD.size:
                return
            size = _HEAD.unpack_from(data)[2]
            if size + _HEAD.size + _END <= max(self.params.frame_max, pika.spec.FRAME_MIN_SIZE):
                return
        raise pika.exceptions.InvalidFrameError(bytes(data[:100]))

    def _deliver_frame_to_channel(self, value: Any) -> None:
        if value.channel_number not in self._channels:
            raise pika.exceptions.UnexpectedFrameError(value)  # pika would only log it
        super()._deliver_frame_to_channel(value)

    def _is_ours(self, sock: socket.socket) -> bool:
        return identity(sock) == self._identities[sock]

    def _look_for_silence(self) -> None:
        silent = time.monotonic() - self.heard
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
            if self._is_ours(self._sock):
                _shut_down(self._sock)
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


def _shut_down(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError as error:  # it has ended by itself
        if is_from_handler(error):
            raise


def _closed_by_somebody() -> OSError:
    return OSError("this process has closed the socket's number")

"""One connection to the broker, shared by the threads that use it."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress

import pika.connection

from synmanager.backends.rabbitmq.faults import TRANSLATED, translate, translated
from synmanager.backends.rabbitmq.frames import Content
from synmanager.backends.rabbitmq.lane import Lane
from synmanager.backends.rabbitmq.wire import Wire
from synmanager.errors import BrokerUnavailable, SynmanagerError

__all__ = ["Link"]

logger = logging.getLogger(__name__)

#: Seconds that an orderly goodbye may take before the connection is cut.
_GOODBYE = 2.0

#: Unused channels that are kept for the next call.
_KEPT_LANES = 8


class Link:
    """A monitor around a :class:`Wire`: ``with link:`` is its lock, and turns its errors into ours.

    A thread that waits for a reply does the I/O itself, if no other thread is doing it already;
    then it waits for that one. When nobody waits, for instance while a callback runs for hours, a
    thread of its own looks in every now and then: it sends the heartbeats, and notices a channel
    or a connection that is gone.

    Args:
        parameters: pika's, of a broker that may be there or not.
        where: the broker, as errors name it.
        timeout: seconds until a broker that does not answer is given up.
        heartbeat: seconds between signs of life.
    """

    def __init__(
        self,
        parameters: pika.connection.Parameters,
        where: str,
        timeout: float,
        heartbeat: float,
    ) -> None:
        self._parameters = parameters
        self._where = where
        self.timeout = timeout
        self._silence = heartbeat * 1.5
        self._glance = min(1.0, heartbeat / 8)
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._polling = False
        self._closed = False
        self._attention = threading.Event()
        self._chores: list[Callable[[], bool]] = []
        self._doing_chores = False
        self._idle: list[Lane] = []
        #: Batches that were sent, and not confirmed in time because the broker reads nothing for
        #: lack of room: they will be, and who repeats one waits for that.
        self.unfinished: dict[tuple[str, str, tuple[Content, ...]], Lane] = {}
        self.wire: Wire

    def open(self) -> None:
        """Connect, log in, and start to keep the connection alive.

        Raises:
            AccessRefused: the broker refuses us, or TLS fails.
            BrokerUnavailable: it does not answer.
        """
        with translated(self._where):
            self.wire = Wire(self._parameters, self._connect(), self._silence)
        try:
            with self:
                self.wait(lambda: self.wire.is_open)
        except BaseException:
            self.close()
            raise
        threading.Thread(
            target=_keep_alive,
            args=(weakref.ref(self), self._attention, self._glance),
            name="synmanager-rabbitmq",
            daemon=True,
        ).start()

    @property
    def is_open(self) -> bool:
        return not self._closed and self.wire.ended is None

    def __enter__(self) -> Link:
        self._lock.acquire()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            # A worker that has acknowledged asks for its next job at once, and then both cost the
            # broker and the network one packet instead of two.
            self._send(linger=True)
        finally:
            self._lock.release()
        if isinstance(error, TRANSLATED) and not isinstance(error, SynmanagerError):
            raise translate(error, self._where) from error

    def wait(self, done: Callable[[], object], seconds: float | None = None) -> bool:
        """Do I/O until ``done``; the caller holds the lock, which is free in between.

        Args:
            seconds: return False after so many; by default, a broker that keeps quiet for the
                link's timeout is given up.

        Raises:
            BrokerUnavailable: the broker keeps quiet for too long.
            BaseException: why the connection ended before ``done``.
        """
        deadline = time.monotonic() + (self.timeout if seconds is None else seconds)
        while not done():
            if self.wire.ended is not None:
                if self._closed:
                    raise BrokerUnavailable("the connection was closed")
                raise self.wire.ended
            left = deadline - time.monotonic()
            if left > 0:
                self._do_io(left)
            elif seconds is not None:
                return False
            else:
                self._give_up()
        return True

    def glance(self) -> None:
        """Send what there is and handle what has arrived, without waiting; needs the lock."""
        if self.wire.ended is None:
            self._do_io(0)

    def later(self, chore: Callable[[], bool]) -> None:
        """Have something done soon by the thread that looks in; needs the lock, and so does it.

        Args:
            chore: returns whether it is done, or else is called again after the next pause.
        """
        self._chores.append(chore)
        self._attention.set()

    def look_in(self) -> None:
        """Do what is due while nobody waits; needs the lock."""
        self._attention.clear()
        self.glance()
        chores, self._chores = self._chores, []
        self._doing_chores = True
        try:
            self._chores += [chore for chore in chores if not self._is_done(chore)]
        finally:
            self._doing_chores = False
            self._changed.notify_all()

    def _is_done(self, chore: Callable[[], bool]) -> bool:
        try:
            return chore()
        except (SynmanagerError, *TRANSLATED):
            return True  # with its channel or connection, what it was about is the broker's again
        except Exception:  # a thread that ended would end the heartbeats
            logger.exception("unexpected trouble on the connection to %s", self._where)
            return True

    def lane(self, lane: Lane | None = None) -> _Loan:
        """A channel for one call, as a context manager; the caller holds the lock.

        A delivery that is held on it afterwards keeps it, see :meth:`give_back`.

        Args:
            lane: this one, which is in the caller's hands already.
        """
        return _Loan(self, lane or self._take_lane())

    def give_back(self, lane: Lane) -> None:
        """Keep a channel for the next call, if nothing is held on it."""
        if lane.is_reusable:
            if len(self._idle) < _KEPT_LANES:
                self._idle.append(lane)
            else:
                lane.close()

    def close(self) -> None:
        """Say goodbye and cut the connection; waiting threads end with ``BrokerUnavailable``."""
        with self._lock:
            if self._doing_chores and self.is_open:
                with suppress(Exception):  # half done, it would be done again
                    self.wait(lambda: not self._doing_chores, min(_GOODBYE, self.timeout))
            if self._closed:
                return
            self._closed = True
            self._attention.set()
            if self.wire.is_open:
                self._say_goodbye()
            self.wire.abort("closed")
            if self._polling:
                self.wire.wake()  # and that thread frees the sockets
            else:
                self.wire.dispose()
            self._changed.notify_all()

    def _take_lane(self) -> Lane:
        if self.wire.blocked is not None:
            # Nothing that is sent now is read before there is room again.
            raise BrokerUnavailable(f"the broker reads nothing, it is {self.wire.blocked}")
        while self._idle:
            lane = self._idle.pop()
            if lane.is_reusable:  # else the broker has closed it meanwhile
                return lane
        return Lane(self)

    def _connect(self) -> socket.socket:
        parameters = self._parameters
        sock = socket.create_connection((parameters.host, parameters.port), self.timeout)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tls = parameters.ssl_options
            if tls is not None:
                context: ssl.SSLContext = tls.context
                return context.wrap_socket(sock, server_hostname=tls.server_hostname)
        except BaseException:
            sock.close()
            raise
        return sock

    def _say_goodbye(self) -> None:
        deadline = time.monotonic() + min(_GOODBYE, self.timeout)
        self.wire.close()
        with suppress(Exception):  # an end is all that is wanted
            self.wait(lambda: self.wire.ended is not None, deadline - time.monotonic())

    def _do_io(self, seconds: float) -> None:
        """Wait for something to happen, and handle it unless another thread does."""
        self._send()
        if self._polling:
            self._changed.wait(seconds)
            return
        self._polling = True
        try:
            until_timer = self.wire.next_timer - time.monotonic()
            self._lock.release()
            try:
                arrived = self.wire.poll(min(seconds, until_timer))
            finally:
                self._lock.acquire()
            try:
                self.wire.process(arrived=arrived)
            except BaseException:
                # Interrupted, by a signal perhaps, who knows where in the protocol.
                self.wire.abort("interrupted")
                raise
        finally:
            self._polling = False
            if self.wire.ended is not None and self._closed:
                self.wire.dispose()
            self._changed.notify_all()

    def _send(self, *, linger: bool = False) -> None:
        self.wire.flush(linger=linger)
        if self._polling and (self.wire.has_unsent or self.wire.ended is not None):
            self.wire.wake()  # that thread has to know

    def _give_up(self) -> None:
        silence = f"no answer within {self.timeout:g} s"
        if self.wire.blocked is None:
            self.wire.abort(silence)
            self._changed.notify_all()
            raise BrokerUnavailable(silence)
        # It is alive, and will read on once it has room again; what is leased stays so.
        raise BrokerUnavailable(f"{silence}: the broker reads nothing, it is {self.wire.blocked}")


class _Loan:
    """What ``with`` needs; the standard library's generators take longer than the call itself."""

    def __init__(self, link: Link, lane: Lane) -> None:
        self._link = link
        self._lane = lane

    def __enter__(self) -> Lane:
        return self._lane

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self._link.give_back(self._lane)
        elif self._lane not in self._link.unfinished.values():
            self._lane.close()  # an answer may still be to come


def _keep_alive(link: weakref.ref[Link], attention: threading.Event, pause: float) -> None:
    """Look in now and then, until the connection has ended, or its link is dropped."""
    while True:
        attention.wait(pause)
        found = link()
        if found is None or not found.is_open:
            return
        with found:
            found.look_in()
        del found

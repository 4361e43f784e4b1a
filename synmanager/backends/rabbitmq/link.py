"""One connection to the broker, shared by the threads that use it."""

from __future__ import annotations

import logging
import socket
import ssl
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from types import FrameType

import pika.connection
from pika.exceptions import InvalidFrameError

from synmanager.backends.rabbitmq.faults import (
    TRANSLATED,
    harms_the_connection,
    is_interruption,
    translate,
    translated,
)
from synmanager.backends.rabbitmq.frames import Content
from synmanager.backends.rabbitmq.lane import Lane
from synmanager.backends.rabbitmq.monitor import Bell, Monitor, Place, Reentered
from synmanager.backends.rabbitmq.strangers import ask, refuse_stranger
from synmanager.backends.rabbitmq.wire import Wire
from synmanager.errors import BrokerUnavailable, SynmanagerError
from synmanager.interrupts import is_from_handler
from synmanager.sockets import above_stdio

__all__ = ["Link"]

logger = logging.getLogger(__name__)

#: Seconds that an orderly goodbye may take before the connection is cut.
_GOODBYE = 2.0

#: Unused channels that are kept for the next call.
_KEPT_LANES = 8

#: Seconds without a byte after which somebody who accepts is asked what else he speaks.
_DOUBT = 1.0


class Link:
    """A monitor around a :class:`Wire`: ``with link:`` is its lock, and turns its errors into ours.

    A thread that waits for a reply does the I/O itself, if no other thread is doing it already;
    then it waits for that one. When nobody waits, for instance while a callback runs for hours, a
    thread of its own looks in every now and then: it sends the heartbeats, and notices a channel
    or a connection that is gone.

    What ends a call and is not recognised ends the connection, because nobody knows what is still
    to come on it. What a signal's handler raises passes through; it ends the connection too,
    unless it came while its thread was only waiting. A function with ``with link:`` in it must not
    catch that around it and go on, see :class:`Monitor`.

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
        self._monitor = Monitor()
        self._poller: Place | None = None
        self._rested: BaseException | None = None
        self._closed = False
        self._is_in = False
        self._attention = Bell()
        self._chores: deque[Callable[[], bool]] = deque()
        self._doing_chores = False
        self._idle: list[Lane] = []
        self._connecting: socket.socket | None = None
        #: Queues that refuse consumers on a channel whose prefetch is shared: quorum queues do, and
        #: end the connection.
        self.apart: set[str] = set()
        #: Batches that were sent, and not confirmed in time because the broker reads nothing for
        #: lack of room: they will be, and who repeats one waits for that.
        self.unfinished: dict[tuple[str, str, tuple[Content, ...]], Lane] = {}
        self.wire: Wire

    def open(self, seconds: float | None = None) -> None:
        """Connect, log in, and start to keep the connection alive.

        Args:
            seconds: within so many; by default, the link's timeout.

        Raises:
            AccessRefused: the broker refuses us, or TLS fails, or this is no RabbitMQ.
            BrokerUnavailable: it does not answer.
        """
        deadline = time.monotonic() + (self.timeout if seconds is None else seconds)
        try:
            with translated(self._where):
                self.wire = Wire(self._parameters, self._connect(deadline), self._silence)
            self._log_in(deadline)
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
    def virtual_host(self) -> tuple[str, str]:
        """What its cluster calls itself, and the virtual host."""
        cluster = str((self.wire.server_properties or {}).get("cluster_name", self._where))
        return cluster, str(self._parameters.virtual_host)

    @property
    def is_open(self) -> bool:
        return not self._closed and self.wire.ended is None and not self._monitor.is_broken

    def __enter__(self) -> Link:
        return self.enter(sys._getframe(1))

    def enter(self, frame: FrameType) -> Link:
        """What ``with`` does, for a frame that has none: it calls ``__exit__``."""
        self._monitor.enter(frame)
        if self._monitor.is_broken:
            self.wire.abort("a call was interrupted")
            self._monitor.is_broken = False
            self._monitor.notify()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        # Interrupted before it ends with `leave`, this leaves behind a turn that nobody has: who
        # finds that ends the connection.
        ours: SynmanagerError | None = None
        if not self._monitor.is_mine:
            self._monitor.is_broken = True  # interrupted once more, on the way out
        elif error is None:
            # A worker that has acknowledged asks for its next job at once, and then both cost the
            # broker and the network one packet instead of two.
            self._send(linger=True)
            self._dispose_if_over()
        else:
            ours = self.understand(error)
            self._send()
            self._dispose_if_over()
            self._rested = None
        self._monitor.leave()
        if ours is not None:
            raise ours from error

    def is_sound_after(self, error: BaseException) -> bool:
        """Whether the connection is in a known state, although a call ended like that."""
        return self._monitor.is_mine and (not is_interruption(error) or error is self._rested)

    def wait(
        self, done: Callable[[], object], seconds: float | None = None, *, is_aside: bool = False
    ) -> bool:
        """Do I/O until ``done``; the caller holds the lock, which is free in between.

        Args:
            seconds: return False after so many; by default, a broker that keeps quiet for the
                link's timeout is given up.
            is_aside: the connection stays, whatever is not answered.

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
                self._give_up(is_aside=is_aside)
        return True

    def glance(self) -> None:
        """Send what there is and handle what has arrived, without waiting; needs the lock."""
        if self.wire.ended is None:
            self._do_io(0)

    def later(self, chore: Callable[[], bool]) -> None:
        """Have something done soon by the thread that looks in, which has the lock then.

        Takes no lock itself, so that a finaliser may call this.

        Args:
            chore: returns whether it is done, or else is called again after the next pause.
        """
        self._chores.append(chore)
        self._attention.ring()

    def look_in(self) -> None:
        """Do what is due while nobody waits; needs the lock."""
        self.glance()
        self._doing_chores = True
        try:
            for _ in range(len(self._chores)):
                chore = self._chores.popleft()
                if not self._is_done(chore):
                    self._chores.append(chore)
        finally:
            self._doing_chores = False
            self._monitor.notify()

    def _is_done(self, chore: Callable[[], bool]) -> bool:
        try:
            return chore()
        except (SynmanagerError, *TRANSLATED):
            return True  # with its channel or connection, what it was about is the broker's again
        except Exception:  # a thread that ended would end the heartbeats
            logger.exception("unexpected trouble on the connection to %s", self._where)
            return True

    def lane(self, lane: Lane | None = None, *, is_aside: bool = False) -> _Loan:
        """A channel for one call, as a context manager; the caller holds the lock.

        A delivery that is held on it afterwards keeps it, see :meth:`give_back`.

        Args:
            lane: this one, which is in the caller's hands already.
            is_aside: see :attr:`Lane.is_aside`.
        """
        return _Loan(self, lane or self._take_lane(is_aside=is_aside))

    def give_back(self, lane: Lane) -> None:
        """Keep a channel for the next call, if nothing is held on it."""
        if lane.is_reusable:
            if len(self._idle) < _KEPT_LANES:
                self._idle.append(lane)
            else:
                lane.close()

    def close(self) -> None:
        """Say goodbye and cut the connection; waiting threads end with ``BrokerUnavailable``.

        From within another call of the same thread, which a signal's handler has interrupted, cut
        it only: that call says the rest when it goes on.
        """
        if not hasattr(self, "wire"):
            self._closed = True
            if (connecting := self._connecting) is not None:
                _shut_down(connecting)
        else:
            try:
                with self:
                    self._close()
            except Reentered:
                self._closed = True
                self.wire.sever()

    def abandon(self) -> None:
        """Free this process' copies of the sockets; the connection is its parent's."""
        self._closed = True
        if hasattr(self, "wire"):
            self.wire.dispose()

    def _close(self) -> None:
        try:
            if self._doing_chores and self.is_open:
                try:  # half done, it would be done again
                    self.wait(lambda: not self._doing_chores, min(_GOODBYE, self.timeout))
                except Exception as error:
                    if is_from_handler(error):
                        raise
            if not self._closed and self.wire.is_open:
                self._closed = True
                self._say_goodbye()
        finally:
            self._closed = True
            self._attention.ring()
            self.wire.abort("closed")
            if self._is_polled():
                self.wire.wake()  # and that thread frees the sockets
            self._dispose_if_over()
            self._monitor.notify()

    def _take_lane(self, *, is_aside: bool) -> Lane:
        if self.wire.blocked is not None:
            # Nothing that is sent now is read before there is room again.
            raise BrokerUnavailable(f"the broker reads nothing, it is {self.wire.blocked}")
        while self._idle:
            lane = self._idle.pop()
            if lane.is_reusable:  # else the broker has closed it meanwhile
                lane.is_aside = is_aside
                return lane
        return Lane(self, is_aside=is_aside)

    def _connect(self, deadline: float) -> socket.socket:
        """Connect to the first of the host's addresses that answers, with TLS if it is wanted."""
        parameters = self._parameters
        failure: OSError = OSError("its name has no address")
        for family, kind, protocol, _, place in socket.getaddrinfo(
            parameters.host, parameters.port, type=socket.SOCK_STREAM
        ):
            sock = self._connecting = above_stdio(socket.socket(family, kind, protocol))
            try:
                try:
                    sock.settimeout(max(deadline - time.monotonic(), 0.001))
                    sock.connect(place)
                except OSError as error:
                    if is_from_handler(error) or self._closed:
                        raise
                    failure = error
                    sock.close()
                    continue
                if self._closed:
                    raise BrokerUnavailable("the connection was closed")
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return self._encrypt(sock, deadline)
            except BaseException:
                sock.close()
                raise
            finally:
                self._connecting = None
        raise failure

    def _encrypt(self, sock: socket.socket, deadline: float) -> socket.socket:
        tls = self._parameters.ssl_options
        if tls is None:
            return sock
        context: ssl.SSLContext = tls.context
        sock.settimeout(min(_DOUBT, max(deadline - time.monotonic(), 0.001)))
        encrypted = context.wrap_socket(
            sock, server_hostname=tls.server_hostname, do_handshake_on_connect=False
        )
        self._connecting = encrypted
        try:
            try:
                encrypted.do_handshake()
            except TimeoutError as error:
                if is_from_handler(error):
                    raise
                self._ask_what_it_speaks()
                encrypted.settimeout(max(deadline - time.monotonic(), 0.001))
                encrypted.do_handshake()
        except BaseException:
            encrypted.close()
            raise
        return encrypted

    def _log_in(self, deadline: float) -> None:
        if self._closed:
            raise BrokerUnavailable("the connection was closed")
        self._hear_something(min(_DOUBT, self.timeout))
        if self.wire.is_silent:
            self._ask_what_it_speaks()
        with self:
            if not self.wait(lambda: self.wire.is_open, max(deadline - time.monotonic(), 0.0)):
                self._give_up()
            self._is_in = True

    def _hear_something(self, seconds: float) -> None:
        with self:
            self.wait(lambda: not self.wire.is_silent, seconds)

    def _ask_what_it_speaks(self) -> None:
        """Tell somebody who accepts and says nothing from a broker that is slow or frozen."""
        parameters = self._parameters
        answer = ask(parameters.host, parameters.port, min(_DOUBT, self.timeout))
        refuse_stranger(answer, self._where)

    def _say_goodbye(self) -> None:
        deadline = time.monotonic() + min(_GOODBYE, self.timeout)
        try:
            self.wire.close()
            self.wait(lambda: self.wire.ended is not None, deadline - time.monotonic())
        except Exception as error:  # an end is all that is wanted
            if is_from_handler(error):
                raise

    def _do_io(self, seconds: float) -> None:
        """Wait for something to happen, and handle it unless another thread does."""
        self._send()
        if self._is_polled():
            try:
                self._monitor.wait(seconds)
            except BaseException as error:
                self._rested = error
                raise
            return
        mine = self._poller = Place(threading.get_ident(), sys._getframe())
        try:
            arrived = self._poll(min(seconds, self.wire.next_timer - time.monotonic()))
            try:
                self.wire.process(arrived=arrived)
            except BaseException:
                # Interrupted, by a signal perhaps, who knows where in the protocol.
                self.wire.abort("interrupted")
                raise
        finally:
            if self._poller is mine:
                self._poller = None
            del mine  # it leads to this frame, and so to what all callers have in their hands
            self._monitor.notify()

    def _poll(self, seconds: float) -> bool:
        """Wait for the socket while others may have the lock."""
        self._monitor.step_out()
        try:
            return self.wire.poll(seconds)
        except BaseException as error:
            self._rested = error
            raise
        finally:
            self._monitor.step_in()

    def _is_polled(self) -> bool:
        """Whether another thread is doing the I/O, and was not interrupted in it."""
        return self._poller is not None and self._poller.is_running()

    def _send(self, *, linger: bool = False) -> None:
        self.wire.flush(linger=linger)
        if self._poller is not None and (self.wire.has_unsent or self.wire.ended is not None):
            self.wire.wake()  # that thread has to know

    def understand(self, error: BaseException) -> SynmanagerError | None:
        """What to raise for what has ended a call, if not that itself; needs the lock.

        Ends the connection, unless the error says all that has happened to it.
        """
        if is_interruption(error):
            if error is not self._rested:
                self._drop("interrupted")
            return None
        if isinstance(error, SynmanagerError):
            return None
        if not self._is_in and isinstance(error, InvalidFrameError):
            refuse_stranger(error.args[0], self._where)
        ours = translate(error, self._where)
        if harms_the_connection(error, ours):
            self._drop(str(ours))
        return ours

    def _drop(self, reason: str) -> None:
        self.wire.abort(reason)
        self._monitor.notify()

    def _dispose_if_over(self) -> None:
        if self._closed and self.wire.ended is not None and not self._is_polled():
            self.wire.dispose()

    def _give_up(self, *, is_aside: bool = False) -> None:
        silence = f"no answer within {self.timeout:g} s"
        if self.wire.blocked is None:
            if not is_aside:
                self._drop(silence)
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
        elif self._lane not in self._link.unfinished.values() and self._link.is_sound_after(error):
            self._lane.close()  # an answer may still be to come


def _keep_alive(link: weakref.ref[Link], attention: Bell, pause: float) -> None:
    """Look in now and then, until the connection has ended, or its link is dropped."""
    while True:
        attention.wait(pause)
        found = link()
        if found is None:
            return
        with found:
            if not found.is_open:
                return
            found.look_in()
        del found


def _shut_down(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError as error:  # it has ended by itself, or never began
        if is_from_handler(error):
            raise

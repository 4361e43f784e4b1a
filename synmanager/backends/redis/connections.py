"""The sockets of one client, and commands sent over them.

redis-py's own client does more for each command than this project can use (it looks at the
socket before it trusts it, counts for its metrics, and repeats a command that may already have
run); its connections do exactly enough.

Nothing here takes a lock: a signal handler, or a ``__del__``, may call in between any two steps of
another call in the same thread, which would then wait for itself. Every step is one operation
on a deque, a dict or an attribute.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any
from weakref import ref

from redis import exceptions as redis_errors

from synmanager.backends.redis.dialling import hang_up
from synmanager.backends.redis.faults import Failed, OutOfTurn, callers_own, is_answer
from synmanager.backends.redis.replicas import Replicas
from synmanager.backends.redis.rivals import Rivals
from synmanager.backends.redis.scripts import Script
from synmanager.backends.redis.shapes import Fits
from synmanager.text import shown

__all__ = ["CalledOff", "Connections"]

#: Seconds after which a kept connection is looked at before it is used: servers and firewalls
#: close those that say nothing for minutes.
_STALE = 10.0


#: Seconds between two questions whether a wait is called off.
_HEARING = 1.0


class CalledOff(Exception):
    """Nobody waits for the answer any more."""


class Connections:
    """One connection for each call that is under way, kept for the next call.

    Args:
        connect: makes a redis-py connection; it need not be connected yet.
        where: the server, as ``host:port``.

    Attributes:
        closed: for good.
        ready: whether calls may go on; its user's to set, until something is wrong.
        replicas: what scripts wait for whose work has to last.
        rivals: whom every script looks out for.
    """

    def __init__(self, connect: Callable[[], Any], where: str) -> None:
        self._connect = connect
        self._where = where
        self._idle: deque[tuple[Any, float]] = deque()
        # Each with the generation that it was taken in. What is in here belongs to its call, and
        # what is not does not. By its id(), and weak: a call that was interrupted while it cleaned
        # up after an error leaves its connection to the garbage collector.
        self._busy: dict[int, tuple[ref[Any], int]] = {}
        self._generation = 0
        self.closed = False
        self.ready = False
        self.replicas: Replicas | None = None
        self.rivals: Rivals | None = None

    def call(
        self,
        *command: Any,
        fits: Fits,
        behind: Sequence[Replicas | Rivals] = (),
        called_off: Callable[[], bool] | None = None,
    ) -> Any:
        """Send one command and return the answer.

        Args:
            behind: what is sent behind it, and has to agree.
            called_off: asked once a second while there is no answer, whether to go on waiting.
            fits: tells whether an answer may be one to this command. If not, something is between
                us and the server, or was sent to it that was not ours, and every later answer
                would be taken for another one's.

        Raises:
            Failed: closed, or what redis-py raises. Unless it is an answer that is known, this
                connection is gone.
            CalledOff: as ``called_off`` said.
            BaseException: what a signal handler of the caller's raised meanwhile.
        """
        before = sys.exc_info()[1]
        sent = False
        connection, used = self._next()
        try:
            self._busy[id(connection)] = ref(connection), self._generation
            self._prepare(connection, used)
            sent = True
            if not behind:
                connection.send_packed_command([_pack(command)])
                if called_off is not None:
                    _await(connection, called_off)
                reply = connection.read_response()
            else:
                reply = _confirmed(connection, command, behind)
            if not fits(reply):
                raise OutOfTurn(f"{shown(repr(reply))}, in answer to {command[0]}")
            self._put_back(connection)
            return reply
        except BaseException as error:
            if sent and is_answer(error):
                self._put_back(connection)
            else:
                # Also for a KeyboardInterrupt: the answer still to come is not the next call's.
                self._discard(connection)
            own = callers_own(error, before)
            if own is None and isinstance(error, (redis_errors.RedisError, OSError)):
                raise Failed(error, sent=sent) from error
            if own is None or own is error:
                raise
        raise own

    def run(self, script: Script, keys: list[str], args: tuple[Any, ...]) -> Any:
        """Run a script on the server, which may have forgotten it since the last time."""
        fits, rest = script.fits, (len(keys), *keys, *args)
        checks = (self.replicas if script.lasts else None, self.rivals)
        behind = [check for check in checks if check is not None]
        try:
            return self.call("EVALSHA", script.sha, *rest, fits=fits, behind=behind)
        except Failed as failure:
            if failure.code != "NOSCRIPT":
                raise
        return self.call("EVAL", script.source, *rest, fits=fits, behind=behind)

    def close(self) -> None:
        """Disconnect. Calls under way in other threads end with an error."""
        self.closed = True
        self.forget_idle()
        for known, _ in list(self._busy.values()):
            connection = known()
            if connection is not None:
                hang_up(connection)

    def forget_idle(self) -> None:
        """Keep none of those that there are: where one was lost, the others are dead as well."""
        self._generation += 1
        while self._idle:
            try:
                connection, _ = self._idle.pop()
            except IndexError:  # somebody took the last one
                return
            connection.disconnect()

    def _next(self) -> tuple[Any, float]:
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect(), 0.0

    def _prepare(self, connection: Any, used: float) -> None:
        if self.closed:  # looked at once it is among the busy ones, where close() finds it
            raise redis_errors.ConnectionError("the connection was closed")
        if used and (time.monotonic() - used < _STALE or _is_alive(connection)):
            return
        if used:
            connection.disconnect()
        connection.connect()
        if self.closed:  # too early to find the socket
            raise redis_errors.ConnectionError("the connection was closed")

    def _put_back(self, connection: Any) -> None:
        _, generation = self._busy.pop(id(connection))
        if self.closed or generation != self._generation:
            connection.disconnect()
            return
        self._idle.append((connection, time.monotonic()))
        if self.closed:
            self.forget_idle()

    def _discard(self, connection: Any) -> None:
        # If it is not ours any more, another call may have it already.
        if self._busy.pop(id(connection), None) is not None:
            connection.disconnect()


def _await(connection: Any, called_off: Callable[[], bool]) -> None:
    patience = float(connection.socket_timeout)
    give_up = time.monotonic() + patience
    while not connection.can_read(_HEARING):
        if called_off():
            raise CalledOff
        if time.monotonic() >= give_up:
            raise redis_errors.TimeoutError(f"no answer for {patience:g} s")


def _confirmed(
    connection: Any, command: tuple[Any, ...], behind: Sequence[Replicas | Rivals]
) -> Any:
    """Send a command, and in the same breath ask whether what it does will last."""
    words = [_pack(command), *(_pack(check.command) for check in behind)]
    connection.send_packed_command([b"".join(words)])
    replies: list[Any] = []
    for _ in words:  # all of them, whatever the first one is
        try:
            replies.append(connection.read_response())
        except redis_errors.ResponseError as error:
            replies.append(error)
    for reply in replies:
        if isinstance(reply, redis_errors.ResponseError):
            raise reply
    for check, reply in zip(behind, replies[1:], strict=True):
        if not check.fits(reply):
            raise OutOfTurn(f"{shown(repr(reply))}, in answer to {check.command[0]}")
        check.check(reply)
    return replies[0]


def _pack(command: tuple[Any, ...]) -> bytes:
    """Write a command of bytes, strings and whole numbers, in a fifth of redis-py's time."""
    parts = [b"*%d\r\n" % len(command)]
    for word in command:
        if type(word) is not bytes:
            word = word.encode() if type(word) is str else b"%d" % word
        parts.append(b"$%d\r\n%b\r\n" % (len(word), word))
    return b"".join(parts)


def _is_alive(connection: Any) -> bool:
    # Nothing is expected: what can be read is the end of the connection, or nonsense.
    try:
        return not connection.can_read(0)
    except (redis_errors.RedisError, OSError) as error:
        if callers_own(error, None):
            raise
        return False

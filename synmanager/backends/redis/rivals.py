"""Replicas that have left their primary, of which one may have been promoted.

A Sentinel that is told to fail over promotes a replica while the old primary lives, and tells that
one a second or two later. Until then it takes what is written, and has it confirmed by a replica
that was not promoted: all of it is lost in the end. But a replica that is promoted hangs up. So
who finds one missing asks it what it is now. A primary that continues our history under another
name has been promoted; the old one, which is missing at the new one, has not.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from typing import Any

from redis import exceptions as redis_errors

from synmanager.backends.redis.faults import callers_own
from synmanager.backends.redis.shapes import text

__all__ = ["PATIENCE", "Rivals"]

#: Seconds within which a replica answers that is there, also for several of them together.
PATIENCE = 0.5

#: Seconds for which one may be too busy to answer, with being promoted for instance.
_BUSY = 3.0

#: Seconds for which one is not asked again that is gone; grows from the first to the last.
_SOONEST, _LATEST = 1.0, 30.0

_ONLINE = re.compile(rb"^slave\d+:ip=([^,]+),port=(\d+),state=online", re.MULTILINE)
_HISTORY = re.compile(rb"^master_replid:([0-9a-f]+)", re.MULTILINE)
_BEFORE = re.compile(rb"^master_replid2:([0-9a-f]+)", re.MULTILINE)
_IS_PRIMARY = re.compile(rb"^role:master\r?$", re.MULTILINE)
_UPTIME = re.compile(rb"^uptime_in_seconds:(\d+)", re.MULTILINE)

Place = tuple[str, int]


class Rivals:
    """A command to send behind another one, and what its answer means: see ``Replicas``.

    Args:
        connect: makes a redis-py connection to a host and a port; it need not be connected yet.
        told: those that the Sentinels know of, and that are not gone.
        before: whoever looked out on the last connection. A machine that is lost says nothing
            at each of those that are made until the Sentinels, too, take it for gone.
    """

    #: Says who is connected. ROLE would in fewer words, but is no right that we ask for.
    command = ("INFO", "replication")
    fits = staticmethod(text)

    def __init__(
        self,
        connect: Callable[[str, int], Any],
        told: Iterable[Place],
        before: Rivals | None = None,
    ) -> None:
        self._connect = connect
        # When they were here last, by the monotonic clock.
        self._known = dict.fromkeys(told, time.monotonic())
        # Apart from who they are: servers and Sentinels may use different names for one.
        self._number = len(self._known)
        self._silent: dict[Place, float] = {} if before is None else before._silent  # since when
        self._gone: dict[Place, tuple[float, float]] = {}  # until when, and for how long

    def check(self, said: bytes) -> None:
        """Look at what a server says of its replication, after it has written something.

        Raises:
            redis_errors.ConnectionError: another one is the primary by now, or may be.
        """
        now = time.monotonic()
        online = {(host.decode(), int(port)) for host, port in _ONLINE.findall(said)}
        if not _IS_PRIMARY.search(said):
            raise redis_errors.ConnectionError("it has become a replica")
        if len(online) >= self._number:
            self._known = dict.fromkeys(online, now)
            self._number = len(online)
            self._silent.clear()
            self._gone.clear()
            return
        history = {*_HISTORY.findall(said)}
        for place, here in self._known.copy().items():
            if place in online:
                self._known[place] = now
                self._silent.pop(place, None)
            elif time.monotonic() - now < PATIENCE:
                answer = self._ask(place)
                if history & {*_BEFORE.findall(answer)} and _leads(answer, now - here):
                    raise redis_errors.ConnectionError(
                        f"its replica at {place[0]}:{place[1]} is the primary now"
                    )

    def _ask(self, place: Place) -> bytes:
        """What a replica says that is missing; nothing if it is gone."""
        until, pause = self._gone.get(place, (0.0, _SOONEST / 2))
        if time.monotonic() < until:
            return b""
        connection = self._connect(*place)
        try:
            connection.connect()
            connection.send_command("INFO")
            said: Any = connection.read_response()
        except (redis_errors.RedisError, OSError) as error:
            if callers_own(error, None):
                raise
            now = time.monotonic()
            is_silent = isinstance(error, redis_errors.TimeoutError | TimeoutError)
            if is_silent and now - self._silent.setdefault(place, now) < _BUSY:
                raise redis_errors.ConnectionError(
                    f"its replica at {place[0]}:{place[1]} has left it, and says nothing"
                ) from error
            pause = min(2 * pause, _LATEST)
            self._gone[place] = now + pause, pause
            return b""
        finally:
            connection.disconnect()
        self._silent.pop(place, None)
        return said if self.fits(said) else b""


def _leads(said: bytes, absent: float) -> bool:
    """Whether a server has been made a primary.

    One that was started anew since it was here, so many seconds ago, is one only until somebody
    tells it whom to follow.
    """
    uptime = _UPTIME.search(said)
    return bool(_IS_PRIMARY.search(said)) and uptime is not None and int(uptime[1]) > absent

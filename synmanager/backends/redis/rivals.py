"""Replicas that have left their primary, of which one may have been promoted.

A Sentinel that is told to fail over promotes a replica while the old primary lives, and tells that
one a second or two later. Until then it takes what is written, and has it confirmed by a replica
that was not promoted: all of it is lost in the end. But a replica that is promoted hangs up. So
who finds one missing asks it what it is now. Whoever continues our history under another name has
been promoted; the old primary, which is missing at the new one, has not.
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

#: Seconds within which a replica answers that is there; and for which one is not asked again that
#: does not.
PATIENCE, _EXCUSED = 0.5, 1.0

_ONLINE = re.compile(rb"^slave\d+:ip=([^,]+),port=(\d+),state=online", re.MULTILINE)
_HISTORY = re.compile(rb"^master_replid:([0-9a-f]+)", re.MULTILINE)
_BEFORE = re.compile(rb"^master_replid2:([0-9a-f]+)", re.MULTILINE)
_IS_PRIMARY = re.compile(rb"^role:master\r?$", re.MULTILINE)

Place = tuple[str, int]


class Rivals:
    """A command to send behind another one, and what its answer means: see ``Replicas``.

    Args:
        connect: makes a redis-py connection to a host and a port; it need not be connected yet.
        told: those that the Sentinels know of, and that are not gone.
    """

    #: Says who is connected. ROLE would in fewer words, but is no right that we ask for.
    command = ("INFO", "replication")
    fits = staticmethod(text)

    def __init__(self, connect: Callable[[str, int], Any], told: Iterable[Place]) -> None:
        self._connect = connect
        self._known = set(told)
        # Apart from who they are: servers and Sentinels may use different names for one.
        self._number = len(self._known)
        self._excused: dict[Place, float] = {}  # until when

    def check(self, said: bytes) -> None:
        """Look at what a server says of its replication, after it has written something.

        Raises:
            redis_errors.ConnectionError: another one is the primary by now.
        """
        online = {(host.decode(), int(port)) for host, port in _ONLINE.findall(said)}
        if not _IS_PRIMARY.search(said):
            raise redis_errors.ConnectionError("it has become a replica")
        if len(online) >= self._number:
            self._known |= online
            self._number = len(online)
            self._excused.clear()
            return
        history = {*_HISTORY.findall(said)}
        for place in self._known - online:
            if time.monotonic() < self._excused.get(place, 0.0):
                continue
            if history & {*_BEFORE.findall(self._ask(place))}:
                raise redis_errors.ConnectionError(
                    f"its replica at {place[0]}:{place[1]} has left it, and is the primary now "
                    "or follows that"
                )

    def _ask(self, place: Place) -> bytes:
        """What a replica says that is missing. One that is gone has not been promoted."""
        connection = self._connect(*place)
        try:
            connection.connect()
            connection.send_command(*self.command)
            said: Any = connection.read_response()
        except (redis_errors.RedisError, OSError) as error:
            if callers_own(error, None):
                raise
            self._excused[place] = time.monotonic() + _EXCUSED
            return b""
        finally:
            connection.disconnect()
        return said if self.fits(said) else b""

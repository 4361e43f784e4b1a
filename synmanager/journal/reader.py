"""Following the journal's events, on a connection of one's own."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from synmanager.backends.base import QueueBackend
from synmanager.engine.session import Session
from synmanager.errors import ConfigurationError, Unsupported
from synmanager.journal.events import EVENTS, Event, read_to
from synmanager.journal.recorder import flush_all
from synmanager.settings import in_seconds
from synmanager.text import quoted

__all__ = ["PAGE", "Reader"]

#: Seconds that one wait at the broker lasts.
_SLICE = 1.0

#: Seconds for what this very process has not written yet.
_OWN = 0.2

#: Entries of one reading, each of which may have many events.
PAGE = 500


class Reader:
    """Reads on, whenever it is asked to; nothing happens in between.

    Threads may share it: who waits at the broker keeps nobody from reading.

    Args:
        take: gets each event once, in order, but for those that were recorded twice. One that it
            raises at is passed over.
        after: seconds since the epoch, before which nothing is of interest.

    Raises:
        Unsupported: the broker keeps no journal.
    """

    def __init__(self, session: Session, take: Callable[[Event], None], after: float = 0.0) -> None:
        if not session.backend.features.journal:
            raise Unsupported(f"{session.backend.address.scheme} keeps no journal")
        self._session = session
        self._take = take
        self._position: str | float = after
        self._lock = threading.Lock()

    def catch_up(self) -> None:
        """Read all that there is."""
        flush_all(_OWN)
        while self._read(0.0):
            pass

    def wait(self, seconds: float) -> bool:
        """Read something new: True when there was something, False after this time."""
        return self._read(seconds)

    def until(self, done: Callable[[], bool], timeout: float | None) -> bool:
        """Read on until something is so; False if it was not in time.

        Raises:
            ConfigurationError: the timeout is no number of seconds.
        """
        end = None
        if timeout is not None:
            end = time.monotonic() + in_seconds(timeout)
            if math.isnan(end):
                raise ConfigurationError(f"timeout must be seconds, not {quoted(timeout)}")
        self.catch_up()
        while not done():
            left = _SLICE if end is None else end - time.monotonic()
            if left <= 0:
                return False
            self.wait(min(left, _SLICE))
        return True

    def _read(self, wait: float) -> bool:
        after = self._position

        def replay(backend: QueueBackend) -> list[tuple[str, bytes]]:
            entries = backend.replay(EVENTS, after, wait=wait, limit=PAGE)
            return [(entry.position, entry.data) for entry in entries]

        found = self._session.call(replay)
        with self._lock:
            if self._position != after:  # another thread has read on meanwhile
                return True
            for position, data in found:
                read_to(self._take, data)
                self._position = position
        return bool(found)

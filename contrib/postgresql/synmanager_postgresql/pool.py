"""The connections of one client: one for each call under way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from synmanager.errors import BrokerUnavailable
from synmanager_postgresql.faults import NotDone
from synmanager_postgresql.wire import Wire

__all__ = ["Pool"]


class Pool:
    """Connections to one server, until the first of them is lost.

    Args:
        connect: makes a connection that is fit for use.
    """

    def __init__(self, connect: Callable[[], Wire]) -> None:
        self._connect = connect
        self._lock = threading.Lock()
        self._idle: list[Wire] = []
        self._busy: set[Wire] = set()
        self._ended = False

    @property
    def is_open(self) -> bool:
        return not self._ended

    @contextmanager
    def wire(self) -> Iterator[Wire]:
        """A connection for one call.

        Raises:
            BrokerUnavailable: the pool has come to its end.
        """
        with self._lock:
            if self._ended:
                raise BrokerUnavailable("the connection to PostgreSQL is closed")
            wire = self._idle.pop() if self._idle else None
            if wire is not None:
                self._busy.add(wire)
        if wire is None:
            wire = self._connect()
            with self._lock:
                self._busy.add(wire)
        try:
            yield wire
            if self._ended:  # what came of it nobody may rely on
                raise BrokerUnavailable("the connection to PostgreSQL was closed")
        except BrokerUnavailable as error:
            if not isinstance(error, NotDone):
                self.end()
            raise
        finally:
            with self._lock:
                self._busy.discard(wire)
                kept = wire.is_open and not self._ended
                if kept:
                    self._idle.append(wire)
            if not kept:
                wire.close()

    def end(self) -> None:
        """End every call that is under way, and refuse those that come."""
        with self._lock:
            self._ended = True
            idle, self._idle = self._idle, []
            for wire in self._busy:
                wire.shut_down()
        for wire in idle:
            wire.close()

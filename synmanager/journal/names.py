"""Which names sweeps have: a small log of their own, so that nobody reads all events for one."""

from __future__ import annotations

import time

from synmanager.backends.base import Entry, QueueBackend
from synmanager.engine.session import Session
from synmanager.journal.events import SWEEPS, Event, read

__all__ = ["Name"]


class Name:
    """What the log says of one name."""

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self._name = name
        self._position: str | float = time.time() - session.backend.address.journal_age

    def look(self) -> Entry | None:
        """The next sweep of this name that has begun: the first, at the first look."""

        def replay(backend: QueueBackend) -> list[Entry]:
            return backend.replay(SWEEPS, self._position)

        while entries := self._session.call(replay):
            for entry in entries:
                self._position = entry.position
                if any(map(self._is_meant, read(entry.data))):
                    return entry
        return None

    def _is_meant(self, event: Event) -> bool:
        return event.type == "sweep.begun" and event.data.get("name") == self._name

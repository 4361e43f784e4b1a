"""Dead letters for pages: looked at when somebody looks, and not while nothing has changed."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from synmanager.backends.base import DeadLetter, QueueBackend
from synmanager.errors import TopologyError
from synmanager.letters import first_line
from synmanager.web.observer import Observer

__all__ = ["MOST", "Group", "Letter", "Letters"]

#: Letters of a queue that are looked at, and seconds between two looks at the soonest.
MOST, _BETWEEN = 1_000, 3.0


@dataclass(frozen=True)
class Letter:
    """A dead letter without its body, of which many may be kept."""

    queue: str
    id: str
    reason: str
    attempts: int
    died_at: float


@dataclass(frozen=True)
class Group:
    """Letters of a queue that died of the same."""

    queue: str
    reason: str
    letters: list[Letter]

    @property
    def last(self) -> float:
        return max(letter.died_at for letter in self.letters)


class Letters:
    """The oldest dead letters of each queue."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._lock = threading.Lock()
        self._known: list[Letter] = []
        self._seen: tuple[object, ...] | None = None
        self._at = 0.0

    def all(self, *, fresh: bool = False) -> list[Letter]:
        """As they are, or were moments ago.

        Args:
            fresh: as they are now.

        Raises:
            SynmanagerError: the broker does not say.
        """
        with self._lock:
            now, seen = time.monotonic(), self._signs()
            is_old = seen != self._seen and now - self._at >= _BETWEEN
            if fresh or self._seen is None or is_old:
                self._known = self._observer.session.call(self._read)
                self._seen, self._at = seen, now
            return self._known

    def groups(self) -> list[Group]:
        """By queue and the first line of their reason, the most frequent first."""
        found: dict[tuple[str, str], list[Letter]] = {}
        for letter in self.all():
            found.setdefault((letter.queue, letter.reason), []).append(letter)
        groups = [Group(queue, reason, letters) for (queue, reason), letters in found.items()]
        return sorted(groups, key=lambda group: (-len(group.letters), group.queue, group.reason))

    def chosen(
        self, queue: str, reason: str, letter_id: str, *, fresh: bool = False
    ) -> list[Letter]:
        """Those of a queue, of a reason and of an id; "" for any."""
        return [
            letter
            for letter in self.all(fresh=fresh)
            if (not queue or letter.queue == queue)
            and (not reason or letter.reason == reason)
            and (not letter_id or letter.id == letter_id)
        ]

    def forget(self) -> None:
        """Something was done to them: look anew."""
        self._seen = None

    def in_full(self, queue: str, letter_id: str) -> DeadLetter | None:
        """A letter with its job; None if it is not there, or no longer."""

        def find(broker: QueueBackend) -> DeadLetter | None:
            try:
                found = broker.dead_letters(queue, MOST)
            except TopologyError:
                return None
            return next((each for each in found if each.message.id == letter_id), None)

        return self._observer.session.call(find)

    def _signs(self) -> tuple[object, ...]:
        """What changes when letters come or go."""
        with self._observer.looking():
            counts = list(self._observer.counts.items())
        dead = tuple((queue, found.dead) for queue, found in counts if found is not None)
        return self._observer.deaths, dead

    def _read(self, broker: QueueBackend) -> list[Letter]:
        with self._observer.looking():
            queues = [name for name, found in self._observer.counts.items() if found is not None]
        letters: list[Letter] = []
        for queue in queues:
            try:
                found = broker.dead_letters(queue, MOST)
            except TopologyError:
                continue
            letters += [
                Letter(queue, each.message.id, first_line(each.reason), each.attempts, each.died_at)
                for each in found
            ]
        return letters

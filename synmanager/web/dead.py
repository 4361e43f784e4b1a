"""Dead letters for pages: looked at when somebody looks, and not while nothing has changed."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from hashlib import blake2b

from synmanager.backends.base import DeadLetter, QueueBackend
from synmanager.errors import TopologyError
from synmanager.letters import first_line
from synmanager.redact import hidden_in_text
from synmanager.web.observer import Observer

__all__ = ["MOST", "Group", "Letter", "Letters"]

#: Letters of a queue that are looked at, and seconds between two looks at the soonest.
MOST, _BETWEEN = 1_000, 3.0

#: Bytes of their jobs that are looked at, about, as a broker hands out letters with their jobs; and
#: how many are looked at first, and then, to learn how large they are.
_MOST_BYTES, _FIRST = 32 * 1024 * 1024, (10, 100)

#: Characters of a reason that its first line is looked for in.
_LONGEST_REASON = 4_000


@dataclass(frozen=True)
class Letter:
    """A dead letter without its body, of which many may be kept.

    Attributes:
        reason: the first line of why it died, without secrets.
    """

    queue: str
    id: str
    reason: str
    attempts: int
    died_at: float

    @property
    def cause(self) -> str:
        """What stands for the reason in an address: not its words, which others may read there."""
        said = self.reason.encode("utf-8", "replace")
        return blake2b(said, digest_size=9).hexdigest()


@dataclass(frozen=True)
class Group:
    """Letters of a queue that died of the same: one or more."""

    queue: str
    reason: str
    letters: list[Letter]

    @property
    def cause(self) -> str:
        return self.letters[0].cause

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
        self, queue: str, cause: str, letter_id: str, *, fresh: bool = False
    ) -> list[Letter]:
        """Those of a queue, of a cause and of an id; "" for any."""
        return [
            letter
            for letter in self.all(fresh=fresh)
            if (not queue or letter.queue == queue)
            and (not cause or letter.cause == cause)
            and (not letter_id or letter.id == letter_id)
        ]

    def forget(self) -> None:
        """Something was done to them: look anew."""
        self._seen = None

    def in_full(self, queue: str, letter_id: str) -> DeadLetter | None:
        """A letter with its job; None if it is not there, or no longer."""

        def find(broker: QueueBackend) -> DeadLetter | None:
            try:
                found = _oldest(broker, queue)
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
                found = _oldest(broker, queue)
            except TopologyError:
                continue
            letters += [_without_body(queue, each) for each in found]
        return letters


def _oldest(broker: QueueBackend, queue: str) -> list[DeadLetter]:
    """As many as are looked at, fewer where they are large: a thousand could be gigabytes.

    Raises:
        TopologyError: there is no such queue.
    """
    found: list[DeadLetter] = []
    wanted = MOST
    for step in (*_FIRST, MOST):
        if wanted <= len(found):
            break
        step = min(step, wanted)
        found = broker.dead_letters(queue, step)
        if len(found) < step:
            break
        size = sum(len(letter.message.body) for letter in found) / len(found)
        wanted = min(MOST, int(_MOST_BYTES / max(size, 1)))
    return found


def _without_body(queue: str, letter: DeadLetter) -> Letter:
    # Hidden before it is cut: half a secret would not be known for one.
    reason = first_line(hidden_in_text(letter.reason[:_LONGEST_REASON]))
    return Letter(queue, letter.message.id, reason, letter.attempts, letter.died_at)

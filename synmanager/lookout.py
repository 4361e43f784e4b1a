"""Following one broker's journal and counting its queues, for what is scraped now and then."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from synmanager.backends.base import Counts, QueueBackend
from synmanager.backends.registry import create_backend
from synmanager.engine.session import Session
from synmanager.errors import SynmanagerError, TopologyError, Unsupported
from synmanager.journal.events import Event
from synmanager.journal.fold import Fold
from synmanager.journal.reader import Reader
from synmanager.journal.tally import Tally
from synmanager.phases import COMPLETED, PHASES
from synmanager.settings import Settings
from synmanager.text import shown

__all__ = ["Lookout"]

logger = logging.getLogger(__name__)

#: Seconds of one wait for the journal; for which a broker that is away is waited for; and of the
#: pause after trouble.
_WAIT, _PATIENCE, _PAUSE = 1.0, 5.0, 1.0

#: Seconds between the counts of two queues; after which nobody counts any more, if nobody looked;
#: and that who looks then waits for a first count. With the journal's, less than two requests a
#: second, whoever looks how often.
_BETWEEN, _UNWATCHED, _FIRST = 2.0, 120.0, 2.0

#: Turns after which each queue was counted once more, at most.
_TURNS = 8

#: Queues besides the phases' that are told apart.
_MOST_QUEUES = 50


class Lookout:
    """A ``metrics.Watched`` on a connection of its own.

    The journal is followed for as long as it is open, with one request a second while nothing
    happens. Queues are counted in turn while somebody looks now and then; who looks waits for
    nothing but the first count.

    Args:
        settings: which broker.
        queues: to count besides the phases' and what the broker lists.
        say: is told, once, what cannot be seen here and why.
    """

    def __init__(
        self, settings: Settings, queues: tuple[str, ...], say: Callable[[str], None]
    ) -> None:
        self._session = Session(create_backend(settings.address), _PATIENCE)
        self._say = say
        self._said: set[str] = set()
        self._asked_for = queues
        self._names: tuple[str, ...] = ()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._wanted, self._counted = threading.Event(), threading.Condition()
        self._counts: dict[str, Counts | None] = {}
        self._counted_at = self._looked_at = time.monotonic()
        self._is_caught_up = self._is_following = False
        self.is_up = False
        self.tally = Tally(Fold())
        self._threads = [threading.Thread(target=self._count, name="synmanager-counts")]

    def start(self) -> None:
        """Connect, count, and begin to follow.

        Raises:
            BrokerUnavailable: nobody answers.
            AccessRefused: wrong credentials, virtual host or certificate.
        """
        try:
            self._session.open()
            listed = self._session.call(lambda broker: broker.facts().queues) or ()
            own = [phase.queue for phase in PHASES.values()]
            others = dict.fromkeys((*self._asked_for, *sorted(listed)))
            self._names = (*own, *[name for name in others if name not in own][:_MOST_QUEUES])
            self.tally = Tally(Fold(), self._names)
            self._look(self._names)
            backend = self._session.backend
            if backend.features.journal:
                reader = Reader(self._session, self._take)
                follow = threading.Thread(
                    target=self._follow, args=(reader,), name="synmanager-lookout"
                )
                self._threads.append(follow)
            else:
                self._tell(
                    f"{backend.address.scheme} keeps no journal: what queues hold is told, but "
                    "nothing of workers, times, retries or ranks"
                )
        except BaseException:
            self._session.close()
            raise
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    def stop(self) -> None:
        """End it, and disconnect."""
        self._stopping.set()
        self._wanted.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(2 * _WAIT)  # until what it asks is answered
        self._session.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    @property
    def hears(self) -> bool:
        return self._is_caught_up and self._is_following and self.tally.events > 0

    @property
    def counts(self) -> Mapping[str, Counts | None]:
        return self._counts

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Let nothing change meanwhile."""
        with self._counted:
            self._looked_at, before = time.monotonic(), self._counted_at
            self._wanted.set()
            if self._looked_at - before > _UNWATCHED:
                self._counted.wait_for(lambda: self._counted_at != before, _FIRST)
        with self._lock:
            yield

    def _count(self) -> None:
        turns = itertools.cycle(self._names)
        portion = -(-len(self._names) // _TURNS)
        while not self._stopping.wait(_BETWEEN):
            self._wanted.clear()
            if time.monotonic() - self._looked_at > _UNWATCHED:
                self._wanted.wait()
                if self._stopping.is_set():
                    return
                self._look(self._names)
            else:
                self._look(tuple(itertools.islice(turns, portion)) if self._counts else self._names)

    def _look(self, names: tuple[str, ...]) -> None:
        """Count some queues."""
        found, is_up = dict(self._counts), True
        try:
            for name in names:
                found[name] = self._session.call(partial(_count, name=name))
        except Exception as error:
            self._stumbled(error)
            found, is_up = {}, False
        with self._lock:
            self._counts, self.is_up = found, is_up
        with self._counted:
            self._counted_at = time.monotonic()
            self._counted.notify_all()

    def _follow(self, reader: Reader) -> None:
        while not self._stopping.is_set():
            try:
                before = self.tally.events
                reader.wait(0.0 if not self._is_caught_up else _WAIT)
                self._is_following = True
                if not self._is_caught_up and self.tally.events == before:
                    self._begin()
            except Exception as error:
                self._is_following = False
                self._stumbled(error)
                self._stopping.wait(_PAUSE)

    def _begin(self) -> None:
        """All that there was is read."""
        with self._lock:
            self.tally.begin(*(phase.queue for phase in PHASES.values() if phase is not COMPLETED))
            self._is_caught_up = True
        if not self.tally.events:
            self._tell(
                "nothing is recorded in the journal: what queues hold is told, but nothing of "
                "workers, times, retries or ranks, until producers and workers run "
                "without SYNMANAGER_JOURNAL=off"
            )

    def _take(self, event: Event) -> None:
        with self._lock:
            self.tally.apply(event)

    def _stumbled(self, error: Exception) -> None:
        if self._stopping.is_set():
            return
        if isinstance(error, SynmanagerError):
            self._tell(f"{type(error).__name__}: {shown(error, 300)}")
        else:
            logger.exception("unexpected trouble; going on")

    def _tell(self, text: str) -> None:
        if text not in self._said and len(self._said) < 100:
            self._said.add(text)
            self._say(text)


def _count(broker: QueueBackend, name: str) -> Counts | None:
    try:
        return broker.count(name)
    except (TopologyError, Unsupported):  # looking must not create it
        return None

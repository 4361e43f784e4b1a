"""A broker of the test's own, whose time passes and which fails as the test says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, get_args
from uuid import uuid4

from synmanager.backends.base import DeadLetter, QueueBackend
from synmanager.backends.memory import MemoryBroker, forget, serve
from synmanager.backends.registry import create_backend
from synmanager.engine.callbacks import Callback
from synmanager.message import Message
from synmanager.phases import COMPLETED, PHASES, WorkPhase
from synmanager.settings import parse_url
from synmanager.testkit.clock import TravellingClock
from synmanager.worker import Worker

__all__ = ["FakeBroker", "Operation", "Waiting"]

#: What can be made to fail, by the names of ``QueueBackend``'s methods.
Operation = Literal[
    "open", "declare", "publish", "receive", "ack", "nack", "bury", "renew", "count", "purge",
    "delete", "dead_letters", "redrive", "record", "replay",
]  # fmt: skip

#: Queues that are looked at although nobody has made them.
_SPECS = tuple(phase.spec for phase in PHASES.values())


@dataclass(frozen=True)
class Waiting:
    """A job that waits in a phase.

    Attributes:
        job: the payload, as its handler will get it.
        id: its id.
        priority: "high", "normal" or "low".
        delay: seconds until it may run, rounded to a hundredth; 0.0 if it may run now.
    """

    job: dict[str, Any]
    id: str
    priority: str
    delay: float


class _Failing(MemoryBroker):
    def __init__(self, clock: TravellingClock) -> None:
        super().__init__(clock)
        self.clients_clock = clock
        self.failures: dict[str, list[tuple[Exception, float]]] = {}  # and how often

    def before(self, operation: str) -> None:
        waiting = self.failures.get(operation)
        if waiting:
            error, times = waiting[0]
            waiting[:1] = [(error, times - 1)] if times > 1 else []
            raise copy(error)


class FakeBroker:
    """A broker in memory for one test: empty, private, with a clock, and failing on command.

    It is there between ``with`` and its end, for whoever connects to :attr:`url`.
    pytest's fixture ``synmanager_broker`` is one that ``SYNMANAGER_BACKEND`` names, so that
    operators, Workers and Archivers that are made without an address reach it.

    Args:
        clock: a new one unless given.

    Attributes:
        url: its address.
        clock: its time, see :class:`TravellingClock`.

    Example:
        >>> from synmanager.train import TrainProducerOperator
        >>> with FakeBroker() as broker:
        ...     with TrainProducerOperator(url=broker.url) as producer:
        ...         job_id = producer.submit({"lr": 0.1}, delay=3600)
        ...     broker.drain({"train": lambda lr: {"loss": lr * 2}})
        ...     broker.results()
        1
        [{'loss': 0.2}]
    """

    def __init__(self, clock: TravellingClock | None = None) -> None:
        self.clock = clock or TravellingClock()
        self._broker = _Failing(self.clock)
        self._name = f"test-{uuid4().hex}"
        self.url = f"memory:///{self._name}"
        serve(self._name, self._broker)

    def __enter__(self) -> FakeBroker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        forget(self._name)

    def fail(
        self,
        operation: Operation,
        error: Exception | type[Exception],
        *,
        times: int | None = 1,
    ) -> None:
        """Let the next calls of an operation fail, before they have done anything.

        What is asked for twice comes one after the other.

        Args:
            operation: "open" is ``connect()``; "publish" is ``process()``, ``submit()`` and a
                result's way out; "receive" the look for a job; "ack", "nack" and "bury" settle
                one that ended well, is retried, or died; "renew" keeps a running one.
            error: what is raised, such as ``BrokerUnavailable("gone")``, which also ends the
                connection.
            times: how often; None for as long as nobody calls :meth:`mend`.

        Raises:
            ValueError: there is no such operation, or no such number of times.

        Example:
            >>> from synmanager.errors import BrokerUnavailable
            >>> from synmanager.train import TrainProducerOperator
            >>> with FakeBroker() as broker:
            ...     broker.fail("publish", BrokerUnavailable("gone"), times=2)
            ...     with TrainProducerOperator(url=broker.url) as producer:
            ...         producer.process(lr=0.1)  # tries again until it comes through
            ...     len(broker.waiting("train"))
            '{"lr": 0.1}'
            1
        """
        if operation not in get_args(Operation):
            raise ValueError(f"a broker can {', '.join(get_args(Operation))}; not {operation!r}")
        if times is not None and times < 1:
            raise ValueError(f"it fails once or more, not {times!r} times")
        made = error() if isinstance(error, type) else error
        often = float("inf") if times is None else times
        self._broker.failures.setdefault(operation, []).append((made, often))

    def mend(self) -> None:
        """Let nothing fail any more."""
        self._broker.failures.clear()

    def waiting(self, phase: str) -> list[Waiting]:
        """The jobs of a phase that wait, in the order in which they run; the delayed ones last.

        Args:
            phase: "preprocess", "train", "evaluate", "completed", or another queue's name, such
                as "completed-director".

        Raises:
            TopologyError: there is no such queue.
        """
        with self._broker.changed:
            queue = self._broker.queue(self._known(phase))
            self._broker.settle_time(queue)
            ready = [entry.message for ranked in queue.ready.values() for entry in ranked.values()]
            now = self.clock.now()
            later = sorted((due, number, entry) for due, number, entry in queue.due)
            return [_waiting(message, 0.0) for message in ready] + [
                _waiting(entry.message, due - now) for due, _, entry in later if not entry.deleted
            ]

    def results(self) -> list[dict[str, Any]]:
        """What waits in ``completed``, oldest first: the results that handlers have returned."""
        return [each.job for each in self.waiting(COMPLETED.queue)]

    def dead_letters(self, phase: str) -> list[DeadLetter]:
        """The dead letters of a phase, oldest first: ``reason``, ``attempts``, ``traceback``."""
        with self._broker.changed:
            return list(self._broker.queue(self._known(phase)).dead)

    def drain(
        self, handlers: Mapping[WorkPhase, Callback], *, at_most: int = 10_000, **options: Any
    ) -> int:
        """Run a Worker until nothing waits, moving the clock to whatever is due next.

        So retries with their pauses, ``Retry(delay=3600)`` and ``submit(…, delay=3600)`` run to
        their ends at once.

        Args:
            handlers, options: as for :class:`~synmanager.Worker`.
            at_most: how many attempts, lest a job that is always put back is run for ever.

        Returns:
            How many attempts were run.

        Raises:
            RuntimeError: after ``at_most`` of them something still waits.
        """
        count = 0
        while True:
            worker = Worker(handlers, url=self.url, **options)
            count += worker.run(burst=True, max_jobs=at_most - count)
            waiting = [each.delay for phase in handlers for each in self.waiting(phase)]
            if not waiting:
                return count
            if count >= at_most:
                raise RuntimeError(f"{len(waiting)} jobs still wait after {count} attempts")
            self.clock.advance(min(waiting) + 0.01)

    def connect(self) -> QueueBackend:
        """A connection below the operators, open, for what else a test wants to see or to do."""
        backend = create_backend(parse_url(self.url))
        backend.open()
        return backend

    def _known(self, queue: str) -> str:
        """A queue's name; the phases' are there for whoever looks first."""
        if queue in PHASES and queue not in self._broker.queues:
            return _made(self, queue)
        return queue


def _made(broker: FakeBroker, queue: str) -> str:
    backend = broker.connect()
    backend.declare(PHASES[queue].spec)
    backend.close()
    return queue


def _waiting(message: Message, seconds: float) -> Waiting:
    return Waiting(
        json.loads(message.body), message.id, message.rank.name.lower(), max(0.0, round(seconds, 2))
    )

"""The interface between synmanager and a message broker.

A backend is a *thin driver*: it moves messages and holds leases. Retry, backoff, reconnection,
poison jobs and callbacks are decided above it, once for all brokers. To write one, implement
:class:`QueueBackend`, register its URL scheme (``synmanager.backends.registry``) and run the suite
in :mod:`synmanager.testing` against it: the suite is the definition, this file its summary.

Rules for every method, unless its docstring says otherwise:

- It may be called from any thread, and from several at once.
- It does not retry. If the broker is gone or silent it raises ``BrokerUnavailable`` within
  ``Address.timeout`` seconds; the caller then calls :meth:`QueueBackend.open` again and repeats.
- It raises the errors of :mod:`synmanager.errors`, never the client library's, and no error
  carries a password.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from synmanager.errors import Unsupported
from synmanager.message import Message

__all__ = [
    "Address",
    "Counts",
    "DeadLetter",
    "Delivery",
    "ExchangeSpec",
    "Features",
    "QueueBackend",
    "QueueSpec",
]


@dataclass(frozen=True)
class Address:
    """Where a broker is and how to talk to it: what a backend is constructed with.

    Attributes:
        scheme: the URL scheme that chose the backend, such as ``amqps``.
        host, port: None where the URL named none; the backend fills in its default.
        path: the URL's path without its first slash: a virtual host, a database number, a file.
        options: the URL's query, for instance ``cafile``. A backend refuses names it does not know.
        timeout: seconds until a call to a silent broker fails.
        heartbeat: seconds between signs of life; a peer silent for two of them is dead.
        lease: seconds for which a received job is ours unless renewed. Brokers that tie a
            delivery to its connection free it when the connection ends instead.
    """

    scheme: str
    host: str | None = None
    port: int | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    path: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 30.0
    heartbeat: float = 20.0
    lease: float = 60.0


@dataclass(frozen=True)
class ExchangeSpec:
    """An exchange: ``topic`` (routes on the exact key) or ``fanout`` (to every bound queue)."""

    name: str
    type: str
    durable: bool = True


@dataclass(frozen=True)
class QueueSpec:
    """A queue and the one binding that feeds it."""

    name: str
    exchange: ExchangeSpec
    routing_key: str
    durable: bool = True


@dataclass(frozen=True)
class Features:
    """What a broker honestly can and cannot do.

    Each False is documented, and what it denies raises ``Unsupported`` (or, for counts, is
    None). No flag permits loss.

    Attributes:
        durable: confirmed messages survive the broker's restart.
        shared: other processes and machines see the same queues.
        timed_lease: a lease ends by time and needs ``renew``; else it ends with the connection.
        deduplicates: a publish whose id is queued, delayed or leased is accepted and ignored.
        deletes: ``delete`` works.
        counts_leased, counts_delayed: ``count`` knows those numbers.
        ranks_foreign: a message of another program, which has no rank, counts as a normal one
            and not as the lowest.
    """

    durable: bool
    shared: bool
    timed_lease: bool
    deduplicates: bool
    deletes: bool
    counts_leased: bool
    counts_delayed: bool
    ranks_foreign: bool


@dataclass(frozen=True)
class Counts:
    """How many messages of a queue are in which state; None where the broker cannot tell."""

    ready: int
    leased: int | None
    delayed: int | None
    dead: int


@dataclass(eq=False)
class Delivery:
    """A message that the broker has handed to us and to nobody else.

    Attributes:
        queue: where it came from.
        attempt: 1 for the first time; counts failures *and* crashes of earlier holders.
        receipt: the driver's own handle on the delivery. It names the connection as well as the
            message, so that a delivery of a lost connection can never settle another's job.
        defect: why no valid message could be built from what arrived (``message.body`` then
            holds what there was); None for a sound one.
        settled: set by the driver once acked, nacked or buried.
    """

    message: Message
    queue: str
    attempt: int
    receipt: Any = field(repr=False)
    defect: str | None = None
    settled: bool = False


@dataclass(frozen=True)
class DeadLetter:
    """A job that was given up, kept with the reason.

    Attributes:
        message: as it was submitted; the body byte for byte.
        queue: the queue it was taken from.
        reason: the last error, in words.
        attempts: how often it was delivered.
        died_at: seconds since the epoch.
    """

    message: Message
    queue: str
    reason: str
    attempts: int
    died_at: float


class QueueBackend(ABC):
    """One connection to one broker.

    Constructing it does no I/O and raises ``ConfigurationError`` for an :class:`Address` that
    can never work.
    """

    features: Features

    def __init__(self, address: Address) -> None:
        self.address = address

    @abstractmethod
    def open(self) -> None:
        """Connect; return at once if connected. After a lost connection, connect anew.

        Raises:
            BrokerUnavailable: nobody answers.
            AccessRefused: somebody answers and does not let us in, or is not who it should be.
        """

    @abstractmethod
    def close(self) -> None:
        """Give back what is leased and disconnect, in bounded time even if the broker is frozen.

        Idempotent. Calls blocked in other threads end with ``BrokerUnavailable``.
        """

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """Whether there is a connection, as far as is known without I/O."""

    @abstractmethod
    def abandon(self) -> None:
        """Forget the connection without touching it: it belongs to the parent of this process.

        Called in the child after a fork, where no other thread exists and any lock may be stuck.
        The next ``open`` makes a connection of its own. A backend that cannot work in a child
        says so from then on with ``Unsupported``.
        """

    @abstractmethod
    def declare(self, *specs: ExchangeSpec | QueueSpec) -> None:
        """Make sure that these exchanges and queues exist, and bind each queue.

        What exists is taken as it is and never declared again with other arguments. Idempotent,
        and cheap when repeated.

        Raises:
            TopologyError: something else has the name, such as an exchange of another type.
        """

    @abstractmethod
    def publish(
        self,
        exchange: str,
        routing_key: str,
        messages: Sequence[Message],
        *,
        delay: float = 0.0,
    ) -> None:
        """Hand over a batch; return when the broker has *accepted* every message.

        Messages become visible in order, ``delay`` seconds from now; a delayed one is not lost
        by a restart. Every queue bound to the route gets its own copy.

        Raises:
            Unroutable: no queue is bound to this route, or no such exchange exists.
            PublishInterrupted: the broker went away; says which messages are in doubt.
            PublishRefused: the broker is there and does not take them.
        """

    @abstractmethod
    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        """Take one message, or None when all queues stayed empty for ``wait`` seconds.

        The first non-empty queue wins; within a queue the highest rank, and within a rank the
        oldest. Waiting costs the broker next to nothing, and a message that arrives ends it
        within milliseconds. When this returns, nothing but the returned delivery is held; what
        may have come with it is on its way back, uncounted.

        Args:
            done: :meth:`ack` this one first. A worker does both after every job, and many
                brokers can do them in one round trip.

        Raises:
            TopologyError: a queue does not exist.
            LeaseLost: the broker has taken ``done`` back; nothing is taken.
        """

    @abstractmethod
    def ack(self, delivery: Delivery) -> None:
        """The job is done: remove it. Settling what is settled already is a no-op.

        Raises:
            LeaseLost: the broker has taken the delivery back.
        """

    @abstractmethod
    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        """Put the message back, visible again in ``delay`` seconds, with its id and rank.

        Without a delay it goes to the head of its rank where the broker can do that; after one,
        to the tail. The next delivery's attempt is one higher if ``count``, else the same. The
        new copy is accepted by the broker before the old one is given up.

        Raises:
            LeaseLost: the broker has taken the delivery back.
        """

    @abstractmethod
    def bury(self, delivery: Delivery, reason: str) -> None:
        """Move the message to the queue's dead letters, accepted there before it leaves here.

        Raises:
            LeaseLost: the broker has taken the delivery back.
        """

    @abstractmethod
    def renew(self, delivery: Delivery) -> None:
        """Keep the delivery for another ``Address.lease`` seconds.

        Where a lease ends with the connection, only look whether it still holds; no I/O.

        Raises:
            LeaseLost: the broker has taken the delivery back.
        """

    @abstractmethod
    def count(self, queue: str) -> Counts:
        """Count a queue's messages.

        Raises:
            TopologyError: the queue does not exist.
        """

    @abstractmethod
    def purge(self, queue: str) -> int:
        """Remove every ready and delayed message that can be reached; return how many."""

    @abstractmethod
    def delete(self, queue: str, message_id: str) -> bool:
        """Remove a message that is ready or delayed; False if there is none with this id.

        Raises:
            Unsupported: the broker cannot find a message by id.
        """

    @abstractmethod
    def dead_letters(self, queue: str, limit: int) -> list[DeadLetter]:
        """Look at the oldest dead letters of a queue, without changing them."""

    @abstractmethod
    def redrive(self, queue: str, limit: int) -> int:
        """Put up to ``limit`` dead letters back, oldest first; return how many.

        Each is delivered again as attempt 1, with its id, rank and body, and is accepted by the
        queue before it leaves the dead letters.
        """

    @abstractmethod
    def purge_dead_letters(self, queue: str) -> int:
        """Remove a queue's dead letters for good; return how many."""

    def native(self) -> tuple[Any, Any]:
        """The client library's own ``(connection, channel)``, for callers that go past this layer.

        They belong to the caller's thread and live until ``close``. A backend whose library has
        no such objects stands in for both itself.
        """
        return self, self

    def adopt(
        self, queue: str, channel: Any, method: Any, properties: Any, body: bytes, *, settled: bool
    ) -> Delivery | None:
        """Make a delivery of what the client library handed to a consumer callback directly.

        Settling it goes through ``channel``, in the calling thread. None if it must not be run
        now, because it comes again with its attempts counted.

        Args:
            settled: the consumer acknowledges by itself.
        """
        raise Unsupported(f"{self.address.scheme} has no consumer callbacks of its own")

"""The interface between synmanager and a message broker.

A backend is a *thin driver*: it moves messages and holds leases. Retry, backoff, reconnection,
poison jobs and callbacks are decided above it, once for all brokers. To write one, implement
:class:`QueueBackend`, register its URL scheme (``synmanager.backends.registry``) and run the suite
in :mod:`synmanager.testing` against it: the suite is the definition, this file its summary.

Rules for every method, unless its docstring says otherwise:

- It may be called from any thread, and from several at once.
- It does not retry. If the broker is gone or silent it raises ``BrokerUnavailable`` within
  ``Address.timeout`` seconds; the caller then calls :meth:`QueueBackend.open` again and repeats.
- **What it does not recognise on a connection that was open is** ``BrokerUnavailable``: an answer
  that it has no name for, of the wrong shape, out of turn, from a proxy or from a broker that is
  no longer the primary. The connection is dropped (``is_open`` is False from then on), and the
  error says what was answered. ``AccessRefused`` is for what is positively known to be that.
- It raises the errors of :mod:`synmanager.errors`, never the client library's, and no error
  carries a password. What a caller's own signal handler raises in the middle of a call passes
  through as it is, see :mod:`synmanager.interrupts`, and leaves nothing half-read behind it.
- After ``Unroutable`` or ``TopologyError``, the next :meth:`QueueBackend.declare` looks at the
  broker, whatever it has declared before.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, ClassVar

from synmanager.backends.urls import read_url, written_url
from synmanager.clock import Clock
from synmanager.errors import ConfigurationError, Unsupported
from synmanager.message import Message

__all__ = [
    "Address",
    "Counts",
    "DeadLetter",
    "Delayed",
    "Delivery",
    "Entry",
    "ExchangeSpec",
    "Facts",
    "Features",
    "QueueBackend",
    "QueueSpec",
    "check_place",
]

#: Seconds that a loop's wait lasts by default. Bounds how long ``stop()`` goes unnoticed.
_SLICE = 1.0


@dataclass(frozen=True)
class Address:
    """Where a broker is and how to talk to it: what a backend is constructed with.

    Attributes:
        scheme: the URL scheme that chose the backend, such as ``amqps``.
        host, port: None where the URL named none; the backend fills in its default. Of several
            hosts, the first.
        path: the URL's path without its first slash: a virtual host, a database number, a file.
        options: the URL's query, for instance ``cafile``. A backend refuses names it does not know.
        timeout: seconds until a call to a silent broker fails.
        heartbeat: seconds between signs of life; a peer silent for two of them is dead.
        lease: seconds for which a received job is ours unless renewed. Brokers that tie a
            delivery to its connection free it when the connection ends instead.
        journal_age, journal_bytes: seconds and bytes for which, about, a log of the journal keeps
            its entries; the first limit that is reached counts.
        others: further hosts of the same broker, with their ports; see :attr:`hosts`.
    """

    scheme: str
    host: str | None = None
    port: int | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    path: str = ""
    options: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout: float = 30.0
    heartbeat: float = 20.0
    lease: float = 60.0
    journal_age: float = 7 * 86_400.0
    journal_bytes: int = 256 * 1024 * 1024
    others: tuple[tuple[str, int | None], ...] = ()

    @classmethod
    def from_url(cls, url: str, **fields: Any) -> Address:
        """Read ``scheme://user:password@host:port,host:port/path?name=value``.

        Whether there is a backend for it, and whether that knows the options, is not asked.

        Args:
            fields: what no URL says, such as ``timeout``; or other values than the URL's.

        Raises:
            ConfigurationError: it cannot be one; never quoting more of it than its scheme.
        """
        return cls(**{**read_url(url), **fields})

    @property
    def hosts(self) -> tuple[tuple[str, int | None], ...]:
        """All hosts, with the port that each was given; none where the URL named none.

        They are one broker; ``urls.spread`` says in which order to try them.
        """
        return ((self.host, self.port), *self.others) if self.host else ()

    @property
    def safe_url(self) -> str:
        """The URL for errors and logs: without the password and the options."""
        hosts = self.hosts or (("", self.port),)
        return written_url(self.scheme, hosts, self.username, self.path)


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

    A backend has them from its making on. What only the broker itself can tell may differ after
    the first ``open``, and from then on nothing changes.

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
        ranks_fanout: messages of a fanout exchange are ranked as well; else they come in any order.
        longest_delay: seconds; nobody asks a driver for more, as whoever asks for more above it
            gets this much.
        requeues_at_head: a ``nack`` without a delay puts a message before those of its rank that
            nobody has had yet, in any order with others put back; else anywhere among them.
        atomic_batches: a batch of ``publish`` is accepted as a whole or not at all; else those
            that an error does not name have been accepted.
        keeps_held: what is held comes back when its holder dies; where it does not, the backend
            refuses to be made unless its user allowed the loss by name.
        shows_dead_letters: ``dead_letters`` works.
        mends_letters: ``redrive_letters``, ``purge_letters``, ``edit_letter`` and ``add_letters``
            work.
        shows_delayed: ``delayed`` works.
        journal: ``record`` and ``replay`` work.
        undeclares: ``undeclare`` works.
    """

    durable: bool
    shared: bool
    timed_lease: bool
    deduplicates: bool
    deletes: bool
    counts_leased: bool
    counts_delayed: bool
    ranks_foreign: bool
    longest_delay: float = 100 * 366 * 86_400.0
    ranks_fanout: bool = True
    requeues_at_head: bool = False
    atomic_batches: bool = False
    keeps_held: bool = True
    shows_dead_letters: bool = True
    mends_letters: bool = False
    shows_delayed: bool = False
    journal: bool = False
    undeclares: bool = False


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
        hold_off: seconds for which it should not be begun yet: whoever held it before was lost so
            shortly ago that he may not know yet, and run it still.
    """

    message: Message
    queue: str
    attempt: int
    receipt: Any = field(repr=False)
    defect: str | None = None
    settled: bool = False
    hold_off: float = 0.0


@dataclass(frozen=True)
class DeadLetter:
    """A job that was given up, kept with the reason.

    Attributes:
        message: as it was submitted; the body byte for byte.
        queue: the queue it was taken from.
        reason: the last error, in words.
        attempts: how often it was delivered.
        died_at: seconds since the epoch.
        traceback: the end of it, if an exception was the reason; else "".
    """

    message: Message
    queue: str
    reason: str
    attempts: int
    died_at: float
    traceback: str = ""


@dataclass(frozen=True)
class Delayed:
    """A message that waits to become visible.

    Attributes:
        seconds: until then; 0 or less for one that is due and has not been moved yet.
    """

    message: Message
    seconds: float


@dataclass(frozen=True)
class Facts:
    """What a broker tells of itself, as far as it does. For people: nothing is decided by it.

    Attributes:
        product, version: of the server or the library, such as ``RabbitMQ`` and ``4.3.6``.
        queues: the names of all queues that were declared, without those that a driver keeps for
            its own use; None where the broker does not list them.
        consumers: how many wait for messages of a queue at this moment, by its name.
        arguments: with what a queue was made, by its name; none for one that is not there.
        settings: the broker's own settings, and what else it says of itself, by its own names.
        room: how many bytes it takes, and how many it may take at most, of ``memory`` and ``disk``.
    """

    product: str = ""
    version: str = ""
    queues: tuple[str, ...] | None = None
    consumers: Mapping[str, int] = field(default_factory=dict)
    arguments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    room: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """An entry of a log of the journal.

    Attributes:
        position: where in its log it stands, in the driver's own words; ``replay`` goes on behind
            it. It stays true after a reconnection, and in other processes.
        recorded_at: seconds since the epoch, by the broker's clock where it has one.
        data: what was recorded, byte for byte.
    """

    position: str
    recorded_at: float
    data: bytes


def check_place(after: str | float, form: re.Pattern[str]) -> None:
    """Refuse what ``replay`` cannot begin at, before the broker is asked for it.

    Args:
        form: of a driver's positions.

    Raises:
        ConfigurationError: it is another broker's position, or no time.
    """
    if not (form.fullmatch(after) if isinstance(after, str) else isfinite(after)):
        raise ConfigurationError(f"no log is read from {after!r:.80} on here")


class QueueBackend(ABC):
    """One connection to one broker.

    Constructing it does no I/O and raises ``ConfigurationError`` for an :class:`Address` that
    can never work.

    Attributes:
        clustered: the URL schemes whose broker may have several hosts; of any other, an address
            with several is refused.
    """

    features: Features
    clustered: ClassVar[Collection[str]] = ()

    #: By which those measure who use it: limits, pauses, patience. Only a test's is another.
    clock: Clock = Clock()

    def __init__(self, address: Address) -> None:
        if address.others and address.scheme not in self.clustered:
            raise ConfigurationError(f"{address.scheme}:// has one host, not {len(address.hosts)}")
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

        What exists is taken as it is and never declared again with other arguments; a binding
        that is new is added to those that there are. Idempotent, and cheap when repeated.

        Raises:
            TopologyError: something else has the name, such as an exchange of another type.
        """

    def undeclare(self, spec: QueueSpec) -> None:
        """Remove a queue for good, with its binding and all that is in it; its exchange stays.

        What is ready, delayed, held or dead goes, as far as it can be reached; who holds some of
        it may get ``LeaseLost`` at its next step. Other queues are not touched. If there is no
        such queue, that is what was wanted; declared again, it begins empty. A call that is cut
        off in the middle may be repeated.

        Raises:
            Unsupported: unless ``Features.undeclares``.
        """
        raise Unsupported(
            f"{self.address.scheme} cannot remove the queue {spec.name!r}; remove it with the "
            "broker's own tools"
        )

    @abstractmethod
    def publish(
        self,
        exchange: str,
        routing_key: str,
        messages: Sequence[Message],
        *,
        delay: float = 0.0,
    ) -> int:
        """Hand over a batch; return when the broker has *accepted* every message.

        Messages become visible in order, ``delay`` seconds from now; a delayed one is not lost
        by a restart. Every queue bound to the route gets its own copy.

        Args:
            delay: seconds, ``Features.longest_delay`` at most.

        Returns:
            how many of them no queue took, because it holds a message of that id already; 0
            unless ``Features.deduplicates``.

        Raises:
            Unroutable: no queue is bound to this route, or no such exchange exists.
            PublishInterrupted: the broker went away; says which messages are in doubt.
            PublishRefused: the broker is there and does not take them; says which.
            InvalidJob: the broker can never take one of them, for its size.
        """

    @abstractmethod
    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        """Take one message, or None when all queues stayed empty for ``wait`` seconds.

        The first non-empty queue wins; within a queue the highest rank, and within a rank the
        oldest. Waiting costs the broker next to nothing, and a message that arrives ends it
        within milliseconds. When this returns, nothing but the returned delivery is held; what
        may have come with it is on its way back, uncounted. A delivery that is dropped unsettled,
        because its taker was interrupted, is not held either: it goes back, or ends with its lease.

        Where a lease seems to have run out and the driver cannot believe it yet, a call with a
        ``wait`` of less than a second goes on until it knows, for half a lease at most: who only
        looks, and leaves, must not miss the job of a dead worker.

        Args:
            done: :meth:`ack` this one first. A worker does both after every job, and many
                brokers can do them in one round trip.

        Raises:
            TopologyError: a queue does not exist.
            LeaseLost: the broker has taken ``done`` back; nothing is taken.
        """

    def await_job(
        self,
        queues: Sequence[str],
        wait: float,
        done: Delivery | None = None,
        *,
        called_off: Callable[[], bool],
    ) -> Delivery | None:
        """:meth:`receive` for a loop, which waits for hours and can be told to end.

        It may return None early. This one does so after a second, which suits a broker to which
        a wait that begins anew is no more than one that goes on; other drivers wait on.

        Args:
            called_off: asked about once a second, from under any lock: it takes none. Once it is
                true, this ends within about a second.

        Raises:
            TopologyError, LeaseLost: as :meth:`receive`.
        """
        return self.receive(queues, min(wait, _SLICE), done)

    @abstractmethod
    def ack(self, delivery: Delivery) -> None:
        """The job is done: remove it. Settling what is settled already is a no-op.

        Raises:
            LeaseLost: the broker has taken the delivery back.
        """

    @abstractmethod
    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        """Put the message back, visible again in ``delay`` seconds, with its id and rank.

        Without a delay it goes to the head of its rank where ``Features.requeues_at_head``; after
        one, to the tail. The next delivery's attempt is one higher if ``count``, else the same. The
        new copy is accepted by the broker before the old one is given up.

        Raises:
            LeaseLost: the broker has taken the delivery back.
        """

    @abstractmethod
    def bury(self, delivery: Delivery, reason: str, traceback: str = "") -> None:
        """Move the message to the queue's dead letters, accepted there before it leaves here.

        Args:
            reason, traceback: see :class:`DeadLetter`; thousands of characters at most, of any
                kind.

        Raises:
            LeaseLost: the broker has taken the delivery back.
        """

    @abstractmethod
    def renew(self, delivery: Delivery) -> None:
        """Keep the delivery for another ``Address.lease`` seconds; a no-op if it is settled.

        Where a lease ends with the connection, only look whether it still holds; no I/O.

        Raises:
            LeaseLost: the broker has taken the delivery back.
        """

    @abstractmethod
    def count(self, queue: str) -> Counts:
        """Count a queue's messages; what is due is ready, also where nobody receives.

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
        """Look at the oldest dead letters of a queue, without changing them.

        Raises:
            Unsupported: unless ``Features.shows_dead_letters``.
        """

    @abstractmethod
    def redrive(self, queue: str, limit: int) -> int:
        """Put up to ``limit`` dead letters back, oldest first; return how many.

        Each is delivered again as attempt 1, with its id, rank and body, and is accepted by the
        queue before it leaves the dead letters.
        """

    @abstractmethod
    def purge_dead_letters(self, queue: str) -> int:
        """Remove a queue's dead letters for good; return how many."""

    def redrive_letters(self, queue: str, ids: Collection[str]) -> int:
        """As :meth:`redrive`, but those dead letters whose message has one of these ids.

        Raises:
            Unsupported: unless ``Features.mends_letters``. So do the next three.
        """
        raise self._mends_none()

    def purge_letters(self, queue: str, ids: Collection[str]) -> int:
        """Remove for good those dead letters that have one of these ids; return how many."""
        raise self._mends_none()

    def edit_letter(self, queue: str, message_id: str, body: bytes) -> bool:
        """Give the oldest dead letter of an id another body; all else about it stays.

        Where it cannot be changed in its place it is put behind the other letters, and accepted
        there before it leaves its place: whatever ends the call, the letter is there, if need be
        in both forms.

        Returns:
            False if there is no such letter.
        """
        raise self._mends_none()

    def add_letters(self, queue: str, letters: Sequence[DeadLetter]) -> None:
        """Put letters, of another broker for one, among the dead letters of a queue.

        They become the youngest, in this order, and keep all that they tell. Their own ``queue``
        means nothing. Returns when the broker has accepted them; what a call that fails in the
        middle has added stays.
        """
        raise self._mends_none()

    def _mends_none(self) -> Unsupported:
        return Unsupported(
            f"{self.address.scheme} cannot pick single dead letters; redrive or purge all of them"
        )

    def delayed(self, queue: str, limit: int) -> list[Delayed]:
        """Look at delayed messages, those that are due first before the others.

        Raises:
            Unsupported: unless ``Features.shows_delayed``.
        """
        raise Unsupported(f"{self.address.scheme} cannot show delayed messages")

    def facts(self, queues: Sequence[str] = ()) -> Facts:
        """What the broker tells of itself, and of these queues; a few round trips.

        Nothing is changed, and what may not be asked is left out.
        """
        return Facts()

    def record(self, log: str, entries: Sequence[bytes]) -> None:
        """Append to a log that all clients of the broker share; return once it is accepted.

        The journal is a view of the jobs and never their truth: a log is bounded by
        ``Address.journal_age`` and ``journal_bytes``, and the oldest entries are gone first. Its
        place is made when it is first written to; what exists is taken as it is.

        Args:
            log: a name of lower-case letters, such as ``events``.
            entries: of 128 KiB at most. After an error, the first of them may be in the log.

        Raises:
            Unsupported: unless ``Features.journal``.
            AccessRefused: this user must not. Queues work on, on the same connection.
            PublishRefused: the broker is there and has no room.
        """
        raise Unsupported(f"{self.address.scheme} keeps no journal")

    def replay(
        self, log: str, after: str | float = 0.0, *, wait: float = 0.0, limit: int = 1000
    ) -> list[Entry]:
        """Read a log in the order in which it was recorded.

        What was accepted before the call is there, also without waiting. Going on behind the last
        entry of the call before costs no more than what has come since.

        Args:
            after: the position of an entry, which is not read again; or seconds since the epoch,
                before which little is read. What is no longer kept is passed over in silence.
            wait: seconds to wait for a first entry, at next to no cost to the broker.
            limit: how many to return at most.

        Returns:
            the next entries; none if there is no such log, or nothing came in time.

        Raises:
            Unsupported: unless ``Features.journal``.
            AccessRefused: as above.
            ConfigurationError: no log of such a broker has a position like that.
        """
        raise Unsupported(f"{self.address.scheme} keeps no journal")

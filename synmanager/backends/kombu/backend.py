"""The backend: one way for all transports, in terms of what a carrier does."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from synmanager.backends.base import (
    Address,
    Counts,
    DeadLetter,
    Delivery,
    ExchangeSpec,
    Facts,
    QueueBackend,
    QueueSpec,
)
from synmanager.backends.kombu.address import connection, patience
from synmanager.backends.kombu.amqp import AmqpCarrier
from synmanager.backends.kombu.carrier import Carrier, Taken
from synmanager.backends.kombu.faults import translate
from synmanager.backends.kombu.guarantees import allowed, transport_of
from synmanager.backends.kombu.parcels import Parcel
from synmanager.backends.kombu.pgmq import Pgmq
from synmanager.backends.kombu.queues import DEAD, DELAYED, LEVELS, RANKED, Wait, ranked, wait_for
from synmanager.backends.kombu.redis import Redis
from synmanager.backends.kombu.sqs import Sqs
from synmanager.backends.kombu.virtual import Filesystem, Memory, Sql, Virtual
from synmanager.errors import (
    BrokerUnavailable,
    LeaseLost,
    NotPublished,
    PublishInterrupted,
    SynmanagerError,
    TopologyError,
    Unsupported,
)
from synmanager.interrupts import is_from_handler
from synmanager.message import Message

__all__ = ["KombuBackend"]

logger = logging.getLogger(__name__)

_CARRIERS: dict[str, Callable[[Address], Carrier]] = {
    "pyamqp": AmqpCarrier,
    "redis": Redis,
    "sqs": Sqs,
    "pgmq": Pgmq,
    "memory": Memory,
    "filesystem": Filesystem,
    "sqlalchemy": Sql,
}

#: Seconds between two looks of a waiting client: at first, and at most.
_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.1

#: Seconds between two looks for what others held for too long.
_RECLAIM = 0.25

#: Messages that one call sends before another thread's may.
_CHUNK = 50

#: Seconds that a closing client waits for its other threads.
_FAREWELL = 2.0

#: Connections of a parent, which a child must neither use nor clean up.
_abandoned: list[Any] = []


@dataclass(eq=False)
class _Receipt:
    """What this backend must know of a delivery.

    Attributes:
        epoch: the client's when it was taken; another one means that it was given back.
        until: by this process's monotonic clock, when the lease is over; None if never.
    """

    taken: Taken
    epoch: object
    until: float | None


class KombuBackend(QueueBackend):
    """A client of whatever broker kombu's transport leads to.

    Args:
        address: its scheme is ``kombu+`` and the name of the transport. Options: ``allow_loss``,
            the certificates for TLS, and what ``docs/kombu.md`` names for single transports.
    """

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._row = allowed(address)
        self.features = self._row.features()
        self._name = transport_of(address)
        connection(address)  # only to see that it can be made
        host = address.host or "localhost"
        self._where = f"kombu's {self._name} at {host}"
        self._lease = {"renewed": address.lease, "fixed": self._row.visibility}.get(self._row.lease)
        self._levels = LEVELS if self._row.delays == "sweep" else DELAYED
        self._start_over()

    def _start_over(self) -> None:
        self._turn = threading.Lock()
        self._owner: int | None = None
        self._carrier: Carrier | None = None
        self._epoch = object()  # one that no receipt has: not even a parent's, after a fork
        self._held: dict[Taken, None] = {}
        self._dropped: list[Taken] = []  # by their takers, unsettled
        self._known: set[str] = set()
        self._looks: dict[str, float] = {}  # queue of delayed messages: when to look again
        self._reclaimed = 0.0
        self._warned = False

    # Life cycle

    def open(self) -> None:
        with self._in_turn():
            if self._carrier is not None:
                return
            carrier = _CARRIERS.get(self._name, Virtual)(self.address)
            try:
                carrier.open()
            except BaseException as error:
                carrier.sever()
                if isinstance(error, SynmanagerError) or not isinstance(error, Exception):
                    raise
                if is_from_handler(error):
                    raise
                # Not from the library's own: that may quote a password.
                raise translate(error, self._where) from None
            self._known.clear()
            self._looks.clear()
            self._carrier = carrier
        if carrier.beats:
            threading.Thread(
                target=self._beat, args=(carrier,), name="synmanager-kombu", daemon=True
            ).start()

    def close(self) -> None:
        carrier, self._carrier = self._carrier, None
        if carrier is None:
            return
        self._epoch = object()
        held, self._held = self._held, {}
        if not self._turn.acquire(timeout=_FAREWELL):
            carrier.sever()
            return
        try:
            if self._row.lease != "connection":
                with suppress(Exception):
                    for taken in held:
                        with suppress(LeaseLost):
                            carrier.give_back(taken)
            with suppress(Exception):
                carrier.close()
            carrier.sever()
        finally:
            self._turn.release()

    @property
    def is_open(self) -> bool:
        return self._carrier is not None

    def abandon(self) -> None:
        _abandoned.append((self._carrier, self._held))
        self._start_over()

    def _beat(self, carrier: Carrier) -> None:
        while self._carrier is carrier:
            time.sleep(min(self.address.heartbeat / 4, 1.0))
            with suppress(SynmanagerError), self._calling() as current:
                if current is carrier:
                    carrier.beat()

    # Calls

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """One call at a time: kombu's connections are for one thread."""
        me = threading.get_ident()
        if self._owner == me:
            raise Unsupported("called by a signal handler in the middle of another call")
        limit = patience(self.address)
        if not self._turn.acquire(timeout=limit):
            raise BrokerUnavailable(f"{self._where} has not answered another thread for {limit} s")
        self._owner = me
        try:
            yield
        finally:
            self._owner = None
            self._turn.release()

    @contextmanager
    def _calling(self) -> Iterator[Carrier]:
        """The carrier, in turn. Whatever it does not explain costs the connection."""
        with self._in_turn():
            carrier = self._carrier
            if carrier is None:
                raise BrokerUnavailable(f"not connected to {self._where}")
            try:
                self._give_back_dropped(carrier)
                yield carrier
            except SynmanagerError:
                raise
            except BaseException as error:
                closed = self._carrier is not carrier
                self._lose(carrier)
                if not isinstance(error, Exception) or is_from_handler(error):
                    raise
                if closed:
                    raise BrokerUnavailable(
                        f"the connection to {self._where} was closed"
                    ) from error
                raise translate(error, self._where) from error

    def _give_back_dropped(self, carrier: Carrier) -> None:
        """Of leases that do not end by themselves: what no taker can settle any more."""
        while self._dropped:
            taken = self._dropped.pop()
            if taken in self._held:
                del self._held[taken]
                if self._lease is None:
                    carrier.give_back(taken)

    def _lose(self, carrier: Carrier) -> None:
        carrier.sever()
        if self._carrier is carrier:
            self._carrier = None
            if self._row.lease != "renewed":
                self._epoch = object()
                self._held.clear()

    # Topology

    def declare(self, *specs: ExchangeSpec | QueueSpec) -> None:
        with self._calling() as carrier:
            for spec in specs:
                exchange = spec if isinstance(spec, ExchangeSpec) else spec.exchange
                carrier.declare_exchange(exchange)
                if isinstance(spec, QueueSpec):
                    carrier.declare_queue(spec, [*RANKED.values(), *self._levels])

    def _look_for(self, carrier: Carrier, queue: str) -> None:
        if queue not in self._known:
            if not carrier.has(queue):
                raise TopologyError(f"queue {queue!r} does not exist; declare it first")
            self._known.add(queue)

    # Publishing

    def publish(
        self,
        exchange: str,
        routing_key: str,
        messages: Sequence[Message],
        *,
        delay: float = 0.0,
    ) -> int:
        by_rank = itertools.groupby(messages, lambda message: message.rank)
        now = time.time()
        wait = self._wait(now + delay, now)
        accepted = 0
        try:
            for rank, group in by_rank:
                while chunk := list(itertools.islice(group, _CHUNK)):
                    parcels = [Parcel(message) for message in chunk]
                    suffix, hold = ranked(rank), 0.0
                    if wait is not None:
                        suffix, hold = wait.suffix, wait.until - now
                        parcels = [
                            replace(parcel, due=now + delay, until=wait.until) for parcel in parcels
                        ]
                    with self._calling() as carrier:
                        for _ in carrier.publish(exchange, routing_key, suffix, parcels, hold):
                            accepted += 1
        except NotPublished as error:
            raise type(error)(str(error), messages[accepted:]) from error
        except BrokerUnavailable as error:
            if error.__cause__ is None and not accepted:  # nothing has left
                raise
            raise PublishInterrupted(str(error), messages[accepted:]) from error
        return 0

    def _wait(self, due: float, now: float) -> Wait | None:
        return wait_for(due, now, self._levels)

    def _put_onward(self, carrier: Carrier, queue: str, parcel: Parcel) -> None:
        """To where it waits, or if it need not, to its rank."""
        now = time.time()
        wait = None if parcel.due is None else self._wait(parcel.due, now)
        if wait is None:
            fresh = replace(parcel, due=None, until=None)
            carrier.put(queue + ranked(parcel.message.rank), fresh)
        else:
            held = replace(parcel, until=wait.until)
            carrier.put(queue + wait.suffix, held, wait.until - now)

    # Receiving

    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        if done is not None:
            self.ack(done)
        deadline = time.monotonic() + wait
        pause = _FIRST_PAUSE
        reclaim = True
        while True:
            with self._calling() as carrier:
                for queue in queues:
                    self._look_for(carrier, queue)
                if reclaim or time.monotonic() - self._reclaimed > _RECLAIM:
                    carrier.reclaim()
                    self._reclaimed = time.monotonic()
                    reclaim = False
                levels = [self._levels_to_look_into(queue) for queue in queues]
                names = [q + suffix for q in queues for suffix in RANKED.values()]
                filled = carrier.filled([*names, *itertools.chain.from_iterable(levels)])
                for queue, due in zip(queues, levels, strict=True):
                    moved = self._sweep(carrier, queue, due, filled)
                    delivery = self._take(carrier, queue, None if moved else filled)
                    if delivery is not None:
                        return delivery
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(left, pause))
            pause = min(pause * 1.5, _LONGEST_PAUSE)

    def _take(
        self, carrier: Carrier, queue: str, filled: Collection[str] | None
    ) -> Delivery | None:
        """Args: filled: the only ones to ask, if that is known."""
        lease = self.address.lease
        for suffix in RANKED.values():
            while filled is None or queue + suffix in filled:
                begin = time.monotonic()
                try:
                    taken = carrier.take(queue + suffix, lease)
                except TopologyError:
                    self._known.discard(queue)
                    raise
                if taken is None:
                    break
                if taken.failures and not taken.counted:
                    # Only flagged: the count is kept in the message, and with its rank.
                    carrier.put(queue + suffix, taken.parcel.failed())
                    carrier.drop(taken)
                    continue
                self._held[taken] = None
                until = None if self._lease is None else begin + self._lease
                failures = taken.failures if taken.counted else 0
                delivery = Delivery(
                    taken.parcel.message,
                    queue,
                    taken.parcel.attempts + failures + 1,
                    _Receipt(taken, self._epoch, until),
                    taken.parcel.defect,
                )
                weakref.finalize(delivery, self._dropped.append, taken).atexit = False
                return delivery
        return None

    def _levels_to_look_into(self, queue: str) -> list[str]:
        now = time.monotonic()
        names = [queue + suffix for suffix in self._levels]
        return [name for name in names if self._looks.get(name, 0.0) <= now]

    def _sweep(
        self, carrier: Carrier, queue: str, names: list[str], filled: Collection[str]
    ) -> bool:
        """Move what is due; whether anything was."""
        moved = False
        for name in names:
            again = self._levels[name.removeprefix(queue)]
            if name in filled:
                again, some = self._sweep_level(carrier, queue, name, again)
                moved |= some
            self._looks[name] = time.monotonic() + again
        return moved

    def _sweep_level(
        self, carrier: Carrier, queue: str, name: str, seconds: float
    ) -> tuple[float, bool]:
        """Returns after how many seconds to look again, and whether anything was moved."""
        moved = False
        while True:
            if self._row.peeks and self._row.delays == "sweep":
                head = carrier.peek(name, 1)
                left = (head[0].until or 0.0) - time.time() if head else 0.0
                if not head or left > 0:
                    return min(left, seconds) if head else seconds, moved
            taken = carrier.take(name, self.address.lease)
            if taken is None:
                return seconds, moved
            moved = True
            self._put_onward(carrier, queue, taken.parcel)
            carrier.drop(taken)
            if not self._row.peeks and (taken.parcel.until or 0.0) > time.time():
                return seconds, moved  # it went round; there is no other way to look

    # Settling

    @contextmanager
    def _settling(self, delivery: Delivery) -> Iterator[tuple[Carrier, _Receipt] | None]:
        with self._calling() as carrier:
            if delivery.settled:
                yield None
                return
            receipt: _Receipt = delivery.receipt
            self._check(receipt)
            try:
                yield carrier, receipt
            except LeaseLost:
                self._held.pop(receipt.taken, None)
                raise
            self._held.pop(receipt.taken, None)
            delivery.settled = True

    def _check(self, receipt: _Receipt) -> None:
        if receipt.epoch is not self._epoch:
            raise LeaseLost("the connection that held this delivery has ended")
        if receipt.until is not None and time.monotonic() >= receipt.until:
            raise LeaseLost("the lease of this delivery ran out")

    def ack(self, delivery: Delivery) -> None:
        with self._settling(delivery) as held:
            if held is not None:
                carrier, receipt = held
                carrier.drop(receipt.taken)

    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        with self._settling(delivery) as held:
            if held is not None:
                carrier, receipt = held
                due = time.time() + delay if delay > 0 else None
                parcel = self._as_delivered(delivery, receipt)
                parcel = replace(parcel, attempts=delivery.attempt - 1 + count, due=due)
                carrier.renew(receipt.taken, self.address.lease)
                self._put_onward(carrier, delivery.queue, parcel)
                carrier.drop(receipt.taken)

    def bury(self, delivery: Delivery, reason: str, traceback: str = "") -> None:
        with self._settling(delivery) as held:
            if held is not None:
                carrier, receipt = held
                parcel = self._as_delivered(delivery, receipt)
                parcel = replace(parcel, attempts=delivery.attempt)
                carrier.renew(receipt.taken, self.address.lease)
                carrier.put(delivery.queue + DEAD, parcel.dead(reason, traceback))
                carrier.drop(receipt.taken)

    @staticmethod
    def _as_delivered(delivery: Delivery, receipt: _Receipt) -> Parcel:
        return replace(receipt.taken.parcel, message=delivery.message)

    def renew(self, delivery: Delivery) -> None:
        with self._calling() as carrier:
            if delivery.settled:
                return
            receipt: _Receipt = delivery.receipt
            self._check(receipt)
            begin = time.monotonic()
            if self._row.lease == "fixed":
                self._warn()
                return
            carrier.renew(receipt.taken, self.address.lease)
            if receipt.until is not None:
                receipt.until = begin + self.address.lease

    def _warn(self) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "%s hands a job out again after %g s, and its leases cannot be renewed: a job "
                "that takes longer loses its lease and runs again",
                self._where,
                self._row.visibility,
            )

    # Operations

    def count(self, queue: str) -> Counts:
        with self._calling() as carrier:
            self._look_for(carrier, queue)
            self._needs(self._row.counts, "count messages")
            delayed = None
            if self.features.counts_delayed:
                delayed = sum(carrier.size(queue + suffix) for suffix in self._levels)
            return Counts(
                ready=sum(carrier.size(queue + suffix) for suffix in RANKED.values()),
                leased=None,
                delayed=delayed,
                dead=carrier.size(queue + DEAD),
            )

    def purge(self, queue: str) -> int:
        with self._calling() as carrier:
            self._look_for(carrier, queue)
            suffixes = [*RANKED.values(), *self._levels]
            return sum(carrier.purge(queue + suffix) for suffix in suffixes)

    def delete(self, queue: str, message_id: str) -> bool:
        raise Unsupported("kombu cannot find a message by its id")

    def dead_letters(self, queue: str, limit: int) -> list[DeadLetter]:
        with self._calling() as carrier:
            self._look_for(carrier, queue)
            self._needs(self._row.peeks, "look at dead letters without taking them; redrive them")
            return [parcel.letter(queue) for parcel in carrier.peek(queue + DEAD, limit)]

    def redrive(self, queue: str, limit: int) -> int:
        for moved in range(limit):
            with self._calling() as carrier:
                self._look_for(carrier, queue)
                taken = carrier.take(queue + DEAD, self.address.lease)
                if taken is None:
                    return moved
                self._put_onward(carrier, queue, taken.parcel.anew())
                carrier.drop(taken)
        return limit

    def purge_dead_letters(self, queue: str) -> int:
        with self._calling() as carrier:
            self._look_for(carrier, queue)
            return carrier.purge(queue + DEAD)

    def redrive_letters(self, queue: str, ids: Collection[str]) -> int:
        def put_back(carrier: Carrier, parcel: Parcel) -> None:
            self._put_onward(carrier, queue, parcel.anew())

        return self._go_round(queue, ids, put_back)

    def purge_letters(self, queue: str, ids: Collection[str]) -> int:
        return self._go_round(queue, ids, lambda carrier, parcel: None)

    def edit_letter(self, queue: str, message_id: str, body: bytes) -> bool:
        def put_edited(carrier: Carrier, parcel: Parcel) -> None:
            message = replace(parcel.message, body=body)
            carrier.put(queue + DEAD, replace(parcel, message=message))

        return bool(self._go_round(queue, [message_id], put_edited, most=1))

    def _go_round(
        self,
        queue: str,
        ids: Collection[str],
        what: Callable[[Carrier, Parcel], None],
        most: float = math.inf,
    ) -> int:
        """Take every dead letter once; do something with some, and put the others back.

        Whether each goes to the end or where it was is the transport's: in the end all have.
        """
        with self._calling() as carrier:
            self._look_for(carrier, queue)
            self._needs(self._row.counts, "say when it has shown all dead letters; redrive them")
            left = carrier.size(queue + DEAD)
        done = 0
        for _ in range(left):
            with self._calling() as carrier:
                taken = carrier.take(queue + DEAD, self.address.lease)
                if taken is None:
                    break
                parcel = taken.parcel
                if parcel.message.id in ids and done < most:
                    what(carrier, parcel)
                    done += 1
                else:
                    carrier.put(queue + DEAD, parcel)
                carrier.drop(taken)
        return done

    def add_letters(self, queue: str, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            with self._calling() as carrier:
                self._look_for(carrier, queue)
                parcel = Parcel(letter.message, letter.attempts)
                parcel = parcel.dead(letter.reason, letter.traceback)
                carrier.put(queue + DEAD, replace(parcel, died=letter.died_at))

    def facts(self, queues: Sequence[str] = ()) -> Facts:
        return Facts(f"kombu's {self._name}")

    def _needs(self, able: bool, what: str) -> None:
        if not able:
            raise Unsupported(f"kombu's transport {self._name!r} cannot {what}")

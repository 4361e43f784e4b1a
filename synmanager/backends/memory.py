"""Queues in this process's memory: for tests, the demo and single-process grids.

``memory://`` is one broker for the whole process, ``memory:///name`` another; every backend with
the same name shares it, as clients share a server. Nothing outlives the process.
"""

from __future__ import annotations

import re
import threading
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import count as counter

from synmanager.backends.base import (
    Address,
    Counts,
    DeadLetter,
    Delayed,
    Delivery,
    Entry,
    ExchangeSpec,
    Facts,
    Features,
    QueueBackend,
    QueueSpec,
    check_place,
)
from synmanager.backends.options import read_options
from synmanager.clock import Clock
from synmanager.errors import (
    BrokerUnavailable,
    LeaseLost,
    TopologyError,
    Unroutable,
    Unsupported,
)
from synmanager.message import Message, Rank

__all__ = ["MemoryBackend", "MemoryBroker", "forget", "is_in_use", "serve"]


#: A position in a log.
_POSITION = re.compile("[0-9]{1,18}")


@dataclass(eq=False)
class _Entry:
    """A message in a queue. ``deliveries`` counts only those that came to nothing."""

    message: Message
    deliveries: int = 0
    holder: MemoryBackend | None = None
    expires: float = 0.0
    deleted: bool = False


@dataclass(eq=False)
class _Queue:
    name: str
    ready: dict[Rank, OrderedDict[str, _Entry]] = field(
        default_factory=lambda: {rank: OrderedDict() for rank in reversed(Rank)}
    )
    leased: dict[str, _Entry] = field(default_factory=dict)
    delayed: dict[str, _Entry] = field(default_factory=dict)
    due: list[tuple[float, int, _Entry]] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)

    def holds(self, message_id: str) -> bool:
        if message_id in self.leased or message_id in self.delayed:
            return True
        # Asked for every message; any() over a generator takes three times as long.
        for entries in self.ready.values():  # noqa: SIM110
            if message_id in entries:
                return True
        return False

    def put(self, entry: _Entry, *, head: bool = False) -> None:
        entries = self.ready[entry.message.rank]
        entries[entry.message.id] = entry
        if head:
            entries.move_to_end(entry.message.id, last=False)


class _Log:
    """A log of the journal; an entry's position is its number.

    A list and not a deque, whose middle is far from both ends; what is no longer kept stays in
    front until it is an eighth of it.
    """

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._gone = 0  # how many of them are
        self._first = 1  # the number of the first of them
        self._bytes = 0

    def append(self, data: bytes, now: float, age: float, most: int) -> None:
        entries = self._entries
        if entries:
            now = max(now, entries[-1].recorded_at)  # the clock was set back
        entries.append(Entry(str(self._first + len(entries)), now, data))
        self._bytes += len(data)
        while self._gone < len(entries) - 1 and (
            self._bytes > most or entries[self._gone].recorded_at < now - age
        ):
            self._bytes -= len(entries[self._gone].data)
            self._gone += 1
        if self._gone > len(entries) // 8:
            del entries[: self._gone]
            self._first += self._gone
            self._gone = 0

    def behind(self, after: str | float, limit: int) -> list[Entry]:
        if isinstance(after, str):
            begin = int(after) + 1 - self._first
        else:
            begin = bisect_left(self._entries, after, key=lambda entry: entry.recorded_at)
        begin = max(begin, self._gone)
        return self._entries[begin : begin + limit]


class MemoryBroker:
    """What a server would be: exchanges, queues, leases. Every access holds ``changed``.

    A message that moves is put where it goes before it is taken from where it was: an exception
    of a signal handler may come between any two steps, and must lose none.

    Attributes:
        clients_clock: by which the clients' users measure, unless a test drives both.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.clients_clock = Clock()
        self.changed = threading.Condition()
        self.exchanges: dict[str, ExchangeSpec] = {}
        self.bindings: dict[tuple[str, str], list[str]] = {}
        self.queues: dict[str, _Queue] = {}
        self.logs: dict[str, _Log] = {}
        self._sequence = counter()

    def before(self, operation: str) -> None:
        """Called before each of a client's; a broker that a test has fail raises here."""

    def queue(self, name: str) -> _Queue:
        try:
            return self.queues[name]
        except KeyError:
            raise TopologyError(f"there is no queue {name!r}; declare it first") from None

    def routes(self, exchange: str, routing_key: str) -> list[_Queue]:
        spec = self.exchanges.get(exchange)
        key = "" if spec and spec.type == "fanout" else routing_key
        names = self.bindings.get((exchange, key), [])
        found = [self.queues[name] for name in names if name in self.queues]
        if not found:
            raise Unroutable(
                f"no queue is bound to exchange {exchange!r} with routing key {routing_key!r}"
            )
        return found

    def bind(self, spec: QueueSpec) -> None:
        key = "" if spec.exchange.type == "fanout" else spec.routing_key
        bound = self.bindings.setdefault((spec.exchange.name, key), [])
        if spec.name not in bound:
            bound.append(spec.name)

    def delay(self, queue: _Queue, entry: _Entry, seconds: float) -> None:
        heappush(queue.due, (self.clock.now() + seconds, next(self._sequence), entry))
        queue.delayed[entry.message.id] = entry

    def settle_time(self, queue: _Queue) -> float | None:
        """Move what is due and what lost its lease; return when that next happens."""
        if not queue.due and not queue.leased:
            return None
        now = self.clock.now()
        next_event = None
        while queue.due:
            due, _, entry = queue.due[0]
            if entry.deleted or due <= now:
                if queue.delayed.get(entry.message.id) is entry:
                    queue.put(entry)
                    del queue.delayed[entry.message.id]
                heappop(queue.due)
            else:
                next_event = due
                break
        for entry in [e for e in reversed(queue.leased.values()) if e.expires <= now]:
            self.give_back(queue, entry)
        for entry in queue.leased.values():
            next_event = entry.expires if next_event is None else min(next_event, entry.expires)
        return next_event

    def give_back(self, queue: _Queue, entry: _Entry, *, count: bool = True) -> None:
        entry.holder = None
        entry.deliveries += count
        queue.put(entry, head=True)
        del queue.leased[entry.message.id]


_brokers: dict[str, MemoryBroker] = {}


def serve(name: str, broker: MemoryBroker) -> None:
    """Let clients of ``memory:///name`` that are made from now on reach this broker."""
    _brokers[name] = broker


def forget(name: str) -> None:
    """Undo :func:`serve`; clients that exist keep their broker."""
    _brokers.pop(name, None)


def is_in_use(address: Address) -> bool:
    """Whether anybody in this process has made a client of that broker."""
    return address.path in _brokers


class MemoryBackend(QueueBackend):
    """A client of a :class:`MemoryBroker`.

    Args:
        address: its path is the broker's name; host and port mean nothing here.
        broker: talk to this one instead, for instance with a clock of the test's own.
    """

    features = Features(
        durable=False,
        shared=False,
        timed_lease=True,
        deduplicates=True,
        deletes=True,
        counts_leased=True,
        counts_delayed=True,
        ranks_foreign=True,
        mends_letters=True,
        shows_delayed=True,
        journal=True,
        undeclares=True,
        requeues_at_head=True,
        atomic_batches=True,
    )

    def __init__(self, address: Address, broker: MemoryBroker | None = None) -> None:
        super().__init__(address)
        read_options(address, {})
        self._broker = broker or _brokers.setdefault(address.path, MemoryBroker())
        self.clock = self._broker.clients_clock
        self._open = False
        self._forked = False

    def open(self) -> None:
        self._refuse_fork()
        self._broker.before("open")
        self._open = True

    def close(self) -> None:
        if self._forked or not self._open:
            return
        with self._broker.changed:
            self._open = False
            for queue in self._broker.queues.values():
                for entry in [e for e in reversed(queue.leased.values()) if e.holder is self]:
                    self._broker.give_back(queue, entry)
            self._broker.changed.notify_all()

    @property
    def is_open(self) -> bool:
        return self._open

    def abandon(self) -> None:
        self._forked = True
        self._broker = MemoryBroker()  # the parent's may be locked for ever

    def declare(self, *specs: ExchangeSpec | QueueSpec) -> None:
        with self._broker.changed:
            broker = self._usable("declare")
            for spec in specs:
                exchange = spec if isinstance(spec, ExchangeSpec) else spec.exchange
                known = broker.exchanges.setdefault(exchange.name, exchange)
                if known.type != exchange.type:
                    raise TopologyError(
                        f"exchange {exchange.name!r} is of type {known.type!r}, "
                        f"not {exchange.type!r}"
                    )
                if isinstance(spec, QueueSpec):
                    broker.queues.setdefault(spec.name, _Queue(spec.name))
                    broker.bind(spec)

    def undeclare(self, spec: QueueSpec) -> None:
        with self._broker.changed:
            broker = self._usable("undeclare")
            for names in broker.bindings.values():
                if spec.name in names:
                    names.remove(spec.name)
            broker.queues.pop(spec.name, None)
            broker.changed.notify_all()

    def publish(
        self,
        exchange: str,
        routing_key: str,
        messages: Sequence[Message],
        *,
        delay: float = 0.0,
    ) -> int:
        repeats = 0
        with self._broker.changed:
            broker = self._usable("publish")
            queues = broker.routes(exchange, routing_key)
            for message in messages:
                takers = [queue for queue in queues if not queue.holds(message.id)]
                repeats += not takers
                for queue in takers:
                    if delay > 0:
                        broker.delay(queue, _Entry(message), delay)
                    else:
                        queue.put(_Entry(message))
            broker.changed.notify_all()
        return repeats

    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        if done is not None:
            self.ack(done)
        with self._broker.changed:
            broker = self._usable("receive")
            deadline = broker.clock.now() + wait
            while True:
                events = [deadline]
                for name in queues:
                    queue = broker.queue(name)
                    next_event = broker.settle_time(queue)
                    if next_event is not None:
                        events.append(next_event)
                    for entries in queue.ready.values():
                        if entries:
                            return self._lease(queue, entries)
                now = broker.clock.now()
                if now >= deadline:
                    return None
                broker.clock.wait(broker.changed, min(events) - now)
                self._usable()

    def ack(self, delivery: Delivery) -> None:
        with self._broker.changed:
            broker = self._usable("ack")
            if not delivery.settled:
                queue, entry = self._held(broker, delivery)
                del queue.leased[entry.message.id]
                delivery.settled = True

    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        with self._broker.changed:
            broker = self._usable("nack")
            if delivery.settled:
                return
            queue, entry = self._held(broker, delivery)
            if delay > 0:
                broker.delay(queue, _Entry(entry.message, entry.deliveries + count), delay)
                del queue.leased[entry.message.id]
            else:
                broker.give_back(queue, entry, count=count)
            delivery.settled = True
            broker.changed.notify_all()

    def bury(self, delivery: Delivery, reason: str, traceback: str = "") -> None:
        with self._broker.changed:
            broker = self._usable("bury")
            if delivery.settled:
                return
            queue, entry = self._held(broker, delivery)
            queue.dead.append(
                DeadLetter(
                    entry.message, queue.name, reason, delivery.attempt, time.time(), traceback
                )
            )
            del queue.leased[entry.message.id]
            delivery.settled = True

    def renew(self, delivery: Delivery) -> None:
        with self._broker.changed:
            broker = self._usable("renew")
            if not delivery.settled:
                _, entry = self._held(broker, delivery)
                entry.expires = broker.clock.now() + self.address.lease

    def count(self, queue: str) -> Counts:
        with self._broker.changed:
            broker = self._usable("count")
            found = broker.queue(queue)
            broker.settle_time(found)
            return Counts(
                ready=sum(map(len, found.ready.values())),
                leased=len(found.leased),
                delayed=len(found.delayed),
                dead=len(found.dead),
            )

    def purge(self, queue: str) -> int:
        with self._broker.changed:
            broker = self._usable("purge")
            found = broker.queue(queue)
            broker.settle_time(found)
            removed = len(found.delayed)
            found.delayed.clear()
            found.due.clear()
            for entries in found.ready.values():
                removed += len(entries)
                entries.clear()
            return removed

    def delete(self, queue: str, message_id: str) -> bool:
        with self._broker.changed:
            broker = self._usable("delete")
            found = broker.queue(queue)
            broker.settle_time(found)
            for entries in (found.delayed, *found.ready.values()):
                entry = entries.pop(message_id, None)
                if entry is not None:
                    entry.deleted = True
                    return True
            return False

    def dead_letters(self, queue: str, limit: int) -> list[DeadLetter]:
        with self._broker.changed:
            return self._usable("dead_letters").queue(queue).dead[:limit]

    def redrive(self, queue: str, limit: int) -> int:
        return self._redrive(queue, lambda letter: True, limit)

    def redrive_letters(self, queue: str, ids: Collection[str]) -> int:
        return self._redrive(queue, lambda letter: letter.message.id in ids)

    def _redrive(
        self, queue: str, which: Callable[[DeadLetter], bool], limit: int | None = None
    ) -> int:
        with self._broker.changed:
            broker = self._usable("redrive")
            found = broker.queue(queue)
            broker.settle_time(found)
            moved = 0
            for letter in tuple(found.dead):
                if moved == limit:
                    break
                # One that was submitted again meanwhile stays: the two would be taken for one.
                if which(letter) and not found.holds(letter.message.id):
                    found.put(_Entry(letter.message))
                    found.dead.remove(letter)
                    moved += 1
            broker.changed.notify_all()
            return moved

    def purge_dead_letters(self, queue: str) -> int:
        with self._broker.changed:
            found = self._usable("purge_dead_letters").queue(queue)
            removed = len(found.dead)
            found.dead.clear()
            return removed

    def purge_letters(self, queue: str, ids: Collection[str]) -> int:
        with self._broker.changed:
            found = self._usable("purge_letters").queue(queue)
            before = len(found.dead)
            found.dead = [letter for letter in found.dead if letter.message.id not in ids]
            return before - len(found.dead)

    def edit_letter(self, queue: str, message_id: str, body: bytes) -> bool:
        with self._broker.changed:
            dead = self._usable("edit_letter").queue(queue).dead
            for place, letter in enumerate(dead):
                if letter.message.id == message_id:
                    dead[place] = replace(letter, message=replace(letter.message, body=body))
                    return True
            return False

    def add_letters(self, queue: str, letters: Sequence[DeadLetter]) -> None:
        with self._broker.changed:
            found = self._usable("add_letters").queue(queue)
            found.dead += [replace(letter, queue=queue) for letter in letters]

    def delayed(self, queue: str, limit: int) -> list[Delayed]:
        with self._broker.changed:
            broker = self._usable("delayed")
            found = broker.queue(queue)
            broker.settle_time(found)
            now = broker.clock.now()
            waiting = sorted(each for each in found.due if not each[2].deleted)
            return [Delayed(entry.message, due - now) for due, _, entry in waiting[:limit]]

    def facts(self, queues: Sequence[str] = ()) -> Facts:
        with self._broker.changed:
            return Facts("synmanager's memory", queues=tuple(self._usable("facts").queues))

    def record(self, log: str, entries: Sequence[bytes]) -> None:
        with self._broker.changed:
            broker = self._usable("record")
            kept = broker.logs.setdefault(log, _Log())
            age, most = self.address.journal_age, self.address.journal_bytes
            for data in entries:
                kept.append(data, time.time(), age, most)
            broker.changed.notify_all()

    def replay(
        self, log: str, after: str | float = 0.0, *, wait: float = 0.0, limit: int = 1000
    ) -> list[Entry]:
        check_place(after, _POSITION)
        with self._broker.changed:
            broker = self._usable("replay")
            deadline = broker.clock.now() + wait
            while True:
                kept = broker.logs.get(log)
                found = kept.behind(after, limit) if kept else []
                left = deadline - broker.clock.now()
                if found or left <= 0:
                    return found
                broker.clock.wait(broker.changed, left)
                self._usable()

    def _lease(self, queue: _Queue, entries: OrderedDict[str, _Entry]) -> Delivery:
        """Take the first of these."""
        message_id, entry = next(iter(entries.items()))
        entry.holder = self
        entry.expires = self._broker.clock.now() + self.address.lease
        queue.leased[message_id] = entry
        del entries[message_id]
        # A fresh entry per delivery is the receipt: an older receipt can never equal it.
        attempt = entry.deliveries + 1
        return Delivery(entry.message, queue.name, attempt, receipt=(entry, attempt))

    def _held(self, broker: MemoryBroker, delivery: Delivery) -> tuple[_Queue, _Entry]:
        entry: _Entry
        entry, attempt = delivery.receipt
        queue = broker.queues.get(delivery.queue)
        if queue is None:
            raise LeaseLost(f"job {entry.message.id} is gone with its queue")
        if entry.expires <= broker.clock.now():
            broker.settle_time(queue)
        if queue.leased.get(entry.message.id) is not entry or entry.deliveries + 1 != attempt:
            raise LeaseLost(f"job {entry.message.id} was taken back: its lease ran out")
        return queue, entry

    def _usable(self, operation: str = "") -> MemoryBroker:
        """The broker, for whoever holds ``changed``, and begins this operation."""
        self._refuse_fork()
        if not self._open:
            raise BrokerUnavailable("the memory backend is closed")
        if operation:
            try:
                self._broker.before(operation)
            except BrokerUnavailable:
                self._open = False
                raise
        return self._broker

    def _refuse_fork(self) -> None:
        if self._forked:
            raise Unsupported(
                "memory:// lives in one process and this is a fork of it; choose a backend that "
                "crosses processes, such as redis:// or amqp://"
            )

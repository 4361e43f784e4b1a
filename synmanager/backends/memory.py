"""Queues in this process's memory: for tests, the demo and single-process grids.

``memory://`` is one broker for the whole process, ``memory:///name`` another; every backend with
the same name shares it, as clients share a server. Nothing outlives the process.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count as counter

from synmanager.backends.base import (
    Address,
    Counts,
    DeadLetter,
    Delivery,
    ExchangeSpec,
    Features,
    QueueBackend,
    QueueSpec,
)
from synmanager.clock import Clock
from synmanager.errors import (
    BrokerUnavailable,
    ConfigurationError,
    LeaseLost,
    TopologyError,
    Unroutable,
    Unsupported,
)
from synmanager.message import Message, Rank

__all__ = ["MemoryBackend", "MemoryBroker"]


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


class MemoryBroker:
    """What a server would be: exchanges, queues, leases. Every access holds ``changed``."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.changed = threading.Condition()
        self.exchanges: dict[str, ExchangeSpec] = {}
        self.bindings: dict[tuple[str, str], list[str]] = {}
        self.queues: dict[str, _Queue] = {}
        self._sequence = counter()

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
        queue.delayed[entry.message.id] = entry
        heappush(queue.due, (self.clock.now() + seconds, next(self._sequence), entry))

    def settle_time(self, queue: _Queue) -> float | None:
        """Move what is due and what lost its lease; return when that next happens."""
        if not queue.due and not queue.leased:
            return None
        now = self.clock.now()
        next_event = None
        while queue.due:
            due, _, entry = queue.due[0]
            if entry.deleted or due <= now:
                heappop(queue.due)
                if not entry.deleted:
                    del queue.delayed[entry.message.id]
                    queue.put(entry)
            else:
                next_event = due
                break
        for entry in [e for e in reversed(queue.leased.values()) if e.expires <= now]:
            self.give_back(queue, entry)
        for entry in queue.leased.values():
            next_event = entry.expires if next_event is None else min(next_event, entry.expires)
        return next_event

    def give_back(self, queue: _Queue, entry: _Entry, *, count: bool = True) -> None:
        del queue.leased[entry.message.id]
        entry.holder = None
        entry.deliveries += count
        queue.put(entry, head=True)


_brokers: dict[str, MemoryBroker] = {}


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
    )

    def __init__(self, address: Address, broker: MemoryBroker | None = None) -> None:
        super().__init__(address)
        if address.options:
            raise ConfigurationError(f"memory:// has no options, not {sorted(address.options)}")
        self._broker = broker or _brokers.setdefault(address.path, MemoryBroker())
        self._open = False
        self._forked = False

    def open(self) -> None:
        self._refuse_fork()
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
            broker = self._usable()
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

    def publish(
        self,
        exchange: str,
        routing_key: str,
        messages: Sequence[Message],
        *,
        delay: float = 0.0,
    ) -> None:
        with self._broker.changed:
            broker = self._usable()
            queues = broker.routes(exchange, routing_key)
            for message in messages:
                for queue in queues:
                    if queue.holds(message.id):
                        continue
                    if delay > 0:
                        broker.delay(queue, _Entry(message), delay)
                    else:
                        queue.put(_Entry(message))
            broker.changed.notify_all()

    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        if done is not None:
            self.ack(done)
        with self._broker.changed:
            broker = self._usable()
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
                            return self._lease(queue, entries.popitem(last=False)[1])
                now = broker.clock.now()
                if now >= deadline:
                    return None
                broker.clock.wait(broker.changed, min(events) - now)
                self._usable()

    def ack(self, delivery: Delivery) -> None:
        with self._broker.changed:
            broker = self._usable()
            if not delivery.settled:
                queue, entry = self._held(broker, delivery)
                del queue.leased[entry.message.id]
                delivery.settled = True

    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        with self._broker.changed:
            broker = self._usable()
            if delivery.settled:
                return
            queue, entry = self._held(broker, delivery)
            if delay > 0:
                del queue.leased[entry.message.id]
                broker.delay(queue, _Entry(entry.message, entry.deliveries + count), delay)
            else:
                broker.give_back(queue, entry, count=count)
            delivery.settled = True
            broker.changed.notify_all()

    def bury(self, delivery: Delivery, reason: str) -> None:
        with self._broker.changed:
            broker = self._usable()
            if delivery.settled:
                return
            queue, entry = self._held(broker, delivery)
            del queue.leased[entry.message.id]
            queue.dead.append(
                DeadLetter(entry.message, queue.name, reason, delivery.attempt, time.time())
            )
            delivery.settled = True

    def renew(self, delivery: Delivery) -> None:
        with self._broker.changed:
            broker = self._usable()
            if not delivery.settled:
                _, entry = self._held(broker, delivery)
                entry.expires = broker.clock.now() + self.address.lease

    def count(self, queue: str) -> Counts:
        with self._broker.changed:
            broker = self._usable()
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
            broker = self._usable()
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
            broker = self._usable()
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
            return self._usable().queue(queue).dead[:limit]

    def redrive(self, queue: str, limit: int) -> int:
        with self._broker.changed:
            broker = self._usable()
            found = broker.queue(queue)
            letters, found.dead = found.dead[:limit], found.dead[limit:]
            for letter in letters:
                if not found.holds(letter.message.id):  # else it was submitted again meanwhile
                    found.put(_Entry(letter.message))
            broker.changed.notify_all()
            return len(letters)

    def purge_dead_letters(self, queue: str) -> int:
        with self._broker.changed:
            found = self._usable().queue(queue)
            removed = len(found.dead)
            found.dead.clear()
            return removed

    def _lease(self, queue: _Queue, entry: _Entry) -> Delivery:
        entry.holder = self
        entry.expires = self._broker.clock.now() + self.address.lease
        queue.leased[entry.message.id] = entry
        # A fresh entry per delivery is the receipt: an older receipt can never equal it.
        attempt = entry.deliveries + 1
        return Delivery(entry.message, queue.name, attempt, receipt=(entry, attempt))

    def _held(self, broker: MemoryBroker, delivery: Delivery) -> tuple[_Queue, _Entry]:
        queue = broker.queue(delivery.queue)
        entry: _Entry
        entry, attempt = delivery.receipt
        if entry.expires <= broker.clock.now():
            broker.settle_time(queue)
        if queue.leased.get(entry.message.id) is not entry or entry.deliveries + 1 != attempt:
            raise LeaseLost(f"job {entry.message.id} was taken back: its lease ran out")
        return queue, entry

    def _usable(self) -> MemoryBroker:
        """The broker, for whoever holds ``changed``."""
        self._refuse_fork()
        if not self._open:
            raise BrokerUnavailable("the memory backend is closed")
        return self._broker

    def _refuse_fork(self) -> None:
        if self._forked:
            raise Unsupported(
                "memory:// lives in one process and this is a fork of it; choose a backend that "
                "crosses processes, such as redis:// or amqp://"
            )

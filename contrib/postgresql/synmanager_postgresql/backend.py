"""The backend: which question each call is, and what comes of the answer."""

from __future__ import annotations

import itertools
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from synmanager.backends import (
    Address,
    Counts,
    DeadLetter,
    Delivery,
    Entry,
    ExchangeSpec,
    Features,
    QueueBackend,
    QueueSpec,
)
from synmanager.backends.base import check_place
from synmanager.errors import (
    BrokerUnavailable,
    LeaseLost,
    PublishInterrupted,
    PublishRefused,
    SynmanagerError,
    TopologyError,
    Unroutable,
)
from synmanager.message import Message
from synmanager.text import shown
from synmanager.trust import ClockTrust
from synmanager_postgresql import rows, schema
from synmanager_postgresql.address import conninfo, schema_of
from synmanager_postgresql.faults import Full, NotDone
from synmanager_postgresql.pool import Pool
from synmanager_postgresql.wire import Parameter, Row, Wire, array

__all__ = ["PostgreSQLBackend"]

#: The most that one transaction publishes.
_CHUNK_MESSAGES = 2000
_CHUNK_BYTES = 8 * 1024 * 1024

#: Seconds after which a waiting client looks without having been called.
_LOOK = 2.0

#: Seconds that ``close`` tries to give back what is leased.
_FAREWELL = 2.0


#: The form of a position in a log.
_POSITION = re.compile(r"[0-9]{1,18}")


class _Receipt(NamedTuple):
    """What this backend must know of a delivery: the lease that is its own."""

    number: int
    holder: str
    token: int


class _Found(NamedTuple):
    """What a look at some queues found.

    Attributes:
        pause: seconds after which time alone may bring something; None for never.
        unbelieved: seconds after which a lease that has run out can be believed; 0 for none.
        channels: on which to be called.
    """

    delivery: Delivery | None
    pause: float | None
    unbelieved: float
    channels: frozenset[str]


class PostgreSQLBackend(QueueBackend):
    """A client of the queues in one schema of a database.

    Args:
        address: its path is the database; see ``address.OPTIONS``.
    """

    features = Features(
        durable=True,
        shared=True,
        timed_lease=True,
        deduplicates=True,
        deletes=True,
        counts_leased=True,
        counts_delayed=True,
        ranks_foreign=True,
        journal=True,
        undeclares=True,
        requeues_at_head=True,
    )

    def __init__(self, address: Address) -> None:
        super().__init__(address)
        self._schema = schema_of(address)
        self._conninfo = conninfo(address)
        self._where = address.safe_url
        # One that is silent for two heartbeats is dead.
        self._patience = min(address.timeout, 2 * address.heartbeat)
        self._longest_pause = min(_LOOK, address.lease / 4)
        self._start_over()

    def _start_over(self) -> None:
        self._pool: Pool | None = None
        self._trust = ClockTrust(self.address.lease)
        # A lease's name, which nobody else has, and which no other delivery has.
        self._holder = secrets.token_hex(8)
        self._tokens = itertools.count(1)
        self._owed: set[int] = set()  # tokens that may be leased, and nobody got
        self._in_doubt: set[_Receipt] = set()  # a settlement of them may have been done

    # Life cycle

    def open(self) -> None:
        if self.is_open:
            return
        former, self._pool = self._pool, None
        if former is not None:
            former.end()
        pool = Pool(self._connect)
        try:
            with pool.wire() as wire:
                schema.prepare(wire, self._schema)
                sent = time.monotonic()
                ((now,),) = wire.ask(self._call("seconds", 0))
                self._trust.saw(sent, int(1000 * float(now or 0)))
        except BaseException:
            pool.end()
            raise
        self._pool = pool

    def _connect(self, timeout: float | None = None) -> Wire:
        wire = Wire(self._conninfo, self._where, timeout or self.address.timeout)
        wire.timeout = self._patience
        try:
            # No job is accepted before it is on the disk, whatever this server's habit.
            wire.ask(
                "SELECT set_config('synchronous_commit', 'on', false) "
                "WHERE current_setting('synchronous_commit') = 'off'; "
                "SET client_min_messages = error; "
                f"SET statement_timeout = {max(1, int(1000 * self._patience))}",
                timeout=timeout,
            )
        except BaseException:
            wire.close()
            raise
        return wire

    def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        pool.end()
        holder, self._holder = self._holder, secrets.token_hex(8)
        # What cannot be given back ends with its lease.
        patience = min(_FAREWELL, self._patience)
        try:
            wire = self._connect(patience)
        except SynmanagerError:
            return
        try:
            wire.ask(self._call("give_back_all", 3), holder, None, "1", timeout=patience)
        except SynmanagerError:
            pass
        finally:
            wire.close()

    @property
    def is_open(self) -> bool:
        pool = self._pool
        return pool is not None and pool.is_open

    def abandon(self) -> None:
        # psycopg's objects know the process that made them, and close nothing in another.
        self._start_over()

    def _current(self) -> Pool:
        pool = self._pool
        if pool is None:
            raise BrokerUnavailable(f"{self._where} is not open")
        return pool

    def _call(self, function: str, parameters: int, columns: str = "*") -> str:
        places = ", ".join(f"${number}" for number in range(1, parameters + 1))
        return f"SELECT {columns} FROM {self._schema}.{function}({places})"

    def _ask(self, function: str, *parameters: Parameter) -> list[Row]:
        with self._current().wire() as wire:
            return wire.ask(self._call(function, len(parameters)), *parameters)

    # Topology

    def declare(self, *specs: ExchangeSpec | QueueSpec) -> None:
        self._current()
        for spec in specs:
            if isinstance(spec, ExchangeSpec):
                self._ask("declare", spec.name, spec.type, None, None)
                continue
            exchange = spec.exchange
            key = "" if exchange.type == "fanout" else spec.routing_key
            self._ask("declare", exchange.name, exchange.type, spec.name, key)

    def undeclare(self, spec: QueueSpec) -> None:
        with self._current().wire() as wire:
            wire.ask(_UNDECLARE.replace("@schema@", self._schema), spec.name)

    # Publishing

    def publish(
        self,
        exchange: str,
        routing_key: str,
        messages: Sequence[Message],
        *,
        delay: float = 0.0,
    ) -> int:
        self._current()
        repeats = confirmed = 0
        for chunk in _chunks(messages):
            columns = rows.write(chunk)
            left = messages[confirmed:]
            sent = False
            try:
                with self._current().wire() as wire:
                    try:
                        ((routes, taken),) = wire.ask(
                            self._call("publish", 9), exchange, routing_key, *columns, repr(delay)
                        )
                    finally:
                        sent = wire.sent
            except Full as error:
                raise PublishRefused(str(error), left) from error
            except BrokerUnavailable as error:
                if (sent and not isinstance(error, NotDone)) or confirmed:
                    raise PublishInterrupted(str(error), left) from error
                raise
            if not rows.number(routes):
                raise Unroutable(
                    f"no queue is bound to exchange {exchange!r} with routing key {routing_key!r}",
                    left,
                )
            confirmed += len(chunk)
            repeats += len(chunk) - rows.number(taken)
        return repeats

    # Receiving

    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        delivery = None
        try:
            with self._current().wire() as wire:
                delivery = self._receive(wire, queues, wait, done)
        except BaseException:
            if delivery is not None:  # and nobody gets it
                self._owed.add(delivery.receipt.token)
            raise
        return delivery

    def _receive(
        self, wire: Wire, queues: Sequence[str], wait: float, done: Delivery | None
    ) -> Delivery | None:
        deadline = time.monotonic() + wait
        if done is not None:
            self._settle(done, "finish", wire=wire)
        try:
            while True:
                wire.forget_calls()
                found = self._take(wire, queues)
                if found.delivery is not None:
                    return found.delivery
                left = deadline - time.monotonic()
                if left <= 0 and not found.unbelieved:
                    return None
                if wire.heard != found.channels:
                    self._listen(wire, found.channels)
                    continue  # what came before it listened called nobody
                pauses = [self._longest_pause, left if left > 0 else found.unbelieved]
                if found.pause is not None:
                    pauses.append(found.pause)
                wire.wait_for_call(min(pauses))
        finally:
            self._stop_listening(wire)

    def _stop_listening(self, wire: Wire) -> None:
        """Who runs a job for hours reads no calls, and they would pile up."""
        if wire.heard and wire.is_open:
            with suppress(SynmanagerError):  # whoever uses the wire next learns of it
                self._listen(wire, frozenset())

    def _listen(self, wire: Wire, channels: frozenset[str]) -> None:
        listen = "".join(f'; LISTEN "{channel}"' for channel in sorted(channels))
        wire.ask(f"UNLISTEN *{listen}")
        wire.heard = channels

    def _take(self, wire: Wire, queues: Sequence[str]) -> _Found:
        owed = tuple(self._owed)
        if owed:
            tokens = f"{{{','.join(map(str, owed))}}}"
            wire.ask(self._call("give_back_all", 3), self._holder, tokens, "0")
            self._owed.difference_update(owed)
        token = next(self._tokens)
        sent, trust = time.monotonic(), self._trust.question()
        try:
            ((now, pause, unbelieved, numbers, queue, number, deliveries, *columns),) = wire.ask(
                self._call("take", 7),
                array(list(queues)),
                self._holder,
                str(token),
                repr(self.address.lease),
                *map(str, trust),
            )
            self._trust.saw(sent, int(1000 * float(now or 0)))
            delivery = None
            if number is not None:
                message, defect = rows.read(columns)
                receipt = _Receipt(int(number), self._holder, token)
                attempt = max(rows.number(deliveries), 0) + 1
                if rows.number(deliveries) < 0:
                    defect = f"{defect}; " if defect else ""
                    defect += "its count of attempts is not a number"
                delivery = Delivery(message, rows.text(queue), attempt, receipt, defect)
        except BaseException as error:
            if not isinstance(error, TopologyError):
                self._owed.add(token)
            raise
        channels = rows.text(numbers).strip("{}").split(",")
        return _Found(
            delivery,
            None if pause is None else float(pause),
            float(unbelieved or 0),
            frozenset(f"{self._schema}.{channel}" for channel in channels),
        )

    # Settling

    def ack(self, delivery: Delivery) -> None:
        self._settle(delivery, "finish")

    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        self._settle(delivery, "give_back", repr(delay), str(int(count)), stays=True)

    def bury(self, delivery: Delivery, reason: str, traceback: str = "") -> None:
        texts = (rows.storable(reason), rows.storable(traceback))
        self._settle(delivery, "bury", *texts, str(delivery.attempt))

    def renew(self, delivery: Delivery) -> None:
        if delivery.settled:
            return
        lease = repr(self.address.lease)
        ((held,),) = self._ask("renew", *self._lease(delivery), lease)
        if held != b"t":
            raise _lost(delivery)

    def _settle(
        self,
        delivery: Delivery,
        function: str,
        *parameters: Parameter,
        stays: bool = False,
        wire: Wire | None = None,
    ) -> None:
        """Do what settles a delivery; nothing if it is settled already.

        Args:
            stays: whether that leaves the job in its queue.
            wire: of a call that is under way.
        """
        if wire is None:
            with self._current().wire() as wire:
                self._settle(delivery, function, *parameters, stays=stays, wire=wire)
            return
        if delivery.settled:
            return
        lease = self._lease(delivery)
        receipt: _Receipt = delivery.receipt
        question = self._call(function, 3 + len(parameters))
        try:
            ((held,),) = wire.ask(question, *lease, *parameters)
        except BaseException as error:
            if not isinstance(error, SynmanagerError) or isinstance(error, BrokerUnavailable):
                self._in_doubt.add(receipt)
            raise
        if held != b"t" and not self._was_done(wire, receipt, stays):
            raise _lost(delivery)
        delivery.settled = True
        self._in_doubt.discard(receipt)

    def _was_done(self, wire: Wire, receipt: _Receipt, stays: bool) -> bool:
        """Whether an earlier try did it, whose answer was lost."""
        if receipt not in self._in_doubt:
            return False
        there = wire.ask(
            f"SELECT 1 FROM {self._schema}.jobs WHERE number = $1", str(receipt.number)
        )
        return stays or not there

    def _lease(self, delivery: Delivery) -> tuple[str, str, str]:
        receipt: _Receipt = delivery.receipt
        if receipt.holder != self._holder:  # of before a close, or a parent's
            raise _lost(delivery)
        return str(receipt.number), receipt.holder, str(receipt.token)

    # Operations

    def _ask_of_queue(self, queue: str, question: str, *parameters: Parameter) -> list[Row]:
        """Ask with ``$1`` for the queue's number.

        Raises:
            TopologyError: there is none of this name.
        """
        with self._current().wire() as wire:
            ((number,),) = wire.ask(self._call("number_of", 1), queue)
            return wire.ask(
                question.replace("@schema@", self._schema), rows.text(number), *parameters
            )

    def count(self, queue: str) -> Counts:
        ((ready, leased, delayed, dead),) = self._ask_of_queue(queue, _COUNT)
        return Counts(*(rows.number(column) for column in (ready, leased, delayed, dead)))

    def purge(self, queue: str) -> int:
        return self._delete_in_pages(queue, _PURGE)

    def _delete_in_pages(self, queue: str, question: str) -> int:
        removed = 0
        while page := len(self._ask_of_queue(queue, question)):
            removed += page
        return removed

    def delete(self, queue: str, message_id: str) -> bool:
        if rows.storable(message_id) != message_id:
            return False
        return bool(self._ask_of_queue(queue, _DELETE, message_id))

    def dead_letters(self, queue: str, limit: int) -> list[DeadLetter]:
        found = self._ask_of_queue(queue, _LETTERS, str(limit))
        return [
            DeadLetter(
                rows.read(columns)[0],
                queue,
                rows.text(reason),
                rows.number(attempts),
                float(died_at or 0),
                rows.text(traceback),
            )
            for reason, traceback, attempts, died_at, *columns in found
        ]

    def redrive(self, queue: str, limit: int) -> int:
        ((moved,),) = self._ask("redrive", queue, str(min(limit, 2**31 - 1)))
        return rows.number(moved)

    def purge_dead_letters(self, queue: str) -> int:
        return self._delete_in_pages(queue, _PURGE_DEAD)

    # The journal

    def record(self, log: str, entries: Sequence[bytes]) -> None:
        self._current()
        if entries:
            age, most = self.address.journal_age, self.address.journal_bytes
            try:
                self._ask("record", log, array(entries, of_bytes=True), repr(age), str(most))
            except Full as error:
                raise PublishRefused(str(error)) from error

    def replay(
        self, log: str, after: str | float = 0.0, *, wait: float = 0.0, limit: int = 1000
    ) -> list[Entry]:
        check_place(after, _POSITION)
        deadline = time.monotonic() + wait
        channels = frozenset({f"{self._schema}.{log}"})
        question = (_BEHIND if isinstance(after, str) else _SINCE).replace("@schema@", self._schema)
        point = after if isinstance(after, str) else repr(float(after))
        with self._current().wire() as wire:
            try:
                while True:
                    wire.forget_calls()
                    found = wire.ask(question, log, point, str(limit))
                    left = deadline - time.monotonic()
                    if found or left <= 0:
                        return [
                            Entry(rows.text(position), float(at or 0), rows.data(data))
                            for position, at, data in found
                        ]
                    if wire.heard != channels:
                        self._listen(wire, channels)
                        continue
                    wire.wait_for_call(min(left, _LOOK))
            finally:
                self._stop_listening(wire)


_COUNT = """
SELECT count(*) FILTER (WHERE state = 'ready' OR due <= @schema@.seconds()),
       count(*) FILTER (WHERE state = 'leased'),
       count(*) FILTER (WHERE due > @schema@.seconds()),
       (SELECT count(*) FROM @schema@.dead WHERE queue = $1)
  FROM @schema@.jobs WHERE queue = $1
"""

# One statement, and so one transaction. A queue's number is never another's.
_UNDECLARE = """
WITH gone AS (DELETE FROM @schema@.queues WHERE name = $1 RETURNING queue),
     bound AS (DELETE FROM @schema@.bindings WHERE queue IN (SELECT queue FROM gone)),
     jobs AS (DELETE FROM @schema@.jobs WHERE queue IN (SELECT queue FROM gone))
DELETE FROM @schema@.dead WHERE queue IN (SELECT queue FROM gone)
"""

_PURGE = """
DELETE FROM @schema@.jobs WHERE number IN (
    SELECT number FROM @schema@.jobs WHERE queue = $1 AND state IN ('ready', 'delayed')
     LIMIT 5000 FOR UPDATE SKIP LOCKED
) RETURNING 1
"""

_DELETE = """
DELETE FROM @schema@.jobs
 WHERE queue = $1 AND id = $2 AND state IN ('ready', 'delayed') RETURNING 1
"""

_LETTERS = f"""
SELECT reason, traceback, attempts, died_at, {rows.COLUMNS}
  FROM @schema@.dead WHERE queue = $1 ORDER BY letter LIMIT $2
"""

_PURGE_DEAD = """
DELETE FROM @schema@.dead WHERE letter IN (
    SELECT letter FROM @schema@.dead WHERE queue = $1 LIMIT 5000 FOR UPDATE SKIP LOCKED
) RETURNING 1
"""

_BEHIND = """
SELECT position, recorded_at, data FROM @schema@.journal
 WHERE log = $1 AND position > $2 ORDER BY position LIMIT $3
"""

_SINCE = """
SELECT position, recorded_at, data FROM @schema@.journal
 WHERE log = $1 AND recorded_at >= $2 ORDER BY position LIMIT $3
"""


def _lost(delivery: Delivery) -> LeaseLost:
    return LeaseLost(
        f"job {shown(delivery.message.id)} was taken back: its lease ran out, or its client "
        "was closed"
    )


def _chunks(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    """Cut a batch into what one transaction takes."""
    start = size = 0
    for number, message in enumerate(messages):
        full = number - start >= _CHUNK_MESSAGES or size + len(message.body) > _CHUNK_BYTES
        if full and number > start:
            yield messages[start:number]
            start, size = number, 0
        size += len(message.body)
    if messages[start:]:
        yield messages[start:]

"""The backend: which transaction each call is, and what comes of it."""

from __future__ import annotations

import itertools
import logging
import math
import os
import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from zlib import crc32

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
from synmanager.backends.options import flag, read_options
from synmanager.backends.sqlite import file, forks, logs, rows, tables
from synmanager.backends.sqlite.bells import Bell, Bells
from synmanager.backends.sqlite.clocks import Clocks, Watch
from synmanager.backends.sqlite.connections import CommitInDoubt, Connections
from synmanager.backends.sqlite.faults import Full, damaged, translate
from synmanager.errors import (
    BrokerUnavailable,
    ConfigurationError,
    LeaseLost,
    PublishInterrupted,
    PublishRefused,
    SynmanagerError,
    TopologyError,
    Unroutable,
)
from synmanager.interrupts import is_from_handler
from synmanager.message import Message
from synmanager.text import shown

__all__ = ["SQLiteBackend"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: The oldest SQLite that is supported: Debian 11's.
_OLDEST = (3, 34)

#: The most that one transaction publishes: nobody else can write meanwhile.
_CHUNK_MESSAGES = 5000
_CHUNK_BYTES = 8 * 1024 * 1024

#: How many dead letters one transaction moves, for the same reason.
_PAGE_OF_LETTERS = 100

#: How many entries of the journal one transaction writes, for the same reason.
_CHUNK_ENTRIES = 500

#: A position in a log.
_POSITION = re.compile("[0-9]{1,18}")

#: Seconds after which a waiting client looks without having been rung for; and one without a bell.
_LOOK = 5.0
_LOOK_UNHEARD = 0.05

#: Seconds between two glances of who waits: whether the file was written to, which costs next to
#: nothing, and whether it is to wait no more.
_GLANCE = 1.0

#: Seconds that ``close`` tries to give back what is leased.
_FAREWELL = 2.0

#: A number of earlier deliveries beyond which somebody else wrote it.
_MOST_DELIVERIES = 1_000_000_000

_NEXT = (
    f"SELECT ready.rank, ready.number, deliveries, jobs.number, "
    f"{', '.join(f'jobs.{column}' for column in rows.COLUMNS.split(', '))} "
    "FROM ready LEFT JOIN jobs ON jobs.number = ready.number "
    "WHERE ready.queue = ? ORDER BY ready.rank DESC, ready.number LIMIT 1"
)


class _Receipt(NamedTuple):
    """What this backend must know of a delivery: the lease that is its own."""

    number: int
    holder: str
    token: int


class _Found(NamedTuple):
    """What a look at some queues found.

    Attributes:
        pause: seconds after which time alone may bring something.
        unbelieved: seconds after which a lease that has run out can be believed; 0 for none.
        queues: their numbers.
        left: those of the queues, by their numbers, in which there is more to take.
        error: to be raised once what came before it is safe.
    """

    delivery: Delivery | None
    pause: float = math.inf
    unbelieved: float = 0.0
    queues: tuple[int, ...] = ()
    left: tuple[int, ...] = ()
    error: TopologyError | None = None


class SQLiteBackend(QueueBackend):
    """A client of the queues in one file.

    Args:
        address: its path is the file, its option ``mkdir`` whether to make the directory that
            it is in; host, port and credentials mean nothing here.
        clocks: by which leases and delays go.
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
        mends_letters=True,
        shows_delayed=True,
        requeues_at_head=True,
    )

    def __init__(self, address: Address, clocks: Clocks | None = None) -> None:
        super().__init__(address)
        self._clocks = clocks or Clocks()
        self._mkdir: bool = read_options(address, {"mkdir": flag}).get("mkdir", False)
        self._named = False
        if sqlite3.sqlite_version_info < _OLDEST:
            raise ConfigurationError(
                f"sqlite:// needs SQLite {'.'.join(map(str, _OLDEST))} or later, and this Python "
                f"has {sqlite3.sqlite_version}"
            )
        self._name = self._path = _path_of(address)
        self._log = f"{self._path}-wal"
        self._longest_pause = min(_LOOK, address.lease / 4)
        self._start_over()

    def _start_over(self) -> None:
        self._connections: Connections | None = None
        self._bells: Bells | None = None
        self._watch = Watch(self.address.lease)
        # A lease's name, which nobody else has, and which no other delivery has.
        self._holder = secrets.token_hex(8)
        self._tokens = itertools.count(1)
        self._owed: set[int] = set()  # tokens that may be leased, and nobody got
        self._in_doubt: set[_Receipt] = set()  # a settlement of them may have been done

    # Life cycle

    def open(self) -> None:
        forks.check()
        if self.is_open:
            return
        former, self._connections = self._connections, None
        # Whatever links lead to the file: its log, its lock and its bells lie beside it.
        self._path = Path(os.path.realpath(self._name))
        self._log = f"{self._path}-wal"
        if former is not None:
            former.drop()
        elif not self._named:
            self._named = True
            logger.info("the queues are in %s", self._path)
        connections = Connections(self._path, self.address.timeout, self._name)
        try:
            connections.open(mkdir=self._mkdir)
            self._bells = Bells(file.bells_of(self._path), self._path.stat().st_mode & 0o666)
            self._bells.sweep()
            self._void_leases_of_an_earlier_boot(connections)
        except OSError as error:  # the file was removed meanwhile, for one
            if isinstance(error, SynmanagerError) or is_from_handler(error):
                raise
            connections.drop()
            raise translate(error, self._path) from error
        self._connections = connections

    def _void_leases_of_an_earlier_boot(self, connections: Connections) -> None:
        # They were taken in what is the future of this machine's clock, which then has begun
        # anew. One that does not show it ends in its time, like any dead worker's.
        now = self._clocks.now

        def is_of_the_future(db: sqlite3.Connection) -> bool:
            found = db.execute("SELECT 1 FROM leased WHERE since > ? LIMIT 1", (now(),))
            return found.fetchone() is not None

        if connections.read(is_of_the_future):
            connections.write(lambda db: tables.give_back(db, "since > ?", (now(),), counts=True))

    def close(self) -> None:
        connections, self._connections = self._connections, None
        if connections is None:
            return
        # What cannot be given back ends with its lease.
        queues = connections.close(self._give_back_all, min(_FAREWELL, self.address.timeout))
        if self._bells is not None:
            self._bells.ring(queues or ())
            self._bells.ring_ours()

    @property
    def is_open(self) -> bool:
        connections = self._connections
        return connections is not None and connections.ready

    def abandon(self) -> None:
        if self._bells is not None:
            self._bells.forget()
        self._start_over()

    def _give_back_all(self, db: sqlite3.Connection) -> list[int]:
        return tables.give_back(db, "holder = ?", (self._holder,), counts=True)

    def _current(self) -> Connections:
        connections = self._connections
        if connections is None:
            raise BrokerUnavailable(f"{self._path} is not open")
        return connections

    # Topology

    def declare(self, *specs: ExchangeSpec | QueueSpec) -> None:
        connections = self._current()
        if not connections.read(lambda db: all(tables.is_declared(db, spec) for spec in specs)):
            connections.write(lambda db: tables.declare(db, specs))

    def undeclare(self, spec: QueueSpec) -> None:
        connections = self._current()
        while connections.write(lambda db: tables.undeclare(db, spec.name)):
            pass

    # Publishing

    def publish(
        self,
        exchange: str,
        routing_key: str,
        messages: Sequence[Message],
        *,
        delay: float = 0.0,
    ) -> int:
        connections = self._current()
        repeats = confirmed = 0
        for chunk in _chunks(messages):

            def work(
                db: sqlite3.Connection, chunk: Sequence[Message] = chunk
            ) -> tuple[int, list[int]]:
                queues = tables.routes(db, exchange, routing_key)
                due = self._clocks.wall() + delay if delay > 0 else None
                return tables.insert(db, queues, chunk, due), queues

            try:
                taken, queues = connections.write(work)
            except (Unroutable, BrokerUnavailable) as error:
                raise _not_published(error, messages, confirmed) from error
            confirmed += len(chunk)
            repeats += len(chunk) - taken
            self._ring(queues)
        return repeats

    def _ring(self, queues: Sequence[int | str]) -> None:
        if queues and self._bells is not None:
            self._bells.ring(queues)

    # Receiving

    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        return self.await_job(queues, wait, done, called_off=_never)

    def await_job(
        self,
        queues: Sequence[str],
        wait: float,
        done: Delivery | None = None,
        *,
        called_off: Callable[[], bool],
    ) -> Delivery | None:
        deadline = time.monotonic() + wait
        bells = self._bells
        bell = None
        is_sure = True  # that a look with the writers' lock is worth it
        try:
            while True:
                written = self._last_written()
                found = None if is_sure else self._peek(queues)
                if found is None:
                    found = self._look(queues, done, waited=bell is not None)
                done = None
                if bell is not None:
                    bell.heard = set(found.left)
                if found.delivery is not None:
                    return found.delivery
                left = deadline - time.monotonic()
                if left <= 0 and not found.unbelieved:
                    return None
                is_sure = False
                if bell is None and bells is not None:
                    bell = bells.hang(found.queues)
                    if bell is not None:
                        continue  # what came before it hung rang no bell
                pause = min(
                    left if left > 0 else found.unbelieved, found.pause, self._longest_pause
                )
                is_sure = _pause(
                    bell,
                    pause,
                    lambda: called_off() or self._last_written() != written,  # noqa: B023
                )
                if called_off():
                    return None
        finally:
            if bell is not None and bells is not None:
                bells.take_down(bell)

    def _last_written(self) -> tuple[int, int] | None:
        """What changes with each transaction of anybody, who may ring no bell."""
        try:
            log = os.stat(self._log)
        except OSError:
            return None
        return log.st_mtime_ns, log.st_size

    def _peek(self, queues: Sequence[str]) -> _Found | None:
        """Look without the writers' lock; None if there is something to do that needs it."""
        if self._owed:
            return None

        def work(db: sqlite3.Connection) -> _Found | None:
            now, wall = self._clocks.now(), self._clocks.wall()
            self._watch.look(now)
            pauses, numbers = [math.inf], []
            for name in queues:
                queue, due, expires, is_ready = tables.clock_of(db, name)
                numbers.append(queue)
                pauses.append(math.inf if due is None else due - wall)
                pauses.append(math.inf if expires is None else expires - now)
                if is_ready or min(pauses) <= 0:
                    return None
            return _Found(None, min(pauses), queues=tuple(numbers))

        connections = self._current()
        found = connections.read(work)
        if connections.closed:
            raise BrokerUnavailable(f"{self._path} was closed")
        return found

    def _look(self, queues: Sequence[str], done: Delivery | None, *, waited: bool) -> _Found:
        """Take what there is, with the writers' lock.

        Args:
            waited: whether the others who wait for the queues are to be told of what is left.
        """
        token = next(self._tokens)
        owed = self._owed.copy()

        def work(db: sqlite3.Connection) -> _Found:
            for lost in owed:
                lease = (self._holder, lost)
                tables.give_back(db, "holder = ? AND token = ?", lease, counts=False)
            if done is None or done.settled:
                return self._take(db, queues, token, waited)
            self._finish(db, done)
            try:
                return self._take(db, queues, token, waited)
            except TopologyError as error:
                return _Found(None, error=error)  # the acknowledgement holds all the same

        connections = self._current()
        try:
            found = self._settle(done, work) if done else None
            if found is None:
                found = connections.write(work)
        except BaseException as error:
            if isinstance(error, CommitInDoubt) or not isinstance(error, SynmanagerError):
                self._owed.add(token)
            raise
        self._owed.difference_update(owed)
        if found.error is not None:
            raise found.error
        if connections.closed:
            raise BrokerUnavailable(f"{self._path} was closed")
        return found

    def _take(
        self, db: sqlite3.Connection, queues: Sequence[str], token: int, waited: bool
    ) -> _Found:
        now, wall = self._clocks.now(), self._clocks.wall()
        awake = self._watch.look(now)
        pauses, doubts, numbers = [math.inf], [], []
        for name in queues:
            queue, due, expires, _ = tables.clock_of(db, name)
            numbers.append(queue)
            if due is not None and due <= wall:
                due = tables.promote(db, queue, wall)
            if due is not None:
                pauses.append(max(0.0, due - wall))
            if expires is not None and expires <= now:
                expires, doubt = tables.reclaim(db, queue, now, awake)
                if doubt:
                    doubts.append(doubt)
            if expires is not None:
                pauses.append(expires - now)
            row = db.execute(_NEXT, (queue,)).fetchone()
            if row is not None:
                delivery = self._lease(db, name, queue, row, now, token)
                return _Found(delivery, left=tables.with_jobs(db, queues) if waited else ())
        return _Found(None, min(pauses + doubts), min(doubts, default=0.0), tuple(numbers))

    def _lease(
        self,
        db: sqlite3.Connection,
        name: str,
        queue: int,
        row: Sequence[Any],
        now: float,
        token: int,
    ) -> Delivery:
        rank, number, deliveries, there, *columns = row
        if there is None:
            raise damaged(self._path, f"job {number} of queue {name!r} has no row")
        message, defect = rows.read(columns)
        if not isinstance(deliveries, int) or not 0 <= deliveries <= _MOST_DELIVERIES:
            defect = f"{defect}; " if defect else ""
            defect += "its count of attempts is not a number"
            deliveries = 0
        db.execute(
            "DELETE FROM ready WHERE queue = ? AND rank = ? AND number = ?", (queue, rank, number)
        )
        db.execute(
            "INSERT INTO leased VALUES (?, ?, ?, ?, ?, ?, ?)",
            (number, queue, self._holder, token, now, now + self.address.lease, deliveries),
        )
        receipt = _Receipt(number, self._holder, token)
        return Delivery(message, name, deliveries + 1, receipt, defect)

    # Settling

    def ack(self, delivery: Delivery) -> None:
        self._settle(delivery, lambda db: self._finish(db, delivery))

    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        number = delivery.receipt.number

        def work(db: sqlite3.Connection) -> list[int]:
            lease = self._end_lease(db, delivery, stays=True)
            if lease is None:
                return []
            queue, deliveries = lease
            if delay > 0:
                due = self._clocks.wall() + delay
                values = (number, queue, due, deliveries + count)
                db.execute("INSERT INTO delayed VALUES (?, ?, ?, ?)", values)
            else:
                tables.make_ready(db, number, deliveries + count)
            return [queue]

        self._ring(self._settle(delivery, work) or [])

    def bury(self, delivery: Delivery, reason: str, traceback: str = "") -> None:
        number = delivery.receipt.number
        texts = (_storable(reason), _storable(traceback))

        def work(db: sqlite3.Connection) -> None:
            if self._end_lease(db, delivery) is not None:
                db.execute(_BURY, (*texts, delivery.attempt, time.time(), number))
                db.execute("DELETE FROM jobs WHERE number = ?", (number,))

        self._settle(delivery, work)

    def renew(self, delivery: Delivery) -> None:
        if delivery.settled:
            return

        def work(db: sqlite3.Connection) -> int:
            now = self._clocks.now()
            self._watch.look(now)
            return db.execute(
                "UPDATE leased SET since = ?, expires = ? "
                "WHERE number = ? AND holder = ? AND token = ?",
                (now, now + self.address.lease, *self._receipt(delivery)),
            ).rowcount

        if not self._current().write(work):
            raise _lost(delivery)

    def _settle(self, delivery: Delivery, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Do what settles a delivery; nothing if it is settled already."""
        if delivery.settled:
            return None
        receipt = delivery.receipt
        try:
            result = self._current().write(work)
        except CommitInDoubt:
            self._in_doubt.add(receipt)
            raise
        delivery.settled = True
        self._in_doubt.discard(receipt)
        return result

    def _finish(self, db: sqlite3.Connection, delivery: Delivery) -> None:
        """The job is done."""
        if self._end_lease(db, delivery) is not None:
            db.execute("DELETE FROM jobs WHERE number = ?", (delivery.receipt.number,))

    def _end_lease(
        self, db: sqlite3.Connection, delivery: Delivery, *, stays: bool = False
    ) -> tuple[int, int] | None:
        """End a delivery's lease; None if an earlier try did it, whose answer was lost.

        Args:
            stays: whether that leaves the job in its queue.
        """
        receipt = self._receipt(delivery)
        lease = tables.end_lease(db, receipt)
        if lease is None:
            known = receipt in self._in_doubt
            there = db.execute(
                "SELECT 1 FROM jobs WHERE number = ? AND id = ?",
                (receipt.number, delivery.message.id),
            ).fetchone()
            if not known or (there and not stays):
                raise _lost(delivery)
        return lease

    def _receipt(self, delivery: Delivery) -> _Receipt:
        receipt: _Receipt = delivery.receipt
        if receipt.holder != self._holder:  # a child's, whose parent holds the lease
            raise _lost(delivery)
        return receipt

    # Operations

    def count(self, queue: str) -> Counts:
        def work(db: sqlite3.Connection) -> Counts:
            number = tables.number_of(db, queue)
            ready, leased, due, later, dead = db.execute(
                _COUNT, {"queue": number, "now": self._clocks.wall()}
            ).fetchone()
            return Counts(ready + due, leased, later, dead)

        return self._current().read(work)

    def purge(self, queue: str) -> int:
        connections, removed = self._current(), 0
        while page := connections.write(lambda db: tables.purge(db, tables.number_of(db, queue))):
            removed += page
        return removed

    def delete(self, queue: str, message_id: str) -> bool:
        return self._current().write(
            lambda db: tables.delete(db, tables.number_of(db, queue), message_id)
        )

    def dead_letters(self, queue: str, limit: int) -> list[DeadLetter]:
        def work(db: sqlite3.Connection) -> list[DeadLetter]:
            found = db.execute(_LETTERS, (tables.number_of(db, queue), limit))
            return [
                DeadLetter(
                    rows.read(columns)[0], queue, str(reason), attempts, died_at, str(traceback)
                )
                for reason, traceback, attempts, died_at, *columns in found
            ]

        return self._current().read(work)

    def redrive(self, queue: str, limit: int) -> int:
        def work(db: sqlite3.Connection) -> tuple[int, int, int | None]:
            number = tables.number_of(db, queue)
            page = min(limit - moved, _PAGE_OF_LETTERS)
            return number, *tables.redrive(db, number, last or 0, page)

        connections = self._current()
        moved = 0
        last: int | None = 0
        while moved < limit and last is not None:
            number, page, last = connections.write(work)
            moved += page
            self._ring([number])
        return moved

    def purge_dead_letters(self, queue: str) -> int:
        connections, removed = self._current(), 0
        while page := connections.write(
            lambda db: db.execute(_PURGE_DEAD, (tables.number_of(db, queue), tables.PAGE)).rowcount
        ):
            removed += page
        return removed

    # The journal

    def record(self, log: str, entries: Sequence[bytes]) -> None:
        connections = self._current()
        for start in range(0, len(entries), _CHUNK_ENTRIES):
            chunk = entries[start : start + _CHUNK_ENTRIES]

            def work(db: sqlite3.Connection, chunk: Sequence[bytes] = chunk) -> None:
                logs.append(
                    db,
                    log,
                    chunk,
                    now=self._clocks.wall(),
                    age=self.address.journal_age,
                    most=self.address.journal_bytes,
                )

            try:
                connections.write(work)
            except Full as error:
                raise PublishRefused(str(error)) from error
            self._ring([log])

    def replay(
        self, log: str, after: str | float = 0.0, *, wait: float = 0.0, limit: int = 1000
    ) -> list[Entry]:
        check_place(after, _POSITION)
        connections = self._current()
        deadline = time.monotonic() + wait
        bells = self._bells
        bell = None
        try:
            while True:
                found = connections.read(lambda db: logs.behind(db, log, after, limit))
                left = deadline - time.monotonic()
                if found or left <= 0:
                    return found
                if bell is None and bells is not None:
                    bell = bells.follow(log)
                    if bell is not None:
                        continue  # what came before it hung rang no bell
                _pause(bell, min(left, _LOOK))
        finally:
            if bell is not None and bells is not None:
                bells.take_down(bell)

    def redrive_letters(self, queue: str, ids: Collection[str]) -> int:
        def find(db: sqlite3.Connection) -> tuple[int, list[tuple[int]]]:
            number = tables.number_of(db, queue)
            found = (tables.letters_of(db, number, each) for each in set(ids))
            return number, sorted(itertools.chain.from_iterable(found))

        connections, moved = self._current(), 0
        number, letters = connections.read(find)
        for page in _pages(letters):
            moved += connections.write(partial(tables.put_back, letters=page))
            self._ring([number])
        return moved

    def purge_letters(self, queue: str, ids: Collection[str]) -> int:
        def work(db: sqlite3.Connection, page: list[str]) -> int:
            number = tables.number_of(db, queue)
            return db.executemany(
                "DELETE FROM dead WHERE queue = ? AND id = ?", [(number, each) for each in page]
            ).rowcount

        connections, removed = self._current(), 0
        for page in _pages(list(set(ids))):
            removed += connections.write(partial(work, page=page))
        return removed

    def edit_letter(self, queue: str, message_id: str, body: bytes) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            letters = tables.letters_of(db, tables.number_of(db, queue), message_id)
            for letter in letters[:1]:
                change = (body, crc32(body), *letter)
                db.execute("UPDATE dead SET body = ?, checksum = ? WHERE letter = ?", change)
            return bool(letters)

        return self._current().write(work)

    def add_letters(self, queue: str, letters: Sequence[DeadLetter]) -> None:
        def work(db: sqlite3.Connection) -> None:
            number = tables.number_of(db, queue)
            for each in letters:
                why = (_storable(each.reason), _storable(each.traceback))
                values = (number, *rows.write(each.message), *why, each.attempts, each.died_at)
                db.execute(_ADD_LETTER, values)

        self._current().write(work)

    def delayed(self, queue: str, limit: int) -> list[Delayed]:
        def work(db: sqlite3.Connection) -> list[Delayed]:
            found = db.execute(_DELAYED, (tables.number_of(db, queue), limit))
            now = self._clocks.wall()
            return [Delayed(rows.read(columns)[0], due - now) for due, *columns in found]

        return self._current().read(work)

    def facts(self, queues: Sequence[str] = ()) -> Facts:
        def work(db: sqlite3.Connection) -> list[tuple[str]]:
            return db.execute("SELECT name FROM queues ORDER BY queue").fetchall()

        names = tuple(name for (name,) in self._current().read(work))
        return Facts("SQLite", sqlite3.sqlite_version, names, room=self._room())

    def _room(self) -> dict[str, tuple[int, int]]:
        """What the file and its log take, and could take until the disk is full."""
        try:
            files = [name for name in (str(self._path), self._log) if os.path.exists(name)]
            taken = sum(map(os.path.getsize, files))
            return {"disk": (taken, taken + shutil.disk_usage(self._path.parent).free)}
        except OSError:
            return {}


_BURY = (
    f"INSERT INTO dead (queue, {rows.COLUMNS}, reason, traceback, attempts, died_at) "
    f"SELECT queue, {rows.COLUMNS}, ?, ?, ?, ? FROM jobs WHERE number = ?"
)

_ADD_LETTER = (
    f"INSERT INTO dead (queue, {rows.COLUMNS}, reason, traceback, attempts, died_at) "
    f"VALUES ({', '.join('?' * (5 + len(rows.COLUMNS.split(', '))))})"
)

_DELAYED = (
    f"SELECT due, {', '.join(f'jobs.{column}' for column in rows.COLUMNS.split(', '))} "
    "FROM delayed JOIN jobs USING (number) WHERE delayed.queue = ? "
    "ORDER BY due, delayed.number LIMIT ?"
)

_COUNT = """
SELECT (SELECT count(*) FROM ready WHERE queue = :queue),
       (SELECT count(*) FROM leased WHERE queue = :queue),
       (SELECT count(*) FROM delayed WHERE queue = :queue AND due <= :now),
       (SELECT count(*) FROM delayed WHERE queue = :queue AND due > :now),
       (SELECT count(*) FROM dead WHERE queue = :queue)
"""

_LETTERS = (
    f"SELECT reason, traceback, attempts, died_at, {rows.COLUMNS} FROM dead "
    "WHERE queue = ? ORDER BY letter LIMIT ?"
)

_PURGE_DEAD = "DELETE FROM dead WHERE letter IN (SELECT letter FROM dead WHERE queue = ? LIMIT ?)"


def _path_of(address: Address) -> Path:
    if not address.path:
        raise ConfigurationError(
            "sqlite:// names no file; write sqlite:////data/jobs.db for /data/jobs.db"
        )
    if address.path.startswith(("~", ":")) or "\0" in address.path:
        raise ConfigurationError(
            f"sqlite:// takes the path of a file as it is, not {address.path!r:.100}; for queues "
            "in memory there is memory://"
        )
    return Path(address.path).absolute()


def _never() -> bool:
    return False


def _pause(bell: Bell | None, seconds: float, is_over: Callable[[], bool] = _never) -> bool:
    """Wait until it rings, or, without one, a little; whether it has rung.

    Args:
        is_over: asked at each glance, whether to wait no more.
    """
    if bell is None:
        time.sleep(max(0, min(seconds, _LOOK_UNHEARD)))
        return False
    until = time.monotonic() + seconds
    while not bell.wait(min(until - time.monotonic(), _GLANCE)):
        if is_over() or time.monotonic() >= until:
            return False
    return True


def _pages(letters: Sequence[T]) -> Iterator[list[T]]:
    """Letters, or their ids, by as many as one transaction takes."""
    for start in range(0, len(letters), _PAGE_OF_LETTERS):
        yield list(letters[start : start + _PAGE_OF_LETTERS])


def _storable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _lost(delivery: Delivery) -> LeaseLost:
    return LeaseLost(
        f"job {shown(delivery.message.id)} was taken back: its lease ran out, or its client "
        "was closed"
    )


def _not_published(
    error: SynmanagerError, messages: Sequence[Message], confirmed: int
) -> SynmanagerError:
    """Our error, with what it leaves in doubt."""
    left = messages[confirmed:]
    if isinstance(error, Unroutable):
        return Unroutable(str(error), left)
    if isinstance(error, Full):
        return PublishRefused(str(error), left)
    if isinstance(error, CommitInDoubt) or confirmed:
        return PublishInterrupted(str(error), left)
    return error


def _chunks(messages: Sequence[Message]) -> Iterable[Sequence[Message]]:
    """Cut a batch into what one transaction takes."""
    return (messages,) if len(messages) == 1 else _cut(messages)


def _cut(messages: Sequence[Message]) -> Iterator[Sequence[Message]]:
    start = size = 0
    for number, message in enumerate(messages):
        full = number - start >= _CHUNK_MESSAGES or size + len(message.body) > _CHUNK_BYTES
        if full and number > start:
            yield messages[start:number]
            start, size = number, 0
        size += len(message.body)
    if messages[start:]:
        yield messages[start:]

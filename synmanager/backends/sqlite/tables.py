"""The steps on the tables of which the calls are made, each within its caller's transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from synmanager.backends.base import ExchangeSpec, QueueSpec
from synmanager.backends.sqlite import rows
from synmanager.errors import TopologyError, Unroutable
from synmanager.message import Message

__all__ = [
    "PAGE",
    "clock_of",
    "declare",
    "delete",
    "end_lease",
    "give_back",
    "insert",
    "is_declared",
    "make_ready",
    "number_of",
    "promote",
    "purge",
    "reclaim",
    "redrive",
    "routes",
    "undeclare",
    "with_jobs",
]

#: The most that one transaction takes over, promotes or removes: nobody else writes meanwhile.
PAGE = 1000

_INSERT = (
    f"INSERT INTO jobs (queue, {rows.COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (queue, id) DO NOTHING"
)

_ROUTES = """
SELECT q.queue
  FROM exchanges AS e
  JOIN bindings AS b
    ON b.exchange = e.name AND b.key = CASE e.type WHEN 'fanout' THEN '' ELSE ? END
  JOIN queues AS q ON q.queue = b.queue
 WHERE e.name = ?
"""

_CLOCK = """
SELECT queue,
       (SELECT min(due) FROM delayed WHERE delayed.queue = queues.queue),
       (SELECT min(expires) FROM leased WHERE leased.queue = queues.queue),
       EXISTS (SELECT 1 FROM ready WHERE ready.queue = queues.queue)
  FROM queues WHERE name = ?
"""


# Topology


def is_declared(db: sqlite3.Connection, spec: ExchangeSpec | QueueSpec) -> bool:
    """Whether an exchange exists, and a queue with its binding.

    Raises:
        TopologyError: the exchange is of another type.
    """
    exchange = spec if isinstance(spec, ExchangeSpec) else spec.exchange
    row = db.execute("SELECT type FROM exchanges WHERE name = ?", (exchange.name,)).fetchone()
    if row is None:
        return False
    if row[0] != exchange.type:
        raise TopologyError(
            f"exchange {exchange.name!r} is of type {row[0]!r}, not {exchange.type!r}"
        )
    if isinstance(spec, ExchangeSpec):
        return True
    bound = db.execute(
        "SELECT 1 FROM queues JOIN bindings USING (queue) "
        "WHERE name = ? AND exchange = ? AND key = ?",
        (spec.name, exchange.name, _key(spec)),
    )
    return bound.fetchone() is not None


def declare(db: sqlite3.Connection, specs: Iterable[ExchangeSpec | QueueSpec]) -> None:
    """Make what is missing.

    Raises:
        TopologyError: an exchange is of another type.
    """
    for spec in specs:
        if is_declared(db, spec):
            continue
        exchange = spec if isinstance(spec, ExchangeSpec) else spec.exchange
        db.execute("INSERT OR IGNORE INTO exchanges VALUES (?, ?)", (exchange.name, exchange.type))
        if isinstance(spec, QueueSpec):
            db.execute("INSERT OR IGNORE INTO queues (name) VALUES (?)", (spec.name,))
            db.execute(
                "INSERT OR IGNORE INTO bindings VALUES (?, ?, ?)",
                (exchange.name, _key(spec), number_of(db, spec.name)),
            )


def undeclare(db: sqlite3.Connection, name: str) -> bool:
    """Remove a page of what is in a queue; if there is nothing, the queue. Whether there is more.

    It gets no more from the first page on, and keeps its number until it is empty: what still
    has that must not become another queue's.
    """
    row = db.execute("SELECT queue FROM queues WHERE name = ?", (name,)).fetchone()
    if row is None:
        return False
    db.execute("DELETE FROM bindings WHERE queue = ?", row)
    if purge(db, row[0]):
        return True
    page = "SELECT letter FROM dead WHERE queue = ? LIMIT ?"
    if db.execute(f"DELETE FROM dead WHERE letter IN ({page})", (*row, PAGE)).rowcount:
        return True
    for table in ("leased", "jobs", "queues"):
        db.execute(f"DELETE FROM {table} WHERE queue = ?", row)
    return False


def _key(spec: QueueSpec) -> str:
    return "" if spec.exchange.type == "fanout" else spec.routing_key


def number_of(db: sqlite3.Connection, queue: str) -> int:
    """The number of a queue.

    Raises:
        TopologyError: there is none of this name.
    """
    row = db.execute("SELECT queue FROM queues WHERE name = ?", (queue,)).fetchone()
    if row is None:
        raise _no_queue(queue)
    number: int = row[0]
    return number


def _no_queue(queue: str) -> TopologyError:
    return TopologyError(f"there is no queue {queue!r}; declare it first")


def routes(db: sqlite3.Connection, exchange: str, routing_key: str) -> list[int]:
    """The queues that a message goes to.

    Raises:
        Unroutable: there is none.
    """
    queues = [queue for (queue,) in db.execute(_ROUTES, (routing_key, exchange))]
    if not queues:
        raise Unroutable(
            f"no queue is bound to exchange {exchange!r} with routing key {routing_key!r}"
        )
    return queues


# Messages on their way in


def insert(
    db: sqlite3.Connection, queues: Sequence[int], messages: Sequence[Message], due: float | None
) -> int:
    """Put messages into queues, at once or when they are due; how many any of them took."""
    if len(messages) == 1 and due is None:  # the many cost one alone twice as much
        return _insert_one(db, queues, messages[0])
    last = _last_number(db)
    taken = 0
    for queue in queues:
        written = ((queue, *row) for row in rows.write_all(messages))
        taken += db.executemany(_INSERT, written).rowcount
    if due is None:
        db.execute(
            "INSERT INTO ready SELECT queue, rank, number, 0 FROM jobs WHERE number > ?", (last,)
        )
    else:
        db.execute(
            "INSERT INTO delayed SELECT number, queue, ?, 0 FROM jobs WHERE number > ?", (due, last)
        )
    if len(queues) > 1:
        (taken,) = db.execute(
            "SELECT count(DISTINCT id) FROM jobs WHERE number > ?", (last,)
        ).fetchone()
    return taken


def _insert_one(db: sqlite3.Connection, queues: Sequence[int], message: Message) -> int:
    row = rows.write(message)
    taken = 0
    for queue in queues:
        inserted = db.execute(_INSERT, (queue, *row))
        if inserted.rowcount:
            place = (queue, int(message.rank), inserted.lastrowid)
            db.execute("INSERT INTO ready VALUES (?, ?, ?, 0)", place)
            taken = 1
    return taken


def make_ready(db: sqlite3.Connection, number: int, deliveries: int) -> None:
    """Put a job back into its old place."""
    db.execute(
        "INSERT INTO ready SELECT queue, rank, number, ? FROM jobs WHERE number = ?",
        (deliveries, number),
    )


def _last_number(db: sqlite3.Connection) -> int:
    return db.execute("SELECT max(number) FROM jobs").fetchone()[0] or 0


# What time does


def clock_of(db: sqlite3.Connection, queue: str) -> tuple[int, float | None, float | None, bool]:
    """A queue's number, when its next delayed job is due, and when its next lease runs out.

    And whether there is something to take before that.

    Raises:
        TopologyError: there is no such queue.
    """
    row: tuple[int, float | None, float | None, bool] | None
    row = db.execute(_CLOCK, (queue,)).fetchone()
    if row is None:
        raise _no_queue(queue)
    return row


def with_jobs(db: sqlite3.Connection, queues: Sequence[str]) -> tuple[int, ...]:
    """The numbers of those queues in which there is something to take at once."""
    clocks = (db.execute(_CLOCK, (queue,)).fetchone() for queue in queues)
    return tuple(clock[0] for clock in clocks if clock is not None and clock[3])


def promote(db: sqlite3.Connection, queue: int, now: float) -> float | None:
    """Make ready what is due, behind all that is there; return when the next is."""
    due = db.execute(
        "SELECT number, deliveries FROM delayed WHERE queue = ? AND due <= ? "
        "ORDER BY due, number LIMIT ?",
        (queue, now, PAGE),
    ).fetchall()
    last = _last_number(db)
    for place, (number, deliveries) in enumerate(due, last + 1):
        db.execute("UPDATE jobs SET number = ? WHERE number = ?", (place, number))
        db.execute("DELETE FROM delayed WHERE number = ?", (number,))
        make_ready(db, place, deliveries)
    row = db.execute("SELECT min(due) FROM delayed WHERE queue = ?", (queue,)).fetchone()
    following: float | None = row[0]
    return following


def reclaim(
    db: sqlite3.Connection, queue: int, now: float, awake: float
) -> tuple[float | None, float]:
    """Take back what the dead held, as far as it can be believed.

    Args:
        awake: seconds for which we have been, see ``watch``.

    Returns:
        when the next lease runs out, and in how many seconds one that has run out can be
        believed; 0 if there is none.
    """
    expired = db.execute(
        "SELECT number, (expires - since) / 2 - ? FROM leased "
        "WHERE queue = ? AND expires <= ? ORDER BY expires LIMIT ?",
        (awake, queue, now, PAGE),
    ).fetchall()
    for number, doubt in expired:
        if doubt <= 0:
            give_back(db, "number = ?", (number,), counts=True)
    row = db.execute(
        "SELECT min(expires) FROM leased WHERE queue = ? AND expires > ?", (queue, now)
    ).fetchone()
    return row[0], min((doubt for _, doubt in expired if doubt > 0), default=0.0)


# Leases


def give_back(
    db: sqlite3.Connection, which: str, values: tuple[Any, ...], *, counts: bool
) -> list[int]:
    """End leases and put what they held back into its place; return the queues.

    Args:
        which: the leases, as a condition on ``leased`` that takes ``values``.
        counts: whether that was an attempt.
    """
    held = db.execute(
        f"SELECT number, queue, deliveries FROM leased WHERE {which}", values
    ).fetchall()
    for number, _, deliveries in held:
        db.execute("DELETE FROM leased WHERE number = ?", (number,))
        make_ready(db, number, deliveries + counts)
    return sorted({queue for _, queue, _ in held})


def end_lease(db: sqlite3.Connection, receipt: tuple[int, str, int]) -> tuple[int, int] | None:
    """End a lease, whose job its caller then puts somewhere; its queue and deliveries.

    None if it is not this holder's any more.
    """
    row: tuple[int, int] | None = db.execute(
        "SELECT queue, deliveries FROM leased WHERE number = ? AND holder = ? AND token = ?",
        receipt,
    ).fetchone()
    if row is not None:
        db.execute("DELETE FROM leased WHERE number = ?", (receipt[0],))
    return row


# Operations


def purge(db: sqlite3.Connection, queue: int) -> int:
    """Remove a page of what is ready or delayed; return how many."""
    found = db.execute(
        "SELECT number, rank FROM ready WHERE queue = ? LIMIT ?", (queue, PAGE)
    ).fetchall()
    db.executemany(
        "DELETE FROM ready WHERE queue = ? AND number = ? AND rank = ?",
        ((queue, *row) for row in found),
    )
    if not found:
        found = db.execute(
            "SELECT number FROM delayed WHERE queue = ? LIMIT ?", (queue, PAGE)
        ).fetchall()
        db.executemany("DELETE FROM delayed WHERE number = ?", (row[:1] for row in found))
    db.executemany("DELETE FROM jobs WHERE number = ?", (row[:1] for row in found))
    return len(found)


def delete(db: sqlite3.Connection, queue: int, message_id: str) -> bool:
    """Remove a job unless it has begun; False if there is none."""
    row = db.execute(
        "SELECT number, rank FROM jobs WHERE queue = ? AND id = ?", (queue, message_id)
    ).fetchone()
    if row is None:
        return False
    number, rank = row
    waiting = (
        db.execute(
            "DELETE FROM ready WHERE queue = ? AND rank = ? AND number = ?", (queue, rank, number)
        ).rowcount
        or db.execute("DELETE FROM delayed WHERE number = ?", (number,)).rowcount
    )
    if waiting:
        db.execute("DELETE FROM jobs WHERE number = ?", (number,))
    return bool(waiting)


def redrive(db: sqlite3.Connection, queue: int, after: int, limit: int) -> tuple[int, int | None]:
    """Put a page of dead letters back; return how many, and the last that was looked at.

    One whose id is queued again stays: two jobs of one id would be taken for one.
    """
    letters = db.execute(
        "SELECT letter FROM dead WHERE queue = ? AND letter > ? ORDER BY letter LIMIT ?",
        (queue, after, limit),
    ).fetchall()
    return put_back(db, letters), letters[-1][0] if letters else None


def put_back(db: sqlite3.Connection, letters: Sequence[tuple[int]]) -> int:
    """Put these dead letters back into their queue, if it has none of their ids; how many."""
    moved = 0
    for letter in letters:
        inserted = db.execute(
            f"INSERT INTO jobs (queue, {rows.COLUMNS}) SELECT queue, {rows.COLUMNS} FROM dead "
            "WHERE letter = ? ON CONFLICT (queue, id) DO NOTHING",
            letter,
        )
        if inserted.rowcount:
            make_ready(db, inserted.lastrowid or 0, 0)
            db.execute("DELETE FROM dead WHERE letter = ?", letter)
            moved += 1
    return moved


def letters_of(db: sqlite3.Connection, queue: int, message_id: str) -> list[tuple[int]]:
    """The dead letters of an id, oldest first."""
    return db.execute(
        "SELECT letter FROM dead WHERE queue = ? AND id = ? ORDER BY letter", (queue, message_id)
    ).fetchall()

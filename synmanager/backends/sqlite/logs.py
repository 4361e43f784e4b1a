"""The journal: a table for each log, made when it is first written to.

An entry's number is when it was recorded, in microseconds since the epoch, or one more than the
last, whichever is greater: so it tells the time as well, and goes on upwards in a new file.
``total`` counts the bytes up to and with the entry, so that the first and the last row tell what
lies between them. Older versions do not know of these tables, and need not: the schema is theirs.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from synmanager.backends.base import Entry
from synmanager.errors import ConfigurationError

__all__ = ["append", "behind"]

_MICROSECONDS = 1_000_000

#: The most that goes for what comes: a transaction is short.
_PAGE = 1000


def append(
    db: sqlite3.Connection,
    log: str,
    entries: Sequence[bytes],
    *,
    now: float,
    age: float,
    most: int,
) -> None:
    """Append to a log, and remove what it need not keep any more.

    Args:
        now, age: seconds since the epoch, and for which an entry is kept.
        most: bytes that are kept, and the last entry whatever its size.
    """
    table = _table(log)
    db.execute(
        f"CREATE TABLE IF NOT EXISTS {table} "
        "(number INTEGER PRIMARY KEY, total INTEGER NOT NULL, data BLOB NOT NULL)"
    )
    row = db.execute(f"SELECT number, total FROM {table} ORDER BY number DESC LIMIT 1").fetchone()
    last, total = row or (0, 0)
    first = max(last + 1, int(now * _MICROSECONDS))
    new = []
    for number, data in enumerate(entries, first):
        total += len(data)
        new.append((number, total, data))
    db.executemany(f"INSERT INTO {table} VALUES (?, ?, ?)", new)
    cut = None
    oldest = int((now - age) * _MICROSECONDS)
    found = db.execute(
        f"SELECT number, total - length(data) FROM {table} WHERE number < ? "
        "ORDER BY number LIMIT ?",
        (new[-1][0], len(new) + _PAGE),
    )
    for number, before in found:
        if number >= oldest and total - before <= most:
            break
        cut = number
    found.close()
    if cut is not None:
        db.execute(f"DELETE FROM {table} WHERE number <= ?", (cut,))


def behind(db: sqlite3.Connection, log: str, after: str | float, limit: int) -> list[Entry]:
    """The entries behind a position, or since a time; none if there is no such log."""
    table = _table(log)
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (table,)).fetchone():
        return []
    begin = int(after) + 1 if isinstance(after, str) else round(after * _MICROSECONDS)
    found = db.execute(
        f"SELECT number, data FROM {table} WHERE number >= ? ORDER BY number LIMIT ?",
        (begin, limit),
    )
    return [Entry(str(number), number / _MICROSECONDS, data) for number, data in found]


def _table(log: str) -> str:
    if not (log.isascii() and log.isalpha() and log.islower()):
        raise ConfigurationError(f"a log's name is of lower-case letters, not {log!r:.50}")
    return f"journal_{log}"

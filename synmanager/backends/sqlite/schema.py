"""What lies in the file.

A message's row in ``jobs`` is written once; its number is its place among those of its rank, and
also stands in exactly one of ``ready``, ``delayed`` and ``leased``, which are small and say all
that changes. Those three count in ``deliveries`` what came to nothing. A dead letter has left
them all and lies in ``dead``.

Times are seconds: ``due``, ``died_at`` and ``submitted_at`` by the wall clock, which outlives a
reboot; ``since`` and ``expires`` by the monotonic clock, which is one for all processes of a
machine and never jumps.

Another program submits with ``INSERT INTO inbox (queue, body) VALUES ('train', '{…}')``.
"""

from __future__ import annotations

import sqlite3

__all__ = ["APPLICATION_ID", "VERSION", "create"]

#: "synm": the file's own mark, which ``file(1)`` shows as well.
APPLICATION_ID = int.from_bytes(b"synm", "big")

#: Raised by whatever an older version would misread.
VERSION = 1

_MESSAGE = """
    queue        INTEGER NOT NULL,
    id           TEXT NOT NULL,
    rank         INTEGER NOT NULL,
    submitted_at REAL,
    schema       INTEGER NOT NULL,
    headers      TEXT NOT NULL,   -- a JSON object, or empty
    checksum     INTEGER,         -- CRC-32 of the body; NULL if its writer had none
    body         BLOB NOT NULL"""

_TABLES = f"""
CREATE TABLE exchanges (name TEXT PRIMARY KEY, type TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE queues (queue INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE bindings (
    exchange TEXT, key TEXT, queue INTEGER, PRIMARY KEY (exchange, key, queue)
) WITHOUT ROWID;
CREATE TABLE jobs (
    number       INTEGER PRIMARY KEY,{_MESSAGE},
    UNIQUE (queue, id)
);
CREATE TABLE ready (
    queue INTEGER, rank INTEGER, number INTEGER, deliveries INTEGER NOT NULL,
    PRIMARY KEY (queue, rank DESC, number)
) WITHOUT ROWID;
CREATE TABLE delayed (
    number INTEGER PRIMARY KEY, queue INTEGER NOT NULL, due REAL NOT NULL,
    deliveries INTEGER NOT NULL
);
CREATE INDEX delayed_by_due ON delayed (queue, due);
CREATE TABLE leased (
    number INTEGER PRIMARY KEY, queue INTEGER NOT NULL,
    holder TEXT NOT NULL, token INTEGER NOT NULL, since REAL NOT NULL, expires REAL NOT NULL,
    deliveries INTEGER NOT NULL
);
CREATE INDEX leased_by_expiry ON leased (queue, expires);
CREATE TABLE dead (
    letter       INTEGER PRIMARY KEY,{_MESSAGE},
    reason TEXT NOT NULL, traceback TEXT NOT NULL, attempts INTEGER NOT NULL, died_at REAL NOT NULL
);
CREATE INDEX dead_by_queue ON dead (queue);
CREATE VIEW inbox (queue, body) AS SELECT name, body FROM jobs JOIN queues USING (queue);
CREATE TRIGGER inbox_insert INSTEAD OF INSERT ON inbox BEGIN
    SELECT RAISE(ABORT, 'there is no such queue')
     WHERE NOT EXISTS (SELECT 1 FROM queues WHERE name = NEW.queue);
    INSERT INTO jobs (queue, id, rank, schema, headers, body)
    SELECT queue, 'foreign-' || lower(hex(randomblob(16))), 1, 0, '', CAST(NEW.body AS BLOB)
      FROM queues WHERE name = NEW.queue;
    INSERT INTO ready SELECT queue, rank, number, 0 FROM jobs WHERE number = last_insert_rowid();
END;
"""


def create(db: sqlite3.Connection) -> None:
    """Make the tables, in a transaction that the caller has begun."""
    statement = ""
    for line in _TABLES.splitlines(keepends=True):  # executescript() would commit first
        statement += line
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    db.execute(f"PRAGMA user_version = {VERSION}")

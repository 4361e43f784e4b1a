"""sqlite3, and the SQLite storages of other queues, without anything around them."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from time import perf_counter, time
from types import TracebackType
from typing import Any, TypeVar
from zlib import crc32

__all__ = ["HueyStorage", "KombuQueue", "QueueTable", "SQLiteTable"]

T = TypeVar("T", bound="_Database")


class _Database:
    """A file with a write-ahead log that is synced at every commit, and a table ``jobs``.

    A context manager. The methods that measure return jobs per second.
    """

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")

    def __enter__(self: T) -> T:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._db.execute("DELETE FROM jobs")
        self._db.close()


class SQLiteTable(_Database):
    """A table of bodies."""

    def __init__(self, directory: Path, body: bytes) -> None:
        super().__init__(directory / "raw.db")
        self._body = body
        self._db.execute("CREATE TABLE IF NOT EXISTS jobs (number INTEGER PRIMARY KEY, body BLOB)")

    def publish_each(self, count: int) -> float:
        """A transaction for each."""
        began = perf_counter()
        for _ in range(count):
            self._db.execute("INSERT INTO jobs (body) VALUES (?)", (self._body,))
        rate = count / (perf_counter() - began)
        self._db.execute("DELETE FROM jobs")
        return rate

    def publish_many(self, count: int) -> float:
        """``executemany``, in one transaction."""
        rate = self.fill(count)
        self._db.execute("DELETE FROM jobs")
        return rate

    def fill(self, count: int) -> float:
        began = perf_counter()
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(
            "INSERT INTO jobs (body) VALUES (?)", ((self._body,) for _ in range(count))
        )
        self._db.execute("COMMIT")
        return count / (perf_counter() - began)

    def consume(self, count: int) -> float:
        """The first one, and away with it, in a transaction."""
        self.fill(count)
        began = perf_counter()
        for _ in range(count):
            self._db.execute("BEGIN IMMEDIATE")
            row = self._db.execute("SELECT number, body FROM jobs ORDER BY number LIMIT 1")
            self._db.execute("DELETE FROM jobs WHERE number = ?", row.fetchone()[:1])
            self._db.execute("COMMIT")
        return count / (perf_counter() - began)


class QueueTable(_Database):
    """The same for the least that a queue's table holds, of jobs that are yet to be encoded.

    That is id, rank, time and checksum beside the body, and the indices without which neither a
    second job of one id nor the next job in rank order would be found.
    """

    def __init__(self, directory: Path, job: Mapping[str, Any]) -> None:
        super().__init__(directory / "queue.db")
        self._job = job
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS jobs (number INTEGER PRIMARY KEY, queue INTEGER NOT NULL, "
            "id TEXT NOT NULL, rank INTEGER NOT NULL, submitted_at REAL, checksum INTEGER, "
            "body BLOB NOT NULL, UNIQUE (queue, id))"
        )
        self._db.execute("CREATE INDEX IF NOT EXISTS place ON jobs (queue, rank DESC, number)")

    def _row(self) -> tuple[Any, ...]:
        body = json.dumps(self._job, sort_keys=True).encode()
        return 1, os.urandom(16).hex(), 1, time(), crc32(body), body

    def publish_each(self, count: int) -> float:
        """A transaction for each."""
        began = perf_counter()
        for _ in range(count):
            self._db.execute("BEGIN IMMEDIATE")
            self._db.execute(_INSERT, self._row())
            self._db.execute("COMMIT")
        rate = count / (perf_counter() - began)
        self._db.execute("DELETE FROM jobs")
        return rate

    def publish_many(self, count: int) -> float:
        """``executemany``, in one transaction."""
        began = perf_counter()
        rows = [self._row() for _ in range(count)]  # first all, as a wrong one spoils the batch
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(_INSERT, rows)
        self._db.execute("COMMIT")
        rate = count / (perf_counter() - began)
        self._db.execute("DELETE FROM jobs")
        return rate


_INSERT = (
    "INSERT INTO jobs (queue, id, rank, submitted_at, checksum, body) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT (queue, id) DO NOTHING"
)


class HueyStorage:
    """huey's own storage in SQLite, with its fsync on. What is taken from it is gone at once."""

    def __init__(self, directory: Path, body: bytes) -> None:
        from huey.storage import SqliteStorage

        self._body = body
        self._storage: Any = SqliteStorage("benchmark", str(directory / "huey.db"), fsync=True)

    def publish_each(self, count: int) -> float:
        began = perf_counter()
        for _ in range(count):
            self._storage.enqueue(self._body)
        rate = count / (perf_counter() - began)
        self._storage.flush_queue()
        return rate

    def consume(self, count: int) -> float:
        for _ in range(count):
            self._storage.enqueue(self._body)
        began = perf_counter()
        for _ in range(count):
            assert self._storage.dequeue() is not None
        return count / (perf_counter() - began)


class KombuQueue:
    """kombu's SQLAlchemy transport on SQLite, as it comes: rollback journal, synced."""

    def __init__(self, directory: Path, body: bytes) -> None:
        from kombu import Connection

        self._body = body
        self._connection: Any = Connection(f"sqla+sqlite:///{directory / 'kombu.db'}")
        self._queue: Any = self._connection.SimpleQueue("benchmark", serializer="raw")

    def publish_each(self, count: int) -> float:
        began = perf_counter()
        for _ in range(count):
            self._queue.put(self._body, serializer="raw", content_type="application/data")
        rate = count / (perf_counter() - began)
        self._queue.clear()
        return rate

    def consume(self, count: int) -> float:
        for _ in range(count):
            self._queue.put(self._body, serializer="raw", content_type="application/data")
        began = perf_counter()
        for _ in range(count):
            self._queue.get(timeout=30).ack()
        return count / (perf_counter() - began)

"""An SQLite file for the contract, whose time can be moved."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cutting import Cutter
from sqlite_file import Jobs

from synmanager.backends import QueueBackend
from synmanager.backends.sqlite import SQLiteBackend
from synmanager.testing import BrokerUnderTest

__all__ = ["SQLiteUnderTest"]


class _CuttingDatabase:
    """A connection to SQLite of which one statement fails, as when the disk does."""

    def __init__(self, db: sqlite3.Connection, cutter: Cutter) -> None:
        self._db = db
        self._cutter = cutter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, *arguments: Any) -> Any:
        return self._trip(self._db.execute, arguments)

    def executemany(self, *arguments: Any) -> Any:
        return self._trip(self._db.executemany, arguments)

    def _trip(self, execute: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        error = sqlite3.OperationalError("disk I/O error")
        return self._cutter.trip(lambda: execute(*arguments), error)


class SQLiteUnderTest(BrokerUnderTest):
    excuses = dict.fromkeys(("requests", "freeze_server", "refused", "dead"), "there is no server")
    lease = 2.0  # a client that has just come watches for half of it, in real time
    delay = 10.0
    quiet = 0.03

    #: Made in its place by the self-test of the contract.
    backend = SQLiteBackend

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.jobs = Jobs(directory / "jobs.db", self.backend)
        self._frozen: sqlite3.Connection | None = None

    def new_client(self, **address: Any) -> SQLiteBackend:
        return self.jobs.client(**address)

    def pass_time(self, seconds: float) -> None:
        steps = 20
        for _ in range(steps):
            self.jobs.clocks.skipped += seconds / steps
            for client in self._clients:
                assert isinstance(client, SQLiteBackend)
                client._watch.look(self.jobs.clocks.now())  # nobody was asleep
        for client in self._clients:
            assert isinstance(client, SQLiteBackend)
            if client._bells is not None:
                client._bells.ring_ours()

    def cut(self, client: QueueBackend) -> None:
        assert isinstance(client, SQLiteBackend)
        if client._connections is not None:
            client._connections.drop()
        client._connections = None

    def confuse(self, client: QueueBackend) -> None:
        assert isinstance(client, SQLiteBackend)
        assert client._connections is not None
        for connection in client._connections._idle:
            assert connection._db is not None
            connection._db.set_authorizer(lambda *_: sqlite3.SQLITE_DENY)

    def freeze(self) -> None:
        """Another process is frozen in the middle of a transaction."""
        self._frozen = sqlite3.connect(
            self.jobs.path, isolation_level=None, check_same_thread=False
        )
        self._frozen.execute("BEGIN IMMEDIATE")

    def thaw(self) -> None:
        if self._frozen is not None:
            self._frozen.close()
            self._frozen = None

    def restart(self, *, crash: bool) -> None:
        """All processes that have the file open end."""
        for client in self._clients:
            if crash:
                self.cut(client)
            else:
                client.close()

    def bad_options(self) -> list[dict[str, str]]:
        return [*super().bad_options(), {"mkdir": "perhaps"}]

    def cut_round_trip(
        self, client: QueueBackend, number: int, *, acted: bool
    ) -> Callable[[], bool]:
        assert isinstance(client, SQLiteBackend)
        assert client._connections is not None
        cutter = Cutter()
        for connection in client._connections._idle:
            connection._db = _CuttingDatabase(connection.db, cutter)  # type: ignore[assignment]
        return cutter.cut(number, acted=acted)

    def publish_raw(self, queue: str, body: bytes) -> None:
        self.jobs.execute("INSERT INTO inbox (queue, body) VALUES (?, ?)", queue, body)

    def publish_damaged(self, queue: str) -> list[bytes]:
        damages = {
            b"1": "UPDATE jobs SET id = x'ff00' WHERE body = x'31'",
            b"2": "UPDATE jobs SET schema = 'one' WHERE body = x'32'",
            b"3": "UPDATE jobs SET submitted_at = 'yesterday' WHERE body = x'33'",
            b"4": "UPDATE jobs SET submitted_at = 1e999 WHERE body = x'34'",
            b"5": "UPDATE jobs SET headers = '{' WHERE body = x'35'",
            b"6": "UPDATE jobs SET headers = '[1]' WHERE body = x'36'",
            b"7": "UPDATE jobs SET checksum = 7 WHERE body = x'37'",
            b"8": "UPDATE ready SET deliveries = 'many' "
            "WHERE number = (SELECT number FROM jobs WHERE body = x'38')",
            b"9": "UPDATE ready SET deliveries = -1 "
            "WHERE number = (SELECT number FROM jobs WHERE body = x'39')",
        }
        for body, damage in damages.items():
            self.publish_raw(queue, body)
            self.jobs.execute(damage)
        return list(damages)

"""The broker that is a file: nothing to start, to freeze or to log in to."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from harness.brokers import Broker
from harness.launchers import Launcher


class Nobody(Launcher):
    """The life of a server that there is not."""

    def start(self) -> None: ...

    def kill(self) -> None: ...

    def stop(self) -> None: ...

    def freeze(self) -> None:
        raise AssertionError("there is no server to freeze")

    def thaw(self) -> None: ...

    def run(self, *command: str, text: str = "") -> str:
        raise AssertionError("there is no server to run anything beside")

    def destroy(self) -> None: ...

    @property
    def is_running(self) -> bool:
        return True


class SQLiteFile(Broker):
    """A file in a directory of its own, on the disk, where a commit has to wait for it."""

    scheme = "sqlite"

    def __init__(self, directory: Path) -> None:
        super().__init__("sqlite", 0, Nobody(), directory)
        self.file = directory / "queues" / "jobs.db"
        self.file.parent.mkdir()

    def url(self, port: int | None = None, **_: object) -> str:
        return f"sqlite:///{self.file}"

    @property
    def path(self) -> str:
        return str(self.file)

    def is_ready(self) -> bool:
        return True

    def reset(self) -> None:
        shutil.rmtree(self.file.parent, ignore_errors=True)
        self.file.parent.mkdir()

    def execute(self, statement: str, rows: Sequence[tuple[object, ...]] = ((),)) -> None:
        """As another program does, with the library alone."""
        db = sqlite3.connect(self.file, timeout=30)
        try:
            with db:
                db.executemany(statement, rows)
        finally:
            db.close()

    def publish_raw(self, queue: str, body: bytes) -> None:
        self.publish_many_raw(queue, [body])

    def publish_many_raw(self, queue: str, bodies: list[bytes]) -> None:
        rows = [(queue, body) for body in bodies]
        self.execute("INSERT INTO inbox (queue, body) VALUES (?, ?)", rows)

    def delete_queue(self, queue: str) -> None:
        """The whole file: nobody deletes one queue of it."""
        # The file itself comes last: a worker makes it anew at once, and its log would go as well.
        for name in sorted(os.listdir(self.file.parent), reverse=True):
            path = self.file.parent / name
            if path.is_file():
                path.unlink(missing_ok=True)

    def add_stranger(self, user: str, password: str) -> None:
        raise AssertionError("a file has no users")

    def listen_with_tls(self, port: int, chain: Path, key: Path) -> None:
        raise AssertionError("a file listens to nobody")

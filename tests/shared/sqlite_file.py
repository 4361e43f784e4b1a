"""An SQLite file for a test, its clients, and one queue in it."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import synmanager
from synmanager.backends import Address, Delivery, ExchangeSpec, QueueSpec
from synmanager.backends.sqlite import SQLiteBackend
from synmanager.backends.sqlite.clocks import Clocks
from synmanager.message import Message

__all__ = ["FAST", "SPEC", "Jobs", "publish", "take"]

#: A file system in memory, if there is one: most tests would wait for the disk all the time.
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None

SPEC = QueueSpec("train", ExchangeSpec("jobs", "topic"), "train-key")


class SkippingClocks(Clocks):
    """Real time, plus what a test skips."""

    skipped = 0.0

    def now(self) -> float:
        return super().now() + self.skipped

    def wall(self) -> float:
        return super().wall() + self.skipped


class Jobs:
    """A file and its clients."""

    def __init__(self, path: Path, backend: type[SQLiteBackend] = SQLiteBackend) -> None:
        self.path = path
        self._backend = backend
        self.clocks = SkippingClocks()
        self._clients: list[SQLiteBackend] = []

    def client(self, **address: Any) -> SQLiteBackend:
        """A client, not yet open."""
        fields = {"path": str(self.path), **address}
        made = self._backend(Address("sqlite", **fields), self.clocks)
        self._clients.append(made)
        return made

    def open(self, **address: Any) -> SQLiteBackend:
        """A client that is open and has declared the queue."""
        made = self.client(**address)
        made.open()
        made.declare(SPEC)
        return made

    @contextmanager
    def killed_in(self, call: str) -> Iterator[subprocess.Popen[bytes]]:
        """Another process, in which a client does this; it is killed in the end."""
        code = (
            "import sys; from synmanager.backends import Address, create_backend\n"
            "client = create_backend(Address('sqlite', path=sys.argv[1])); client.open()\n"
            f"client.{call}"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(self.path)],
            env={**os.environ, "PYTHONPATH": str(Path(synmanager.__file__).parents[1])},
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def execute(self, statement: str, *values: Any) -> list[Any]:
        """As another program does, with the library alone."""
        db = sqlite3.connect(self.path, isolation_level=None)
        try:
            return db.execute(statement, values).fetchall()
        finally:
            db.close()

    def close(self) -> None:
        while self._clients:
            self._clients.pop().close()


def publish(client: SQLiteBackend, *bodies: bytes, delay: float = 0.0) -> list[Message]:
    """Submit to the queue."""
    messages = [Message(body) for body in bodies or (b"{}",)]
    client.publish(SPEC.exchange.name, SPEC.routing_key, messages, delay=delay)
    return messages


def take(client: SQLiteBackend, wait: float = 5.0) -> Delivery:
    delivery = client.receive([SPEC.name], wait)
    assert delivery is not None
    return delivery

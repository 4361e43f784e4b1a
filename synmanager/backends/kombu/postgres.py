"""A connection to PostgreSQL on which no answer is awaited without end. Needs psycopg."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from typing import Any

import psycopg

__all__ = ["Wire"]


class _Bounded(psycopg.Connection[Any]):  # type: ignore[misc, unused-ignore]
    """psycopg's own, whose waiting is woken ten times a second, but has no end."""

    patience = 0.0

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        deadline = time.monotonic() + self.patience
        return super().wait(_until(gen, deadline), *args, **kwargs)


def _until(steps: Generator[Any, Any, Any], deadline: float) -> Generator[Any, Any, Any]:
    """The steps of a question, which end with an error when the deadline has passed."""
    wanted = next(steps, None)
    while True:
        ready = yield wanted
        if not ready and time.monotonic() >= deadline:
            raise psycopg.OperationalError("the server has not answered in time")
        try:
            wanted = steps.send(ready)
        except StopIteration as done:
            return done.value


class Wire:
    """A connection that is open.

    Args:
        conninfo: libpq's.
        patience: seconds, for each answer.

    Raises:
        psycopg.Error: there is none.
    """

    def __init__(self, conninfo: str, patience: float) -> None:
        self._asking = threading.Lock()
        self._ended = False
        self._connection = _Bounded.connect(conninfo, autocommit=True, prepare_threshold=None)
        self._connection.patience = patience

    def ask(self, question: str, *values: Any) -> list[tuple[Any, ...]]:
        """The answer to one question, which is a transaction of its own.

        Raises:
            psycopg.Error: the server's, or there was none in time. Only the first leaves a
                connection that can be used.
        """
        try:
            with self._asking, self._connection.cursor() as cursor:
                cursor.execute(question, values or None)
                return cursor.fetchall() if cursor.description else []
        finally:
            if self._ended:  # by another thread, in the meantime
                self.close()

    def close(self) -> None:
        """Disconnect. From any thread; whoever waits for an answer is woken, and does the rest."""
        self._ended = True
        connection = self._connection
        if not self._asking.acquire(blocking=False):
            with suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as shared:
                shared.shutdown(socket.SHUT_RDWR)
            return
        try:
            with suppress(psycopg.Error):
                connection.close()
        finally:
            self._asking.release()

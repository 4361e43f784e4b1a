"""A thread that does one thing whenever it is asked to, so that nobody else waits for it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeAlias

from synmanager.engine import forks

__all__ = ["Aide"]

_Bell: TypeAlias = "SimpleQueue[threading.Lock | None]"

#: Seconds after which a thread that nobody asks for anything ends. The next request begins one.
_IDLE = 1.0


class Aide:
    """Runs a function in a thread of its own, which there is only while there is work.

    Locks are taken without waiting, or by who waits for an answer: an interruption at any
    instruction leaves nothing locked that anybody else would need.

    Args:
        do: returns in how many seconds it wants to be called again; None for when it is asked.
        name: the thread's.
        linger: for how many seconds it takes its time, so that several requests are done in one
            go, unless somebody waits for the answer.
    """

    def __init__(
        self,
        do: Callable[[], float | None],
        name: str,
        linger: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._do = do
        self._name = name
        self._linger = linger
        self._start_over()

    def _start_over(self) -> None:
        self._generation = forks.generation()
        self._bell: _Bell = SimpleQueue()
        self._exists = threading.Lock()  # held for as long as there is a thread
        self._closed = threading.Event()
        self.is_busy = False  # it was asked, and has not finished

    def ask(self) -> None:
        """Have it done soon."""
        self._ring(None)

    def wait(self, seconds: float) -> bool:
        """Have it done now; False if it was not done in time."""
        done = threading.Lock()
        done.acquire()
        self._ring(done)
        return done.acquire(timeout=seconds)

    def close(self) -> None:
        """End the thread, after what it is doing; and do nothing more, until it is opened."""
        self._closed.set()
        self._bell.put(None)

    def open(self) -> None:
        """Obey again."""
        if self._closed.is_set():
            self._start_over()

    def _ring(self, done: threading.Lock | None) -> None:
        if self._generation != forks.generation():  # what there was is the parent's
            self._start_over()
        if self._closed.is_set():
            if done is not None:
                done.release()
            return
        self.is_busy = True
        self._bell.put(done)
        if sys.is_finalizing():  # a thread would not run any more, and its start() wait for that
            return
        if not self._exists.locked() and self._exists.acquire(blocking=False):
            try:
                threading.Thread(
                    target=self._run,
                    # Its own, whatever a fork gets, or who opens again.
                    args=(self._bell, self._exists, self._closed),
                    name=self._name,
                    daemon=True,
                ).start()
            except BaseException as error:
                self._exists.release()
                if not isinstance(error, RuntimeError):  # no more threads: the interpreter ends
                    raise

    def _run(self, bell: _Bell, exists: threading.Lock, closed: threading.Event) -> None:
        again: float | None = None
        while True:
            waiting = self._next(bell, closed, _IDLE if again is None else again)
            if closed.is_set() or (waiting is None and again is None):
                self._let_go(waiting or [])
                exists.release()
                if closed.is_set() or bell.empty() or not exists.acquire(blocking=False):
                    return
                continue
            again = None
            try:
                again = self._do()
            finally:
                self.is_busy = not bell.empty()
                self._let_go(waiting or [])

    def _next(
        self, bell: _Bell, closed: threading.Event, seconds: float
    ) -> list[threading.Lock] | None:
        """Wait for requests; return who waits for them to be done, None if there were none."""
        waiting: list[threading.Lock] = []
        try:
            first = bell.get(timeout=seconds)
        except Empty:
            return None
        if first is not None:
            waiting.append(first)
        until = time.monotonic() + self._linger()
        while not closed.is_set():
            try:
                left = 0.0 if waiting else max(until - time.monotonic(), 0.0)
                more = bell.get(timeout=left) if left else bell.get_nowait()
            except Empty:
                break
            if more is not None:
                waiting.append(more)
        return waiting

    @staticmethod
    def _let_go(waiting: list[threading.Lock]) -> None:
        for done in waiting:
            with suppress(RuntimeError):
                done.release()

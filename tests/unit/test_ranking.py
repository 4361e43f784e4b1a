"""Rank and roles in memory; and whether those who judge a ranking see what they should."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from grid import Grid
from noting import Event, make_worker
from ranking import Start, Submission, contested, mistakes, starts
from roles import Roles
from threads import in_thread

from synmanager.message import Rank


class Killed(KeyboardInterrupt):
    """What ends a thread that is to be killed: nothing else that a handler raises does."""


class Threads:
    """Workers of this process."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._events: list[Event] = []
        self._kill = threading.Event()
        self._running: dict[str, tuple[Any, Callable[[], Any]]] = {}

    def start(self, name: str, *, hold_at: int | None = None) -> None:
        worker = make_worker(
            name, self._events.append, url=self._url, hold_at=hold_at, hold=self._hold
        )
        self._running[name] = worker, in_thread(worker.run)

    def kill(self, name: str) -> None:
        self._kill.set()
        _, join = self._running.pop(name)
        with pytest.raises(Killed):
            join()

    def events(self) -> list[Event]:
        return list(self._events)

    def stop(self) -> None:
        for worker, join in self._running.values():
            worker.stop()
            join()

    def _hold(self) -> None:
        self._kill.wait()
        raise Killed


class TestMemory(Roles):
    long = 4.0  # beside which a machine that stands still for a second is quick

    @pytest.fixture
    def crew(self, grid: Grid) -> Threads:
        return Threads(grid.url)


class TestJudging:
    """Of two workers, one asks at 10 and starts at 11; the other asks and starts later."""

    def job(
        self, key: int, rank: Rank = Rank.NORMAL, phase: str = "train", at: float = 1
    ) -> Submission:
        return Submission(key, phase, rank, at, at + 0.5)

    low, high = Start("a", 0, 10, 11), Start("b", 1, 12, 13)

    @pytest.mark.parametrize(
        ("phase", "rank", "at"),
        [
            ("train", Rank.HIGH, 2.0),
            ("preprocess", Rank.LOW, 2.0),
            ("train", Rank.NORMAL, 0.0),  # and so first in
        ],
    )
    def test_a_job_that_was_passed_over(self, phase: str, rank: Rank, at: float) -> None:
        jobs = [self.job(0), self.job(1, rank, phase, at)]
        assert mistakes(jobs, [self.low, self.high])
        assert not mistakes(jobs[:1], [self.low])
        assert contested(jobs, [self.low, self.high]) == 0

    @pytest.mark.parametrize(
        ("phase", "rank", "at"),
        [
            ("train", Rank.LOW, 0.0),
            ("evaluate", Rank.HIGH, 0.0),
            ("train", Rank.NORMAL, 2.0),
        ],
    )
    def test_a_job_that_had_to_wait(self, phase: str, rank: Rank, at: float) -> None:
        jobs = [self.job(0), self.job(1, rank, phase, at)]
        assert not mistakes(jobs, [self.low, self.high])
        assert contested(jobs, [self.low, self.high]) == 1

    def test_neither_is_surely_first(self) -> None:
        jobs = [self.job(0, at=1.0), self.job(1, at=1.2)]
        assert not mistakes(jobs, [self.low, self.high])
        assert contested(jobs, [self.low, self.high]) == 0

    def test_what_may_not_have_been_ready(self) -> None:
        high = self.job(1, Rank.HIGH)
        late = self.job(1, Rank.HIGH, at=10)
        assert not mistakes([self.job(0), late], [self.low, self.high])
        taken_before = Start("b", 1, 10.5, 13)
        assert not mistakes([self.job(0), high], [self.low, taken_before])
        again = Start("b", 1, 14, 15)
        assert not mistakes([self.job(0), high], [self.low, self.high, again])

    def test_a_worker_asks_when_it_is_ready_and_when_it_has_finished(self) -> None:
        events = [
            {"worker": "a", "event": "ready", "at": 1.0},
            {"worker": "b", "event": "ready", "at": 2.0},
            {"worker": "a", "event": "started", "key": 7, "at": 3.0},
            {"worker": "a", "event": "finished", "key": 7, "at": 4.0},
            {"worker": "b", "event": "started", "key": 8, "at": 5.0},
            {"worker": "a", "event": "started", "key": 9, "at": 6.0},
        ]
        assert starts(reversed(events)) == [
            Start("a", 7, 1.0, 3.0),
            Start("b", 8, 2.0, 5.0),
            Start("a", 9, 4.0, 6.0),
        ]

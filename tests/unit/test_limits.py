"""Jobs that take too long: asked to leave, then given up, and in the end ended with the process."""

from __future__ import annotations

import logging
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from grid import Bench, Grid, in_thread, until

import synmanager
from synmanager import current_job
from synmanager.engine import limits
from synmanager.engine.limits import EXIT_CODE, limit_of
from synmanager.engine.results import Results
from synmanager.errors import BrokerUnavailable, LeaseLost, TimeLimit
from synmanager.job import Job
from synmanager.message import DEFAULT_MAX_BYTES, Rank
from synmanager.phases import EVALUATE

SOURCE = Path(synmanager.__file__).parents[1]

#: Seconds. One that is over at once, and one that no test waits for.
SOON, NEVER = 0.02, 3600.0

REASON = f"TimeLimit: it ran longer than its time limit of {SOON:g} s"


def polite(kwargs: dict[str, Any]) -> None:
    """Looks at the time between its steps."""
    job = current_job()
    assert job is not None
    while True:
        job.check()
        time.sleep(0.001)


def deaf(kwargs: dict[str, Any]) -> None:
    """Never looks."""
    while True:
        time.sleep(0.001)


def watchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "synmanager-limit"]


class TestCheck:
    def job(self, **fields: Any) -> Job:
        return Job("run-1", "train", Rank.NORMAL, 1, None, **fields)

    def test_raises_once_the_time_is_up(self) -> None:
        job = self.job(time_limit=SOON)
        job.check()
        until(lambda: time.monotonic() - job._began > SOON)
        with pytest.raises(TimeLimit, match=r"0\.02 s"):
            job.check()

    def test_says_that_the_lease_is_lost(self) -> None:
        with pytest.raises(LeaseLost):
            self.job(lease_lost=True).check()

    def test_asks_for_nothing_otherwise(self) -> None:
        self.job().check()
        self.job(time_limit=NEVER).check()


class TestPolite:
    def test_is_a_failed_attempt_with_that_reason(self, grid: Grid) -> None:
        bench = Bench(grid, time_limit=SOON, grace=NEVER, max_attempts=2, retry_delay=0)
        grid.put({})
        assert bench.run(polite, max_jobs=2) == 2
        assert grid.dead() == [(b"{}", REASON, 2)]

    def test_counts_although_a_stop_was_asked_for(self, grid: Grid) -> None:
        bench = Bench(grid, time_limit=SOON, grace=NEVER, max_attempts=1)

        def work(kwargs: dict[str, Any]) -> None:
            in_thread(bench.runner.stop)()
            polite(kwargs)

        grid.put({})
        assert bench.run(work) == 1
        assert grid.dead() == [(b"{}", REASON, 1)]

    def test_may_finish_although_it_is_late(self, grid: Grid) -> None:
        bench = Bench(grid, time_limit=SOON, grace=NEVER)

        def work(kwargs: dict[str, Any]) -> None:
            with pytest.raises(TimeLimit):
                polite(kwargs)

        grid.put({})
        assert bench.run(work) == 1
        assert grid.count() == {}

    def test_knows_its_limit(self, grid: Grid) -> None:
        seen: list[Any] = []
        for limit in (None, NEVER):
            grid.put({})
            Bench(grid, time_limit=limit).run(lambda kwargs: seen.append(current_job()))
        assert [job.time_limit for job in seen] == [None, NEVER]


class TestDeaf:
    def test_is_settled_as_failed_and_ended_and_the_loop_goes_on(
        self, grid: Grid, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench = Bench(grid, grace=SOON)
        grid.put({"deaf": 1}, headers={"time-limit": str(SOON)})
        grid.put({"deaf": 0})
        seen: list[int] = []
        left: list[BaseException] = []

        def work(kwargs: dict[str, Any]) -> None:
            seen.append(kwargs["deaf"])
            try:
                if kwargs["deaf"]:
                    deaf(kwargs)
            except BaseException as error:
                left.append(error)
                raise

        with caplog.at_level(logging.INFO, "synmanager"):
            assert bench.run(work) == 2
        assert seen == [1, 0]
        assert [type(error) for error in left] == [TimeLimit]
        assert grid.count() == {"delayed": 1}
        grid.clock.advance(3600)
        delivery = grid.client().receive(["train"], 0)
        assert delivery is not None
        assert delivery.attempt == 2
        assert bench.backend.calls.count("nack") == 1
        assert "does not leave" in caplog.text
        assert REASON in caplog.text

    def test_on_its_last_attempt_is_a_dead_letter(self, grid: Grid) -> None:
        bench = Bench(grid, time_limit=SOON, grace=SOON, max_attempts=1)
        grid.put({})
        assert bench.run(deaf) == 1
        assert grid.dead() == [(b"{}", REASON, 1)]

    def test_what_it_still_returns_is_dropped(
        self, grid: Grid, caplog: pytest.LogCaptureFixture
    ) -> None:
        results = Results(EVALUATE.exchange.name, EVALUATE.routing_key, DEFAULT_MAX_BYTES)
        bench = Bench(grid, results=results, time_limit=SOON, grace=SOON)
        told: list[Any] = []

        def stubborn(kwargs: dict[str, Any]) -> dict[str, int]:
            try:
                deaf(kwargs)
            except TimeLimit:
                told.append(current_job())
            return {"loss": 1}

        grid.put({})
        with caplog.at_level(logging.INFO, "synmanager"):
            assert bench.run(stubborn) == 1
        assert grid.count() == {"delayed": 1}
        assert grid.ready("evaluate") == []
        assert told[0].lease_lost
        assert "succeeded" not in caplog.text

    def test_one_that_ends_while_it_is_given_up_is_settled_once(
        self, grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        results = Results(EVALUATE.exchange.name, EVALUATE.routing_key, DEFAULT_MAX_BYTES)
        bench = Bench(grid, results=results, time_limit=SOON, grace=SOON)
        begun, published = threading.Event(), threading.Event()
        nack, publish = bench.backend.nack, bench.backend.publish

        def nack_slowly(*arguments: Any, **options: Any) -> None:
            begun.set()
            published.wait(0.2)
            nack(*arguments, **options)

        def tell_and_publish(*arguments: Any, **options: Any) -> Any:
            published.set()
            return publish(*arguments, **options)

        def work(kwargs: dict[str, Any]) -> dict[str, int]:
            assert begun.wait(10)
            return {"loss": 1}

        monkeypatch.setattr(bench.backend, "nack", nack_slowly)
        monkeypatch.setattr(bench.backend, "publish", tell_and_publish)
        grid.put({})
        assert bench.run(work) == 1
        assert grid.count() == {"delayed": 1}
        assert grid.ready("evaluate") == []

    def test_when_the_broker_is_away_it_is_ended_all_the_same(
        self, grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(limits, "LAST_RESORT", 2.0)  # after which this process would end
        bench = Bench(grid, time_limit=SOON, grace=SOON)
        back = threading.Event()

        def work(kwargs: dict[str, Any]) -> None:
            bench.backend.fail("nack", *(BrokerUnavailable("gone") for _ in range(3)))
            bench.backend.fail("open", *(BrokerUnavailable("gone") for _ in range(10_000)))
            try:
                deaf(kwargs)
            finally:
                back.set()

        grid.put({})
        join = in_thread(bench.run, work, max_jobs=1)
        assert back.wait(10), "the callback is told"
        bench.backend.failures.clear()
        assert join() == 1
        until(lambda: grid.count() == {"delayed": 1})

    def test_takes_nothing_from_the_next_job(self, grid: Grid) -> None:
        # The time is up in the very moment in which the callback returns: whoever is first,
        # the error is raised in the callback or nowhere.
        before = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            bench = Bench(grid, time_limit=0.001, grace=0.001, retry_delay=0, max_attempts=100)
            grid.put(*({"run": run} for run in range(100)))

            def work(kwargs: dict[str, Any]) -> None:
                until = time.monotonic() + 0.002
                while time.monotonic() < until:
                    pass

            assert bench.run(work, idle_timeout=0) >= 100
        finally:
            sys.setswitchinterval(before)
        assert grid.count() == {}

    def test_leaves_no_thread_behind(self, grid: Grid) -> None:
        bench = Bench(grid, time_limit=NEVER, grace=NEVER)
        grid.put(*({} for _ in range(20)))
        seen: list[int] = []
        assert bench.run(lambda kwargs: seen.append(len(watchers()))) == 20
        until(lambda: not watchers(), "the threads end")
        assert max(seen) <= 20

    def test_without_a_limit_there_is_no_thread(self, grid: Grid) -> None:
        until(lambda: not watchers(), "those of earlier tests end")
        bench = Bench(grid)
        grid.put({})
        seen: list[int] = []
        bench.run(lambda kwargs: seen.append(len(watchers())))
        assert seen == [0]


HANGING = """
import ctypes, os, sys, threading, time
from synmanager.backends import Address
from synmanager.backends.memory import MemoryBackend, MemoryBroker
from synmanager.engine import limits, runner, session
from synmanager.message import Message
from synmanager.phases import TRAIN
from synmanager.settings import Settings

limits.LAST_RESORT = 0.2
broker = MemoryBroker()
connection = session.Session(MemoryBackend(Address("memory"), broker))
connection.open(TRAIN.spec)
connection.publish(TRAIN.exchange.name, TRAIN.routing_key, [Message(b"{}")])
settings = Settings(Address("memory"), time_limit=0.02, grace=0.02, max_attempts=1)
loop = runner.Runner(connection, settings)
bury = MemoryBackend.bury
MemoryBackend.bury = lambda *a: (bury(*a), print(a[2], flush=True))

def hang(kwargs):
    {body}

def run():
    with loop.shutdown() as shutdown:
        loop.run({"train": hang}, shutdown, max_jobs=1)

{run}
print("ended")
"""

NATIVE = "ctypes.CDLL(None).sleep(3600)"
SWALLOWING = """
while True:
    try:
        time.sleep(0.001)
    except BaseException:
        pass
"""


class TestHanging:
    @pytest.mark.parametrize("body", [NATIVE, SWALLOWING], ids=["native", "swallowing"])
    @pytest.mark.parametrize(
        "run",
        ["run()", "thread = threading.Thread(target=run); thread.start(); thread.join()"],
        ids=["main thread", "thread"],
    )
    def test_ends_with_its_process_and_the_job_is_settled(self, body: str, run: str) -> None:
        body = textwrap.indent(body, "    ").strip()
        program = HANGING.replace("{body}", body).replace("{run}", run)
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            cwd=SOURCE,
            timeout=60,
        )
        assert done.returncode == EXIT_CODE == 124, done.stderr
        assert done.stdout.splitlines() == [REASON]
        assert "does not let go" in done.stderr

    def test_is_given_five_seconds(self) -> None:
        assert limits.LAST_RESORT == 5


class TestTheJobsOwn:
    @pytest.mark.parametrize("worker", [None, NEVER, 0.001])
    def test_wins_over_the_worker_s(self, worker: float | None, grid: Grid) -> None:
        bench = Bench(grid, time_limit=worker, grace=NEVER, max_attempts=1)
        grid.put({}, headers={"time-limit": str(SOON)})
        assert bench.run(polite) == 1
        assert grid.dead() == [(b"{}", REASON, 1)]

    @pytest.mark.parametrize(
        "header",
        ["", " ", "soon", "-1", "0", "nan", "inf", "-inf", "1e999", "0x10", "1 s", "1\n2", "\x00"],
        ids=repr,
    )
    @pytest.mark.parametrize("worker", [None, NEVER])
    def test_nonsense_is_ignored(self, header: str, worker: float | None, grid: Grid) -> None:
        assert limit_of(header, worker) == worker
        bench = Bench(grid, time_limit=worker)
        grid.put({}, headers={"time-limit": header})
        seen: list[Any] = []
        assert bench.run(lambda kwargs: seen.append(current_job())) == 1
        assert seen[0].time_limit == worker
        assert grid.count() == {}

    @pytest.mark.parametrize("limit", ["1e9", "1e300"])
    def test_one_longer_than_any_timer_is_none_that_ends(
        self, limit: str, grid: Grid, recwarn: pytest.WarningsRecorder
    ) -> None:
        bench = Bench(grid)
        grid.put({}, headers={"time-limit": limit})
        failed: list[Any] = []
        excepthook: Callable[..., Any] = threading.excepthook
        threading.excepthook = failed.append
        try:
            assert bench.run(lambda kwargs: time.sleep(0.05)) == 1
        finally:
            threading.excepthook = excepthook
        assert failed == []
        assert grid.count() == {}

    def test_is_kept_through_a_retry(self, grid: Grid) -> None:
        bench = Bench(grid, grace=NEVER, retry_delay=0, max_attempts=3)
        grid.put({}, headers={"time-limit": str(SOON)})
        assert bench.run(polite, max_jobs=3) == 3
        assert grid.dead() == [(b"{}", REASON, 3)]

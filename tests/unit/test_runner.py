"""The loop: what it takes, when it ends, and what a callback knows."""

from __future__ import annotations

import math
import signal
import threading
import time
from types import FrameType
from typing import Any

import pytest
from grid import Bench, FlakyBackend, Grid, in_thread, until

from synmanager import Rank, current_job
from synmanager.errors import AccessRefused, BrokerUnavailable, ConfigurationError, LeaseLost, NoJob
from synmanager.message import new_id


def numbered(count: int) -> list[dict[str, int]]:
    return [{"run": run} for run in range(count)]


class TestTheEnd:
    def test_after_a_number_of_jobs(self, grid: Grid) -> None:
        grid.put(*numbered(5))
        assert grid.consumer().listen_message(lambda run: None, max_jobs=3) == 3
        assert grid.count() == {"ready": 2}

    def test_after_no_job_at_all(self, grid: Grid) -> None:
        grid.put({})
        assert grid.consumer().listen_message(lambda **_: None, max_jobs=0) == 0
        assert grid.count() == {"ready": 1}

    @pytest.mark.parametrize("idle", [0, 0.04, 0.12])
    def test_after_an_idle_time(self, idle: float, grid: Grid) -> None:
        grid.put(*numbered(3))
        began = time.monotonic()
        assert grid.consumer().listen_message(lambda run: None, idle_timeout=idle) == 3
        assert idle <= time.monotonic() - began < idle + 5

    def test_the_idle_time_begins_anew_with_every_job(self, grid: Grid) -> None:
        producer, began = grid.producer(), time.monotonic()
        for run in reversed(range(4)):  # should that take long, they come closer to each other
            producer.submit({"run": run}, delay=0.15 * run)
        assert grid.consumer().listen_message(lambda run: None, idle_timeout=0.4) == 4
        assert time.monotonic() - began >= 0.85

    def test_a_long_job_is_not_idle_time(self, grid: Grid) -> None:
        grid.put(*numbered(2))
        seen: list[int] = []

        def slow(run: int) -> None:
            time.sleep(0.1)
            seen.append(run)

        grid.consumer().listen_message(slow, idle_timeout=0.02)
        assert seen == [0, 1]

    def test_when_the_queues_are_empty(self, grid: Grid) -> None:
        grid.put(*numbered(3))
        bench = Bench(grid)
        assert bench.run(lambda kwargs: None, burst=True) == 3
        assert bench.run(lambda kwargs: None, burst=True) == 0

    @pytest.mark.parametrize("option", ["max_jobs", "idle_timeout"])
    @pytest.mark.parametrize("value", [-1, math.nan])
    def test_a_limit_that_cannot_be_reached_is_refused(
        self, option: str, value: float, grid: Grid
    ) -> None:
        grid.put({})
        with pytest.raises(ConfigurationError, match=option):
            grid.consumer().listen_message(lambda **_: None, **{option: value})  # type: ignore[arg-type]
        assert grid.count() == {"ready": 1}


class TestStop:
    def test_from_the_callback(self, grid: Grid) -> None:
        grid.put(*numbered(3))
        consumer = grid.consumer()
        assert consumer.listen_message(lambda run: consumer.stop()) == 1
        assert grid.count() == {"ready": 2}
        assert consumer.listen_message(lambda run: None, max_jobs=2) == 2

    def test_from_another_thread_while_idle(self, grid: Grid) -> None:
        consumer = grid.consumer()
        client = grid.flaky(consumer)
        join = in_thread(consumer.listen_message, lambda **_: None)
        until(lambda: "receive" in client.calls)
        consumer.stop()
        assert join() == 0

    def test_from_another_thread_while_a_job_runs(self, grid: Grid) -> None:
        started, go_on = threading.Event(), threading.Event()
        grid.put(*numbered(2))

        def work(run: int) -> None:
            started.set()
            assert go_on.wait(10)

        consumer = grid.consumer()
        join = in_thread(consumer.listen_message, work)
        assert started.wait(10)
        consumer.stop()
        consumer.stop()
        go_on.set()
        assert join() == 1
        assert grid.count() == {"ready": 1}

    def test_a_job_that_arrives_at_that_moment_goes_back_uncounted(
        self, grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = Bench(grid)
        stop_on_arrival(bench, monkeypatch)
        grid.put({"run": 1})
        assert bench.run(lambda kwargs: None) == 0
        monkeypatch.undo()
        attempts: list[int] = []
        bench.run(lambda kwargs: attempts.append(current_job().attempt))
        assert attempts == [1]

    @pytest.mark.parametrize("error", [LeaseLost("lost"), BrokerUnavailable("gone")])
    def test_and_by_itself_where_it_cannot_be_put_back(
        self, error: Exception, grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = Bench(grid)
        stop_on_arrival(bench, monkeypatch)
        grid.put({"run": 1})
        bench.backend.fail("nack", error)
        assert bench.run(lambda kwargs: None) == 0
        assert grid.count() == {"leased": 1}

    def test_while_the_broker_is_away(self, grid: Grid) -> None:
        bench = Bench(grid)
        bench.backend.fail("open", *(BrokerUnavailable("gone") for _ in range(1000)))
        bench.backend.break_connection()
        join = in_thread(bench.run, lambda kwargs: None, idle_timeout=60)
        until(lambda: "open" in bench.backend.calls)
        bench.runner.stop()
        assert join() == 0


def stop_on_arrival(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    receive = FlakyBackend.receive

    def receive_and_stop(self: FlakyBackend, *arguments: Any) -> Any:
        delivery = receive(self, *arguments)
        bench.runner.stop()
        return delivery

    monkeypatch.setattr(FlakyBackend, "receive", receive_and_stop)


class TestTheBrokerAway:
    def test_listening_goes_on_when_it_is_back(self, grid: Grid) -> None:
        bench = Bench(grid)
        grid.put(*numbered(2))
        bench.backend.fail("receive", BrokerUnavailable("gone"), None, BrokerUnavailable("gone"))
        assert bench.run(lambda kwargs: None, max_jobs=2) == 2

    def test_the_user_s_limit_ends_it(self, grid: Grid) -> None:
        bench = Bench(grid, reconnect=0)
        bench.backend.fail("receive", BrokerUnavailable("gone"))
        with pytest.raises(BrokerUnavailable):
            bench.run(lambda kwargs: None, max_jobs=1)

    def test_a_refusal_ends_it(self, grid: Grid) -> None:
        bench = Bench(grid)
        bench.backend.fail("receive", AccessRefused("no longer"))
        with pytest.raises(AccessRefused):
            bench.run(lambda kwargs: None, max_jobs=1)


class TestTheCallersOwn:
    def test_error_from_a_signal_handler_is_raised_although_a_stop_was_asked_for(
        self, grid: Grid
    ) -> None:
        bench = Bench(grid)

        def ring(number: int, frame: FrameType | None) -> None:
            raise TimeoutError("mine")

        def receive(*arguments: Any) -> Any:
            bench.runner.stop()
            signal.raise_signal(signal.SIGUSR1)

        bench.backend.__dict__["receive"] = receive
        before = signal.signal(signal.SIGUSR1, ring)
        try:
            with pytest.raises(TimeoutError, match="mine"):
                bench.run(lambda kwargs: None)
        finally:
            signal.signal(signal.SIGUSR1, before)


class TestTaking:
    def test_the_order_of_the_queues_ranks_them(self, grid: Grid) -> None:
        bench = Bench(grid)
        for phase in ("evaluate", "train", "preprocess", "evaluate", "train"):
            grid.put({"phase": phase}, phase=phase)
        seen: list[str] = []

        def note(kwargs: dict[str, Any]) -> None:
            seen.append(kwargs["phase"])

        bench.run_all({"train": note, "preprocess": note, "evaluate": note})
        assert seen == ["train", "train", "preprocess", "evaluate", "evaluate"]

    def test_nothing_is_held_that_does_not_run(self, grid: Grid) -> None:
        grid.put(*numbered(5))
        seen: list[Any] = []
        grid.consumer().listen_message(lambda run: seen.append(grid.count()), max_jobs=5)
        assert seen == [
            {"ready": 4, "leased": 1},
            {"ready": 3, "leased": 1},
            {"ready": 2, "leased": 1},
            {"ready": 1, "leased": 1},
            {"leased": 1},
        ]

    def test_between_jobs_and_after_them_nothing_is_held(self, grid: Grid) -> None:
        grid.put(*numbered(3))
        grid.consumer().listen_message(lambda run: None, max_jobs=1)
        assert grid.count() == {"ready": 2}


class TestAcknowledgeFirst:
    @pytest.mark.parametrize("error", [LeaseLost("lost"), BrokerUnavailable("gone")])
    def test_a_job_that_is_gone_before_it_runs_is_not_run(
        self, error: Exception, grid: Grid
    ) -> None:
        bench = Bench(grid, reconnect=0)
        grid.put(*numbered(2))
        bench.backend.fail("ack", error)
        seen: list[int] = []
        bench.run(lambda kwargs: seen.append(kwargs["run"]), max_jobs=2, acknowledge_first=True)
        assert seen == [1]
        grid.crash_holders()  # the one that could not be acknowledged comes back, and runs
        bench.run(lambda kwargs: seen.append(kwargs["run"]))
        assert seen == [1, 0]

    def test_the_acknowledgement_is_tried_again(self, grid: Grid) -> None:
        bench = Bench(grid)
        grid.put({})
        bench.backend.fail("ack", BrokerUnavailable("gone"))
        seen: list[Any] = []
        bench.run(lambda kwargs: seen.append(grid.count()), max_jobs=1, acknowledge_first=True)
        assert seen == [{}]


class TestCurrentJob:
    def test_tells_everything_about_it(self, grid: Grid) -> None:
        job_id, began = new_id(), time.time()
        grid.producer("evaluate").submit({}, priority="high", job_id=job_id)
        seen: list[Any] = []
        grid.consumer("evaluate").poll_message(lambda **_: seen.append(current_job()))
        job = seen[0]
        assert (job.id, job.phase, job.rank) == (job_id, "evaluate", Rank.HIGH)
        assert (job.attempt, job.lease_lost) == (1, False)
        assert began - 1 <= job.submitted_at <= time.time()

    def test_of_a_producer_that_said_nothing(self, grid: Grid) -> None:
        grid.put({}, submitted_at=None, schema=0)
        seen: list[Any] = []
        grid.consumer().poll_message(lambda **_: seen.append(current_job()))
        assert seen[0].submitted_at is None

    def test_counts_the_attempts(self, grid: Grid) -> None:
        grid.aged(3, {})
        seen: list[Any] = []
        grid.consumer().poll_message(lambda **_: seen.append(current_job()))
        assert seen[0].attempt == 3

    def test_there_is_none_outside(self, grid: Grid) -> None:
        def fail(run: int) -> None:
            raise ZeroDivisionError

        with pytest.raises(NoJob, match="running callback"):
            current_job()
        grid.put(*numbered(2))
        consumer = grid.consumer()
        consumer.poll_message(lambda run: None)
        with pytest.raises(NoJob, match="running callback"):
            current_job()
        consumer.poll_message(fail)
        with pytest.raises(NoJob, match="running callback"):
            current_job()

    def test_is_the_thread_s_own(self, grid: Grid) -> None:
        grid.put(*numbered(2))
        consumer = grid.consumer()
        both = threading.Barrier(2, timeout=10)
        seen: dict[int, Any] = {}

        def note(run: int) -> None:
            both.wait()
            seen[run] = current_job()
            both.wait()
            assert current_job() is seen[run]

        joins = [in_thread(consumer.poll_message, note) for _ in range(2)]
        for join in joins:
            join()
        assert seen[0] is not seen[1]
        assert grid.count() == {}

    def test_is_the_outer_one_again_after_an_inner_one(self, grid: Grid) -> None:
        grid.put({"run": 1}, {"run": 2})
        consumer = grid.consumer()

        def outer(run: int) -> Any:
            before = current_job()
            inner = consumer.poll_message(lambda run: current_job())
            return (before is current_job(), inner is not before)

        assert consumer.poll_message(outer) == (True, True)

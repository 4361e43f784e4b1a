"""Settling: results before acknowledgements, and outcomes of jobs that were taken back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from grid import Bench, Grid, in_thread, until

from synmanager import Reject, Retry, current_job
from synmanager.errors import (
    BrokerUnavailable,
    InvalidJob,
    LeaseLost,
    PublishInterrupted,
    PublishRefused,
    TopologyError,
)
from synmanager.job import Job
from synmanager.message import Message
from synmanager.phases import EVALUATE

JOB = {"run": 1}


class Results:
    """Publishes results to ``evaluate``, and remembers them."""

    def __init__(self) -> None:
        self.published: list[Any] = []
        self.bench: Bench | None = None

    def __call__(self, job: Job, value: Any) -> None:
        assert self.bench is not None
        self.bench.session.publish(
            EVALUATE.exchange.name, EVALUATE.routing_key, [Message(b"{}", id=f"{job.id}.result")]
        )
        self.published.append(value)


def bench_with_results(grid: Grid, **options: Any) -> tuple[Bench, list[Any]]:
    results = Results()
    results.bench = Bench(grid, on_result=results, **options)
    return results.bench, results.published


class TestResults:
    def test_are_accepted_by_the_broker_before_the_job_is_acknowledged(self, grid: Grid) -> None:
        bench, published = bench_with_results(grid)
        grid.put(JOB)
        bench.run(lambda kwargs: "result")
        assert published == ["result"]
        settling = [call for call in bench.backend.calls if call != "receive"]
        assert settling == ["renew", "publish", "ack"]

    def test_a_crash_between_the_two_repeats_the_job_and_loses_nothing(self, grid: Grid) -> None:
        bench, published = bench_with_results(grid)
        grid.put(JOB)
        bench.backend.fail("ack", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            bench.run(lambda kwargs: "result")
        assert published == ["result"]
        assert grid.count("evaluate") == {"ready": 1}
        assert grid.count() == {"leased": 1}

    def test_none_is_not_published(self, grid: Grid) -> None:
        bench, published = bench_with_results(grid)
        grid.put(JOB)
        bench.run(lambda kwargs: None)
        assert published == []
        assert "renew" not in bench.backend.calls
        assert grid.count() == {}

    @pytest.mark.parametrize("value", [{}, 0, False, ""])
    def test_what_is_empty_is(self, value: Any, grid: Grid) -> None:
        bench, published = bench_with_results(grid)
        grid.put(JOB)
        bench.run(lambda kwargs: value)
        assert published == [value]

    def test_of_a_failed_job_there_are_none(self, grid: Grid) -> None:
        def fail(kwargs: Any) -> None:
            raise ZeroDivisionError

        bench, published = bench_with_results(grid)
        grid.put(JOB)
        bench.run(fail)
        assert published == []

    def test_one_that_cannot_be_written_makes_a_dead_letter(self, grid: Grid) -> None:
        def refuse(job: Job, value: Any) -> None:
            raise InvalidJob("it is cyclic")

        bench = Bench(grid, on_result=refuse)
        grid.put(JOB)
        bench.run(lambda kwargs: "result")
        ((_, reason, _),) = grid.dead()
        assert reason == "its result cannot be published: it is cyclic"

    @pytest.mark.parametrize("error", [PublishRefused("out of memory"), TopologyError("deleted")])
    def test_one_that_is_refused_ends_the_loop_and_is_published_when_the_job_comes_back(
        self, error: Exception, grid: Grid
    ) -> None:
        bench, published = bench_with_results(grid)
        grid.put(JOB)
        runs: list[int] = []

        def work(kwargs: Any) -> str:
            runs.append(1)
            return "result"

        bench.backend.fail("publish", error)
        with pytest.raises(type(error)):
            bench.run(work)
        assert (grid.count(), published) == ({"leased": 1}, [])
        grid.crash_holders()
        bench.run(work)
        assert (runs, published) == ([1], ["result"])
        assert grid.count() == {}

    def test_one_that_was_interrupted_is_published_once(self, grid: Grid) -> None:
        bench, published = bench_with_results(grid)
        grid.put(JOB)
        bench.backend.fail("publish", PublishInterrupted("gone", [Message(b"{}", id="x")]))
        bench.run(lambda kwargs: "result")
        assert published == ["result"]
        assert grid.count("evaluate") == {"ready": 1}


class TestLostLease:
    """The broker took the job back while it ran; here, as when its lease runs out."""

    def test_its_result_is_not_published(
        self, grid: Grid, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench, published = bench_with_results(grid)
        other = grid.client()
        grid.put(JOB)

        def work(kwargs: Any) -> str:
            grid.crash_holders()
            assert other.receive(["train"], 0) is not None  # another worker has it now
            return "result"

        with caplog.at_level(logging.WARNING, "synmanager"):
            assert bench.run(work) == 1
        assert published == []
        assert grid.count() == {"leased": 1}
        assert "no longer ours" in caplog.text

    def test_its_outcome_is_kept_and_settles_the_job_without_a_second_run(self, grid: Grid) -> None:
        bench, published = bench_with_results(grid)
        grid.put(JOB)
        runs: list[int] = []

        def work(kwargs: Any) -> str:
            job = current_job()
            assert job is not None
            runs.append(job.attempt)
            grid.crash_holders()
            return "result"

        assert bench.run(work) == 2  # it came, ran, was taken back, and came again
        assert runs == [1]
        assert published == ["result"]
        assert grid.count() == {}

    def test_poll_message_returns_the_kept_value_once_the_job_is_settled(self, grid: Grid) -> None:
        # Its caller publishes what it returns, and must not for a job that is another's by now.
        grid.put(JOB)
        consumer = grid.consumer()

        def work(run: int) -> str:
            grid.crash_holders()
            return "value"

        assert consumer.poll_message(work) is None
        assert grid.count() == {"ready": 1}
        assert consumer.poll_message(work) == "value"
        assert grid.count() == {}

    @pytest.mark.parametrize(
        ("error", "state"),
        [
            (ZeroDivisionError("planted"), {"delayed": 1}),
            (Retry(delay=60), {"delayed": 1}),
            (Reject("never"), {"dead": 1}),
        ],
        ids=["exception", "retry", "reject"],
    )
    def test_a_failure_is_kept_too(
        self, error: Exception, state: dict[str, int], grid: Grid
    ) -> None:
        bench = Bench(grid)
        grid.put(JOB)
        runs: list[int] = []

        def work(kwargs: Any) -> None:
            runs.append(1)
            grid.crash_holders()
            raise error

        bench.run(work)
        assert runs == [1]
        assert grid.count() == state

    def test_it_settles_one_return_only(self, grid: Grid) -> None:
        bench = Bench(grid)
        grid.put(JOB)
        runs: list[int] = []

        def work(kwargs: Any) -> None:
            runs.append(1)
            if len(runs) == 1:
                grid.crash_holders()

        bench.run(work)
        grid.aged(2, JOB)  # another job: it has its own id
        bench.run(work)
        assert runs == [1, 1]

    def test_a_first_delivery_is_run_though_it_has_the_id_of_a_kept_one(self, grid: Grid) -> None:
        bench = Bench(grid)
        grid.put(JOB, id="nightly")
        runs: list[int] = []

        def lose(kwargs: Any) -> None:
            runs.append(1)
            grid.crash_holders()
            bench.runner.stop()

        bench.run(lose)
        grid.client().purge("train")  # somebody else has done it, say
        grid.put(JOB, id="nightly")
        bench.run(lambda kwargs: runs.append(2))
        assert runs == [1, 2]

    def test_a_later_job_is_run_though_it_has_the_id_of_a_kept_one_and_is_no_first_delivery(
        self, grid: Grid
    ) -> None:
        bench = Bench(grid)
        grid.put(JOB, id="nightly")
        runs: list[int] = []

        def lose(kwargs: Any) -> None:
            runs.append(1)
            grid.crash_holders()
            bench.runner.stop()

        bench.run(lose)
        grid.client().purge("train")
        grid.put(JOB, id="nightly")  # of the next night
        grid.client().receive(["train"], 0)
        grid.crash_holders()
        bench.run(lambda kwargs: runs.append(2))
        assert runs == [1, 2]

    def test_a_job_of_another_phase_is_run_though_it_has_the_same_id(self, grid: Grid) -> None:
        bench = Bench(grid)
        grid.put(JOB, id="run-1")
        grid.put(JOB, id="run-1", phase="evaluate")
        grid.client().receive(["evaluate"], 0)
        grid.crash_holders("evaluate")  # so that it comes as a second attempt
        runs: list[str] = []

        def lose(kwargs: Any) -> None:
            runs.append("train")
            grid.crash_holders()

        bench.runner.run({"train": lose}, max_jobs=1)
        bench.runner.run({"evaluate": lambda kwargs: runs.append("evaluate")}, burst=True)
        assert runs == ["train", "evaluate"]

    def test_no_more_than_a_thousand_are_kept(
        self, grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("synmanager.runner._KEPT", 2)
        bench = Bench(grid)
        grid.put(*({"run": run} for run in range(3)))
        runs: list[int] = []

        def lose(kwargs: Any) -> None:
            runs.append(kwargs["run"])
            if len(runs) <= 3:
                with grid.broker.changed:  # to the tail, so that all three run first
                    held = grid.broker.queue("train")
                    (entry,) = held.leased.values()
                    grid.broker.give_back(held, entry)
                    held.ready[entry.message.rank].move_to_end(entry.message.id)

        bench.run(lose)
        assert runs == [0, 1, 2, 0]
        assert grid.count() == {}

    def test_a_late_settlement_is_lease_lost(self, grid: Grid) -> None:
        client = grid.client()
        grid.put(JOB)
        delivery = client.receive(["train"], 0)
        assert delivery is not None
        grid.crash_holders()
        settlements: list[Callable[[], None]] = [
            lambda: client.ack(delivery),
            lambda: client.nack(delivery),
            lambda: client.bury(delivery, "why"),
            lambda: client.renew(delivery),
        ]
        for settle in settlements:
            with pytest.raises(LeaseLost):
                settle()


class TestTheBrokerAwayWhileSettling:
    def test_the_settlement_is_tried_again(self, grid: Grid) -> None:
        bench, published = bench_with_results(grid)
        grid.put(JOB)
        for method in ("renew", "publish", "ack"):
            bench.backend.fail(method, BrokerUnavailable("gone"))
        bench.run(lambda kwargs: "result")
        assert published == ["result"]
        assert grid.count() == {}

    @pytest.mark.parametrize("method", ["renew", "publish", "ack"])
    def test_for_longer_than_the_user_s_limit_the_outcome_is_kept(
        self, method: str, grid: Grid
    ) -> None:
        bench, published = bench_with_results(grid, reconnect=0)
        grid.put(JOB)
        bench.backend.fail(method, BrokerUnavailable("gone"))
        runs: list[int] = []

        def work(kwargs: Any) -> str:
            runs.append(1)
            return "result"

        assert bench.run(work, max_jobs=1) == 1
        grid.crash_holders()
        assert bench.run(work, max_jobs=1) == 1
        assert runs == [1]
        assert published[-1:] == ["result"]
        assert grid.count() == {}

    def test_without_a_limit_a_listening_consumer_waits_for_it(
        self, grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Its job is done and still its own: to let go would be to run it again.
        monkeypatch.setattr("synmanager.session.CALL_PATIENCE", 0)
        bench = Bench(grid)
        grid.put(JOB)
        bench.backend.fail("ack", *(BrokerUnavailable("gone") for _ in range(4)))
        assert bench.run(lambda kwargs: "result", max_jobs=1) == 1
        assert grid.count() == {}

    def test_a_stop_is_obeyed_when_the_grace_period_is_over(self, grid: Grid) -> None:
        bench = Bench(grid, grace=0.1)
        grid.put(JOB)
        bench.backend.fail("ack", *(BrokerUnavailable("gone") for _ in range(1000)))
        join = in_thread(bench.run, lambda kwargs: "result", max_jobs=1)
        until(lambda: "ack" in bench.backend.calls)
        bench.runner.stop()
        assert join() == 1
        assert grid.count() == {"leased": 1}

    def test_a_stop_leaves_it_the_grace_period(self, grid: Grid) -> None:
        bench = Bench(grid, grace=30)
        grid.put(JOB)
        bench.backend.fail("ack", BrokerUnavailable("gone"), BrokerUnavailable("gone"))
        join = in_thread(bench.run, lambda kwargs: "result", max_jobs=1)
        until(lambda: "ack" in bench.backend.calls)
        bench.runner.stop()
        assert join() == 1
        assert grid.count() == {}

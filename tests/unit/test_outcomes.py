"""Settling: results before acknowledgements, and outcomes of jobs that were taken back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from grid import Bench, Grid, in_thread, until

from synmanager import Reject, Retry, current_job
from synmanager.backends.base import Delivery
from synmanager.clock import ManualClock
from synmanager.engine import forks, kept
from synmanager.engine.results import Results
from synmanager.errors import (
    AccessRefused,
    BrokerUnavailable,
    LeaseLost,
    PublishInterrupted,
    PublishRefused,
    TopologyError,
    Unroutable,
)
from synmanager.message import DEFAULT_MAX_BYTES, Message, decode
from synmanager.phases import EVALUATE

JOB = {"run": 1}
RESULT = {"loss": 0.5}


class AwakeClock(ManualClock):
    """Real time, but for what passes while the machine stands still and nobody can renew.

    A context manager, within which it goes.
    """

    def __enter__(self) -> AwakeClock:
        self._over = threading.Event()
        self._join = in_thread(self._go)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._join()

    def _go(self) -> None:
        seen = time.monotonic()
        while not self._over.wait(0.01):
            seen, before = time.monotonic(), seen
            self.advance(min(seen - before, 0.1))


def bench_with_results(grid: Grid, **options: Any) -> Bench:
    """Results go to ``evaluate``."""
    results = Results(EVALUATE.exchange.name, EVALUATE.routing_key, DEFAULT_MAX_BYTES)
    return Bench(grid, results=results, **options)


def published(grid: Grid) -> list[dict[str, Any]]:
    return [decode(message.body) for message in grid.ready("evaluate")]


class TestResults:
    def test_are_accepted_by_the_broker_before_the_job_is_acknowledged(self, grid: Grid) -> None:
        bench = bench_with_results(grid)
        grid.put(JOB)
        bench.run(lambda kwargs: RESULT)
        assert published(grid) == [RESULT]
        settling = [call for call in bench.backend.calls if call != "receive"]
        assert settling == ["renew", "publish", "ack"]

    def test_a_crash_between_the_two_repeats_the_job_and_loses_nothing(self, grid: Grid) -> None:
        bench = bench_with_results(grid)
        grid.put(JOB)
        bench.backend.fail("ack", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            bench.run(lambda kwargs: RESULT)
        assert published(grid) == [RESULT]
        assert grid.count() == {"leased": 1}

    def test_none_is_not_published(self, grid: Grid, caplog: pytest.LogCaptureFixture) -> None:
        bench = bench_with_results(grid)
        grid.put(JOB)
        bench.run(lambda kwargs: None)
        assert published(grid) == []
        assert "renew" not in bench.backend.calls
        assert grid.count() == {}
        assert caplog.text == ""

    def test_an_empty_mapping_is(self, grid: Grid) -> None:
        bench = bench_with_results(grid)
        grid.put(JOB)
        bench.run(lambda kwargs: {})
        assert published(grid) == [{}]

    @pytest.mark.parametrize("value", [0, False, "", "loss", [1], [("loss", 1)]], ids=repr)
    def test_what_is_no_mapping_is_not_and_its_job_is_done(
        self, value: Any, grid: Grid, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench = bench_with_results(grid)
        grid.put(JOB, JOB)
        assert bench.run(lambda kwargs: value) == 2
        assert published(grid) == []
        assert grid.count() == {}
        (record,) = caplog.records  # once for all of its kind
        assert f"train returned a {type(value).__name__}" in record.getMessage()

    def test_of_a_failed_job_there_are_none(self, grid: Grid) -> None:
        def fail(kwargs: Any) -> None:
            raise ZeroDivisionError

        bench = bench_with_results(grid)
        grid.put(JOB)
        bench.run(fail)
        assert published(grid) == []

    def test_one_that_cannot_be_written_makes_a_dead_letter_that_keeps_its_text(
        self, grid: Grid
    ) -> None:
        cyclic: dict[str, Any] = {"loss": 0.5}
        cyclic["me"] = cyclic
        bench = bench_with_results(grid)
        grid.put(JOB)
        bench.run(lambda kwargs: cyclic)
        ((_, reason, _),) = grid.dead()
        assert reason.startswith("its result cannot be published: ")
        assert reason.endswith("it was {'loss': 0.5, 'me': {...}}")

    @pytest.mark.parametrize(
        "error",
        [PublishRefused("out of memory"), TopologyError("deleted"), Unroutable("not bound")],
        ids=lambda error: type(error).__name__,
    )
    def test_one_that_is_refused_is_waited_for_and_the_job_with_it(
        self, error: Exception, grid: Grid
    ) -> None:
        # Hours of work: there will be room, or a queue, and the job is still ours.
        bench = bench_with_results(grid)
        grid.put(JOB)
        runs: list[int] = []

        def work(kwargs: Any) -> dict[str, float]:
            runs.append(1)
            return RESULT

        bench.backend.fail("publish", error, error, error)
        assert bench.run(work) == 1
        assert (runs, published(grid)) == ([1], [RESULT])
        assert grid.count() == {}

    def test_one_that_was_interrupted_is_published_once(self, grid: Grid) -> None:
        bench = bench_with_results(grid)
        grid.put(JOB)
        bench.backend.fail("publish", PublishInterrupted("gone", [Message(b"{}", id="x")]))
        bench.run(lambda kwargs: RESULT)
        assert len(published(grid)) == 1

    def test_one_that_waits_for_room_keeps_its_job(
        self, grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = bench_with_results(grid, lease=60.0)
        grid.put(JOB)
        publish, other = bench.backend.publish, grid.client()
        taken_over: list[Delivery | None] = []

        def full(*args: Any, **options: Any) -> int:
            if len(taken_over) == 4:
                return publish(*args, **options)
            grid.clock.advance(25)
            taken_over.append(other.receive(["train"], 0))
            raise PublishRefused("no room")

        monkeypatch.setattr(bench.backend, "publish", full)
        assert bench.run(lambda kwargs: RESULT) == 1
        assert taken_over == [None] * 4
        assert published(grid) == [RESULT]
        assert grid.count() == {}

    @pytest.mark.parametrize(
        ("step", "comes_to", "left"),
        [
            ("publish", RESULT, {}),
            ("nack", Retry(), {"delayed": 1}),
            ("bury", Reject(), {"dead": 1}),
        ],
        ids=["its-result", "its-retry", "its-dead-letter"],
    )
    def test_what_waits_for_room_keeps_a_short_lease(
        self,
        step: str,
        comes_to: dict[str, float] | Exception,
        left: dict[str, int],
        grid: Grid,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # The pauses between its tries would grow beyond it.
        clock = grid.broker.clock = AwakeClock()
        bench = bench_with_results(grid, lease=1.0)
        grid.put(JOB)
        settle, other = getattr(bench.backend, step), grid.client()
        taken_over: list[Delivery | None] = []

        def full(*args: Any, **options: Any) -> Any:
            taken_over.append(other.receive(["train"], 0))
            if len(taken_over) == 12:
                return settle(*args, **options)
            raise PublishRefused("no room")

        def work(kwargs: Any) -> dict[str, float]:
            if isinstance(comes_to, Exception):
                raise comes_to
            return comes_to

        monkeypatch.setattr(bench.backend, step, full)
        with clock:
            assert bench.run(work) == 1
        assert taken_over == [None] * 12
        assert grid.count() == left

    @pytest.mark.parametrize(
        ("step", "error"), [("nack", Retry()), ("bury", Reject())], ids=["retry", "dead-letter"]
    )
    def test_an_end_whose_answer_was_lost_is_settled_and_nothing_is_kept(
        self, step: str, error: Exception, grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Drivers know that the try before has done it; the lease is gone with it.
        bench = bench_with_results(grid)
        grid.put(JOB)
        settle = getattr(bench.backend, step)
        tries: list[None] = []

        def lose_the_answer(delivery: Delivery, *args: Any, **options: Any) -> None:
            tries.append(None)
            if len(tries) == 1:
                settle(delivery, *args, **options)
                delivery.settled = False  # as far as anybody here knows
                raise BrokerUnavailable("cut")
            delivery.settled = True

        def work(kwargs: Any) -> None:
            raise error

        monkeypatch.setattr(bench.backend, step, lose_the_answer)
        bench.run(work)
        assert len(tries) == 2
        assert len(bench.runner._kept) == 0


class TestLostLease:
    """The broker took the job back while it ran; here, as when its lease runs out."""

    @pytest.mark.parametrize(
        "error",
        [PublishInterrupted("gone", ()), BrokerUnavailable("gone"), PublishRefused("no room")],
        ids=lambda error: type(error).__name__,
    )
    def test_while_its_result_was_waited_for_nothing_is_published(
        self, error: Exception, grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A worker that was frozen learns from its first request that its connection is gone.
        bench = bench_with_results(grid)
        other = grid.client()
        grid.put(JOB)

        def late(*args: Any, **options: Any) -> int:
            monkeypatch.undo()
            grid.crash_holders()
            assert other.receive(["train"], 0) is not None  # another worker has it now
            raise error

        monkeypatch.setattr(bench.backend, "publish", late)
        bench.run(lambda kwargs: RESULT)
        assert published(grid) == []
        assert grid.count() == {"leased": 1}

    def test_its_result_is_not_published(
        self, grid: Grid, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench = bench_with_results(grid)
        other = grid.client()
        grid.put(JOB)

        def work(kwargs: Any) -> dict[str, float]:
            grid.crash_holders()
            assert other.receive(["train"], 0) is not None  # another worker has it now
            return RESULT

        with caplog.at_level(logging.WARNING, "synmanager"):
            assert bench.run(work) == 1
        assert published(grid) == []
        assert grid.count() == {"leased": 1}
        assert "no longer ours" in caplog.text

    def test_its_outcome_is_kept_and_settles_the_job_without_a_second_run(self, grid: Grid) -> None:
        bench = bench_with_results(grid)
        grid.put(JOB)
        runs: list[int] = []

        def work(kwargs: Any) -> dict[str, float]:
            job = current_job()
            assert job is not None
            runs.append(job.attempt)
            grid.crash_holders()
            return RESULT

        assert bench.run(work) == 2  # it came, ran, was taken back, and came again
        assert runs == [1]
        assert published(grid) == [RESULT]
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

        bench.run(lose, max_jobs=1)
        bench.run_all({"evaluate": lambda kwargs: runs.append("evaluate")})
        assert runs == ["train", "evaluate"]

    def test_no_more_than_a_thousand_are_kept(
        self, grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(kept, "MOST", 2)
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
        bench = bench_with_results(grid)
        grid.put(JOB)
        for method in ("renew", "publish", "ack"):
            bench.backend.fail(method, BrokerUnavailable("gone"))
        bench.run(lambda kwargs: RESULT)
        assert published(grid) == [RESULT]
        assert grid.count() == {}

    @pytest.mark.parametrize("method", ["renew", "publish", "ack"])
    def test_for_longer_than_the_user_s_limit_the_outcome_is_kept(
        self, method: str, grid: Grid
    ) -> None:
        bench = bench_with_results(grid, reconnect=0)
        grid.put(JOB)
        bench.backend.fail(method, BrokerUnavailable("gone"))
        runs: list[int] = []

        def work(kwargs: Any) -> dict[str, float]:
            runs.append(1)
            return RESULT

        assert bench.run(work, max_jobs=1) == 1
        grid.crash_holders()
        assert bench.run(work, max_jobs=1) == 1
        assert runs == [1]
        assert published(grid) == [RESULT]
        assert grid.count() == {}

    def test_without_a_limit_a_listening_consumer_waits_for_it(
        self, grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Its job is done and still its own: to let go would be to run it again.
        monkeypatch.setattr("synmanager.engine.session.CALL_PATIENCE", 0)
        bench = Bench(grid)
        grid.put(JOB)
        bench.backend.fail("ack", *(BrokerUnavailable("gone") for _ in range(4)))
        assert bench.run(lambda kwargs: RESULT, max_jobs=1) == 1
        assert grid.count() == {}

    def test_a_stop_is_obeyed_when_the_grace_period_is_over(self, grid: Grid) -> None:
        bench = Bench(grid, grace=0.1)
        grid.put(JOB)
        bench.backend.fail("ack", *(BrokerUnavailable("gone") for _ in range(1000)))
        join = in_thread(bench.run, lambda kwargs: RESULT, max_jobs=1)
        until(lambda: "ack" in bench.backend.calls)
        bench.runner.stop()
        assert join() == 1
        assert grid.count() == {"leased": 1}

    def test_a_stop_leaves_it_the_grace_period(self, grid: Grid) -> None:
        bench = Bench(grid, grace=30)
        grid.put(JOB)
        bench.backend.fail("ack", BrokerUnavailable("gone"), BrokerUnavailable("gone"))
        join = in_thread(bench.run, lambda kwargs: RESULT, max_jobs=1)
        until(lambda: "ack" in bench.backend.calls)
        bench.runner.stop()
        assert join() == 1
        assert grid.count() == {}


class TestOneFailure:
    """It counts once, however often the connection is cut as it is settled."""

    @pytest.mark.parametrize("cuts", [1, 2, 3])
    def test_is_one_attempt(self, cuts: int, grid: Grid) -> None:
        # The broker counts what comes back of itself, and that cannot be taken back: it decides
        # how often the job is started. What is left of that, the failure does not use up.
        bench = Bench(grid, reconnect=0, max_attempts=cuts + 1, retry_delay=60)
        grid.put(JOB)
        runs: list[int] = []

        def fail_once(kwargs: Any) -> None:
            runs.append(1)
            if len(runs) == 1:
                raise ZeroDivisionError

        for _ in range(cuts):
            bench.backend.fail("nack", BrokerUnavailable("cut"))
            bench.run(fail_once, max_jobs=1)
            assert grid.count() == {"leased": 1}
            grid.crash_holders()  # and by that the broker has counted it
        assert bench.run(fail_once) == 1
        assert runs == [1]
        assert grid.count() == {"delayed": 1}
        grid.clock.advance(3600)
        assert bench.run(fail_once) == 1
        assert runs == [1, 1]
        assert grid.count() == {}

    def test_of_the_last_attempt_is_the_last(self, grid: Grid) -> None:
        bench = Bench(grid, reconnect=0, max_attempts=1)
        grid.put(JOB)
        runs: list[int] = []

        def fail(kwargs: Any) -> None:
            runs.append(1)
            raise ZeroDivisionError("planted")

        bench.backend.fail("bury", BrokerUnavailable("cut"))
        bench.run(fail, max_jobs=1)
        grid.crash_holders()
        bench.run(fail)
        assert runs == [1]
        ((_, reason, _),) = grid.dead()
        assert reason == "ZeroDivisionError: planted"  # and not that its workers died

    def test_with_results_for_hours_and_a_broker_without_room(self, grid: Grid) -> None:
        # Run again and again, as by a supervisor: the loop stays, and the job runs once.
        bench = bench_with_results(grid)
        grid.put(JOB)
        runs: list[int] = []

        def work(kwargs: Any) -> dict[str, float]:
            runs.append(1)
            bench.backend.fail("publish", *[PublishRefused("maxmemory")] * 3)
            bench.backend.fail("receive", TopologyError("READONLY"), RuntimeError("-LOADING"))
            bench.backend.fail("ack", PublishRefused("maxmemory"), Unroutable("moved"))
            return RESULT

        assert bench.run(work) == 1
        assert (runs, published(grid)) == ([1], [RESULT])
        assert grid.count() == {}


class TestFork:
    """What comes out of a callback in a child has nothing to settle."""

    @pytest.mark.parametrize("error", [None, ZeroDivisionError(), Reject()], ids=repr)
    def test_settles_nothing(
        self, error: Exception | None, grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bench = bench_with_results(grid)
        grid.put(JOB)

        def fork(kwargs: Any) -> dict[str, float]:
            monkeypatch.setattr(forks, "_generation", forks.generation() + 1)
            if error is not None:
                raise error
            return RESULT

        assert bench.runner.run_one({"train": fork}) is None
        monkeypatch.undo()
        assert bench.backend.calls == ["receive"]
        assert grid.count() == {"leased": 1}
        assert published(grid) == []


class TestAcknowledgedFirst:
    def test_a_broker_that_refuses_it_ends_the_loop_and_nothing_has_run(self, grid: Grid) -> None:
        bench = Bench(grid)
        grid.put(JOB)
        bench.backend.fail("ack", AccessRefused("no longer"))
        runs: list[int] = []
        with pytest.raises(AccessRefused):
            bench.run(lambda kwargs: runs.append(1), max_jobs=1, acknowledge_first=True)
        assert runs == []
        grid.crash_holders()
        bench.run(lambda kwargs: runs.append(1))
        assert runs == [1]

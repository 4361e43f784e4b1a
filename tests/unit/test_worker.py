"""``Worker``: rank over the phases, results, several workers, handlers that submit."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from grid import Grid, in_thread, until

from synmanager import Reject, Worker
from synmanager.completed import CompletedConsumerOperator
from synmanager.errors import (
    AccessRefused,
    BrokerUnavailable,
    ConfigurationError,
    SynmanagerError,
)
from synmanager.message import decode
from synmanager.phases import WORK_PHASES, WorkPhase
from synmanager.testkit import FakeBroker
from synmanager.train import TrainProducerOperator


def results(grid: Grid) -> list[tuple[str, dict[str, Any]]]:
    """What is in ``completed``: ids and bodies."""
    client = grid.client()
    taken = []
    while (delivery := client.receive(["completed"], 0)) is not None:
        taken.append((delivery.message.id, decode(delivery.message.body)))
        client.ack(delivery)
    return taken


class TestRank:
    def test_the_highest_ranked_phase_that_has_jobs_comes_first(self, grid: Grid) -> None:
        for phase in ("evaluate", "train", "preprocess") * 3:
            grid.put({"phase": phase}, phase=phase)
        order: list[str] = []
        worker = Worker(dict.fromkeys(WORK_PHASES, lambda phase: order.append(phase)), url=grid.url)
        assert worker.run(burst=True) == 9
        assert order == ["preprocess"] * 3 + ["train"] * 3 + ["evaluate"] * 3

    def test_the_order_of_the_mapping_is_the_rank(self, grid: Grid) -> None:
        for phase in WORK_PHASES:
            grid.put({"phase": phase}, phase=phase)
        order: list[str] = []
        handlers = dict.fromkeys(reversed(WORK_PHASES), lambda phase: order.append(phase))
        Worker(handlers, url=grid.url).run(burst=True)
        assert order == ["evaluate", "train", "preprocess"]

    def test_rank_within_a_phase_does_not_outrank_the_phase(self, grid: Grid) -> None:
        grid.producer("train").submit({"name": "high"}, priority="high")
        grid.producer("preprocess").submit({"name": "low"}, priority="low")
        order: list[str] = []
        Worker(dict.fromkeys(WORK_PHASES, lambda name: order.append(name)), url=grid.url).run(
            burst=True
        )
        assert order == ["low", "high"]

    def test_a_job_that_arrives_meanwhile_is_ranked_too(self, grid: Grid) -> None:
        grid.put({"run": 1}, {"run": 2}, phase="train")
        order: list[str] = []
        aligner = grid.producer("preprocess")

        def train(run: int) -> None:
            order.append(f"train {run}")
            if run == 1:
                aligner.process()

        def align(**kwargs: Any) -> None:
            order.append("align")

        Worker({"preprocess": align, "train": train}, url=grid.url).run(burst=True)
        assert order == ["train 1", "align", "train 2"]

    def test_phases_without_a_handler_are_left_alone(self, grid: Grid) -> None:
        grid.put({}, phase="evaluate")
        Worker({"train": lambda **_: None}, url=grid.url).run(burst=True)
        assert grid.count("evaluate") == {"ready": 1}


class TestHandlers:
    @pytest.mark.parametrize("handlers", [{}, {"completed": print}, {"polish": print}, {"": print}])
    def test_a_phase_that_there_is_not(self, handlers: dict[WorkPhase, Any]) -> None:
        with pytest.raises(ConfigurationError, match="preprocess, train, evaluate"):
            Worker(handlers, url="memory")

    def test_both_conventions(self, grid: Grid) -> None:
        seen: list[Any] = []
        grid.put({"run": 1}, phase="train")
        grid.put({"run": 2}, phase="evaluate")
        Worker(
            {
                "train": lambda run: seen.append(run),
                "evaluate": lambda kwargs, host: seen.append((kwargs, host)),
            },
            "mq.example",
            url=grid.url,
        ).run(burst=True)
        assert seen == [1, ({"run": 2}, "mq.example")]

    def test_run_in_the_thread_that_called(self, grid: Grid) -> None:
        grid.put({})
        seen: list[Any] = []
        Worker({"train": lambda **_: seen.append(threading.current_thread())}, url=grid.url).run(
            burst=True
        )
        assert seen == [threading.current_thread()]


class TestResults:
    def test_a_dict_is_published_with_an_id_derived_from_the_job_s(self, grid: Grid) -> None:
        (message,) = grid.put({"run": 7})
        Worker({"train": lambda run: {"run": run, "loss": 0.5}}, url=grid.url).run(burst=True)
        ((result_id, result),) = results(grid)
        assert re.fullmatch(rf"{message.id}\.train\.[0-9a-f]{{16}}\.result", result_id)
        assert result == {"run": 7, "loss": 0.5}
        assert grid.count() == {}

    def test_the_longest_id_leaves_room(self, grid: Grid) -> None:
        grid.producer("preprocess").submit({}, job_id="x" * 200)
        Worker({"preprocess": lambda **_: {}}, url=grid.url).run(burst=True)
        ((result_id, _),) = results(grid)
        assert len(result_id) <= 255

    def test_none_publishes_nothing(self, grid: Grid) -> None:
        grid.put({})
        Worker({"train": lambda **_: None}, url=grid.url).run(burst=True)
        assert results(grid) == []
        assert grid.count() == {}

    def test_an_empty_dict_is_published(self, grid: Grid) -> None:
        grid.put({})
        Worker({"train": lambda **_: {}}, url=grid.url).run(burst=True)
        assert [body for _, body in results(grid)] == [{}]

    @pytest.mark.parametrize("value", [{"a": "\ud800"}, {"a": {(1,): 2}}])
    def test_one_that_cannot_be_written_makes_the_job_a_dead_letter(
        self, value: Any, grid: Grid
    ) -> None:
        grid.put({"run": 1})
        assert Worker({"train": lambda run: value}, url=grid.url).run(burst=True) == 1
        assert results(grid) == []
        ((body, reason, attempts),) = grid.dead()
        assert (body, attempts) == (b'{"run": 1}', 1)
        assert reason.startswith("its result cannot be published: ")
        assert "it was {'a': " in reason

    def test_every_subscriber_gets_a_copy(self, grid: Grid) -> None:
        mine = grid.consumer("completed")
        mine.queue = "mine"
        assert mine.poll_message(lambda **_: None) is None
        grid.put({})
        Worker({"train": lambda **_: {"loss": 1}}, url=grid.url).run(burst=True)
        assert mine.poll_message(lambda loss: loss) == 1
        assert len(results(grid)) == 1

    def test_is_accepted_before_the_job_is_acknowledged(self, grid: Grid) -> None:
        worker = Worker({"train": lambda **_: {}}, url=grid.url)
        client = grid.flaky(worker)
        grid.put({})
        worker.run(burst=True)
        assert [call for call in client.calls if call in ("renew", "publish", "ack")] == [
            "renew", "publish", "ack",
        ]  # fmt: skip


class TestSeveral:
    def test_share_the_load(self, grid: Grid) -> None:
        grid.put(*({"run": run} for run in range(60)))
        together = threading.Barrier(3, timeout=10)
        shares: dict[str, list[int]] = {}

        def train(run: int) -> None:
            share = shares.setdefault(threading.current_thread().name, [])
            if not share:
                together.wait()  # each of the three has one
            share.append(run)

        joins = [
            in_thread(Worker({"train": train}, url=grid.url).run, burst=True) for _ in range(3)
        ]
        assert sum(join() for join in joins) == 60
        assert len(shares) == 3
        assert sorted(run for share in shares.values() for run in share) == list(range(60))

    def test_an_idle_one_takes_what_a_busy_one_must_not_hold(self, grid: Grid) -> None:
        busy, go_on = threading.Event(), threading.Event()

        def slow(**kwargs: Any) -> None:
            busy.set()
            assert go_on.wait(10)

        grid.put({})
        first = Worker({"preprocess": slow, "train": slow}, url=grid.url)
        join = in_thread(first.run, max_jobs=1)
        assert busy.wait(10)
        grid.put({}, phase="preprocess")
        grid.put({})
        second = Worker(dict.fromkeys(WORK_PHASES, lambda **_: None), url=grid.url)
        assert second.run(burst=True) == 2
        go_on.set()
        assert join() == 1


class TestSubmitting:
    def test_to_its_own_phase_without_deadlock(self, grid: Grid) -> None:
        producer = grid.producer("train")
        runs: list[int] = []

        def train(run: int) -> dict[str, int]:
            runs.append(run)
            if run < 5:
                producer.process(run=run + 1)
            return {"run": run}

        producer.process(run=0)
        assert Worker({"train": train}, url=grid.url).run(burst=True) == 6
        assert runs == [0, 1, 2, 3, 4, 5]
        assert len(results(grid)) == 6

    def test_through_an_operator_of_its_own(self, grid: Grid) -> None:
        from synmanager.evaluate import EvaluateProducerOperator

        def train(kwargs: Any, host: str) -> None:
            with EvaluateProducerOperator(host, url=grid.url) as producer:
                producer.process(**kwargs)

        grid.put({"run": 1})
        seen: list[int] = []
        worker = Worker({"train": train, "evaluate": lambda run: seen.append(run)}, url=grid.url)
        assert worker.run(burst=True) == 2
        assert seen == [1]


class TestRunning:
    def test_wakes_at_once(self, grid: Grid) -> None:
        seen = threading.Event()
        worker = Worker({"train": lambda **_: seen.set()}, url=grid.url)
        client = grid.flaky(worker)
        join = in_thread(worker.run)
        until(lambda: "receive" in client.calls)
        grid.put({})
        assert seen.wait(10)
        worker.stop()
        assert join() == 1

    def test_stop_from_a_handler(self, grid: Grid) -> None:
        grid.put({}, {})
        worker = Worker({"train": lambda **_: worker.stop()}, url=grid.url)
        assert worker.run() == 1
        assert grid.count() == {"ready": 1}

    def test_stop_before_it_runs_ends_that_run_and_no_other(self, grid: Grid) -> None:
        grid.put({})
        worker = Worker({"train": lambda **_: None}, url=grid.url)
        worker.stop()
        assert worker.run() == 0
        assert worker.run(burst=True) == 1

    def test_limits(self, grid: Grid) -> None:
        grid.put({}, {}, {})
        worker = Worker({"train": lambda **_: None}, url=grid.url)
        assert worker.run(max_jobs=1) == 1
        assert worker.run(idle_timeout=0.02) == 2

    def test_waits_for_a_broker_that_is_not_there_yet(self, grid: Grid) -> None:
        worker = Worker({"train": lambda **_: None}, url=grid.url)
        client = grid.flaky(worker)
        client.fail("open", BrokerUnavailable("gone"), BrokerUnavailable("gone"))
        grid.put({})
        assert worker.run(burst=True) == 1

    def test_and_can_be_stopped_while_it_waits(self, grid: Grid) -> None:
        worker = Worker({"train": lambda **_: None}, url=grid.url)
        client = grid.flaky(worker)
        client.fail("open", *(BrokerUnavailable("gone") for _ in range(1000)))
        join = in_thread(worker.run)
        until(lambda: "open" in client.calls)
        worker.stop()
        assert join() == 0
        client.failures.clear()
        grid.put({})
        assert worker.run(burst=True) == 1

    def test_not_longer_than_the_user_s_limit(
        self, grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SYNMANAGER_RECONNECT", "0.05")
        worker = Worker({"train": lambda **_: None}, url=grid.url)
        client = grid.flaky(worker)
        client.fail("open", *(BrokerUnavailable("gone") for _ in range(1000)))
        with pytest.raises(BrokerUnavailable):
            worker.run()

    def test_a_refusal_ends_it_and_it_can_run_again(self, grid: Grid) -> None:
        worker = Worker({"train": lambda **_: None}, url=grid.url)
        client = grid.flaky(worker)
        client.fail("open", AccessRefused("wrong password"))
        with pytest.raises(AccessRefused):
            worker.run()
        assert worker.run(burst=True) == 0

    def test_not_twice_at_once(self, grid: Grid) -> None:
        grid.put({})
        refused: list[str] = []

        def again(**kwargs: Any) -> None:
            with pytest.raises(SynmanagerError, match="already running") as caught:
                worker.run()
            refused.append(str(caught.value))

        worker = Worker({"train": again}, url=grid.url)
        assert worker.run(max_jobs=1) == 1
        assert len(refused) == 1
        assert grid.count() == {}

    def test_one_connection_for_everything(self, grid: Grid) -> None:
        worker = Worker(dict.fromkeys(WORK_PHASES, lambda **_: {}), url=grid.url)
        client = grid.flaky(worker)
        for phase in WORK_PHASES:
            grid.put({}, phase=phase)
        worker.run(burst=True)
        assert client.calls.count("open") == 1
        assert client.calls.count("publish") == client.calls.count("ack") == 3
        assert not client.is_open

    def test_failures_are_retried_and_rejections_buried(self, grid: Grid) -> None:
        def train(run: int) -> None:
            raise ZeroDivisionError if run else Reject("never")

        grid.put({"run": 0}, {"run": 1})
        Worker({"train": train}, url=grid.url).run(burst=True)
        assert grid.count() == {"delayed": 1, "dead": 1}

    def test_an_interrupt_gives_the_job_back_and_disconnects(self, grid: Grid) -> None:
        def interrupt(**kwargs: Any) -> None:
            raise KeyboardInterrupt

        worker = Worker({"train": interrupt}, url=grid.url)
        client = grid.flaky(worker)
        grid.put({})
        with pytest.raises(KeyboardInterrupt):
            worker.run()
        assert grid.count() == {"ready": 1}
        assert not client.is_open


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker() as made:
        yield made


class TestAnAbsentBroker:
    @pytest.fixture
    def worker(self, broker: FakeBroker, monkeypatch: pytest.MonkeyPatch) -> Worker:
        monkeypatch.setenv("SYNMANAGER_RECONNECT", "200")
        return Worker({"train": print}, url=broker.url)

    def test_is_named_with_what_it_answers_and_again_every_minute(
        self, broker: FakeBroker, worker: Worker, caplog: pytest.LogCaptureFixture
    ) -> None:
        broker.fail("open", BrokerUnavailable("nobody is at host:1"), times=None)
        with caplog.at_level(logging.WARNING), pytest.raises(BrokerUnavailable):
            worker.run()
        first, *reminders = caplog.messages
        assert first == "the broker is not there (nobody is at host:1); waiting for it"
        assert len(reminders) == 3
        for line in reminders:
            assert re.fullmatch(r"waiting for the broker for \d+ s: nobody is at host:1", line)

    def test_is_said_to_be_there_at_last(
        self, broker: FakeBroker, worker: Worker, caplog: pytest.LogCaptureFixture
    ) -> None:
        broker.fail("open", BrokerUnavailable("nobody is at host:1"), times=3)
        with caplog.at_level(logging.WARNING):
            worker.run(burst=True)
        assert caplog.messages[1:] == ["the broker is there"]


class TestResultsThatNobodyReads:
    def run(self, broker: FakeBroker, minutes: int, *, read: bool) -> int:
        """Ten results a minute; how many end unread."""

        def train(run: int) -> dict[str, int]:
            broker.clock.advance(6.1)
            if read and run % 10 == 0:
                with CompletedConsumerOperator(url=broker.url) as consumer:
                    consumer.purge()
            return {"run": run}

        with TrainProducerOperator(url=broker.url) as producer:
            producer.submit_many([{"run": run} for run in range(10 * minutes)])
        return Worker({"train": train}, url=broker.url).run(burst=True)

    def test_are_named_where_they_get_more(
        self, broker: FakeBroker, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.run(broker, 45, read=False)
        numbers = [int(n) for n in re.findall(r"(\d+) results wait in completed", caplog.text)]
        assert len(numbers) == 3  # at about 100, 200 and 400
        assert 100 <= numbers[0] < 120
        assert all(later >= 2 * sooner for sooner, later in pairwise(numbers))

    def test_are_not_named_where_somebody_does(
        self, broker: FakeBroker, caplog: pytest.LogCaptureFixture
    ) -> None:
        self.run(broker, 15, read=True)
        assert "results wait" not in caplog.text

    def test_a_broker_that_does_not_tell_costs_no_job(self, broker: FakeBroker) -> None:
        broker.fail("count", RuntimeError("planted"), times=None)
        assert self.run(broker, 3, read=False) == 30
        broker.mend()
        assert len(broker.results()) == 30

"""What users test their own code with, and the page that shows it."""

from __future__ import annotations

import doctest
import re
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from test_pytest_plugin import run
from threads import in_thread, until

import synmanager.testkit
from synmanager import Cancelled, Reject, Retry, Worker, current_job
from synmanager.backends import Counts
from synmanager.errors import (
    BrokerUnavailable,
    ConfigurationError,
    InvalidJob,
    LeaseLost,
    NoJob,
    NotPublished,
    TimeLimit,
    TopologyError,
)
from synmanager.testkit import FakeBroker, TravellingClock, run_job
from synmanager.train import TrainConsumerOperator, TrainProducerOperator

PAGE = Path(__file__).parents[2] / "docs" / "testing.md"


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker() as made:
        yield made


def test_the_page_that_shows_it(tmp_path: Path) -> None:
    """As its reader would: its files in a directory, and pytest."""
    files = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(files) == PAGE.read_text().count("```python")
    for name, text in files:
        (tmp_path / name).write_text(text)
    done = run("-q", "-Werror", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert f"{sum(text.count('def test_') for _, text in files)} passed" in done.stdout


def test_the_fixtures_are_a_broker_for_each_test(tmp_path: Path) -> None:
    (tmp_path / "test_theirs.py").write_text(
        "import os\n"
        "import pytest\n"
        "@pytest.mark.parametrize('time', [1, 2])\n"
        "def test_theirs(time, synmanager_broker, synmanager_clock):\n"
        "    assert os.environ['SYNMANAGER_BACKEND'] == synmanager_broker.url\n"
        "    assert synmanager_clock is synmanager_broker.clock\n"
        "    from synmanager.train import TrainProducerOperator\n"
        "    with TrainProducerOperator() as producer:\n"
        "        producer.process(lr=time)\n"
        "    assert [each.job for each in synmanager_broker.waiting('train')] == [{'lr': time}]\n"
        "def test_nothing_is_left():\n"
        "    assert 'SYNMANAGER_BACKEND' not in os.environ\n"
        "    from synmanager.backends.memory import _brokers\n"
        "    assert not _brokers\n"
    )
    done = run("-q", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout


class TestBroker:
    def test_what_waits_stands_in_the_order_in_which_it_runs(self, broker: FakeBroker) -> None:
        assert broker.waiting("train") == []
        with TrainProducerOperator(url=broker.url) as producer:
            late = producer.submit({"n": 1}, delay=2000)
            producer.submit({"n": 2}, delay=1000, priority="high")
            producer.submit({"n": 3})
            producer.submit({"n": 4}, priority="high")
            gone = producer.submit({"n": 5}, delay=500)
            producer.delete(gone)
        waiting = broker.waiting("train")
        assert [each.job["n"] for each in waiting] == [4, 3, 2, 1]
        assert [each.priority for each in waiting] == ["high", "normal", "high", "normal"]
        assert waiting[3].id == late
        assert waiting[0].delay == 0
        assert 1900 < waiting[3].delay <= 2000
        broker.clock.advance(2000)
        assert [each.delay for each in broker.waiting("train")] == [0, 0, 0, 0]

    def test_a_queue_that_nobody_made_is_named(self, broker: FakeBroker) -> None:
        with pytest.raises(TopologyError, match="'tarin'"):
            broker.waiting("tarin")

    def test_a_job_that_never_ends_ends_a_drain(self, broker: FakeBroker) -> None:
        def wait(**job: Any) -> None:
            raise Retry("not yet", count=False, delay=3600)

        with TrainProducerOperator(url=broker.url) as producer:
            producer.process(lr=1)
        with pytest.raises(RuntimeError, match="1 jobs still wait after 7 attempts"):
            broker.drain({"train": wait}, at_most=7)

    def test_a_drain_of_nothing(self, broker: FakeBroker) -> None:
        assert broker.drain({"train": print, "evaluate": print}) == 0

    def test_a_drain_takes_what_is_submitted_meanwhile(self, broker: FakeBroker) -> None:
        def train(left: int) -> dict[str, int]:
            if left:
                with TrainProducerOperator(url=broker.url) as producer:
                    producer.submit({"left": left - 1}, delay=3600)
            return {"left": left}

        with TrainProducerOperator(url=broker.url) as producer:
            producer.process(left=3)
        assert broker.drain({"train": train}) == 4
        assert broker.results() == [{"left": 3}, {"left": 2}, {"left": 1}, {"left": 0}]

    def test_it_fails_as_often_as_it_was_told_and_in_that_order(self, broker: FakeBroker) -> None:
        broker.fail("open", BrokerUnavailable("one"), times=2)
        broker.fail("open", BrokerUnavailable)
        operator = TrainProducerOperator(url=broker.url)
        for reason in ("one", "one", "^$"):
            with pytest.raises(BrokerUnavailable, match=reason):
                operator.connect()
        operator.connect()
        operator.disconnect()

    def test_a_batch_that_was_cut_off_says_so(self, broker: FakeBroker) -> None:
        with TrainProducerOperator(url=broker.url) as producer:
            broker.fail("publish", BrokerUnavailable("gone"), times=None)
            with pytest.raises(NotPublished) as caught:
                producer.submit_many([{"n": 1}, {"n": 2}])
            assert len(caught.value.unconfirmed) == 2
            broker.mend()
            assert producer.submit_many([{"n": 1}])

    def test_a_lease_is_lost_on_command(self, broker: FakeBroker) -> None:
        def train(**job: Any) -> None:
            broker.fail("renew", LeaseLost("taken back"))
            broker.clock.advance(30)
            job_now = current_job()
            job_now.check()

        ends: list[type[BaseException]] = []

        def noting(**job: Any) -> None:
            try:
                train(**job)
            except LeaseLost as error:
                ends.append(type(error))
                raise

        with TrainProducerOperator(url=broker.url) as producer:
            producer.process(lr=1)
        Worker({"train": noting}, url=broker.url).run(max_jobs=1)
        assert ends == [LeaseLost]

    def test_what_cannot_fail_is_refused(self, broker: FakeBroker) -> None:
        with pytest.raises(ValueError, match="a broker can open, declare, publish"):
            broker.fail("pubish", BrokerUnavailable)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="once or more, not 0 times"):
            broker.fail("publish", BrokerUnavailable, times=0)


class TestClock:
    def test_a_long_job_keeps_its_lease_while_time_is_skipped(self, broker: FakeBroker) -> None:
        runs: list[bool] = []

        def train(**job: Any) -> None:
            broker.clock.advance(timedelta(hours=1))
            job_now = current_job()
            runs.append(job_now.lease_lost)

        with TrainProducerOperator(url=broker.url) as producer:
            producer.process(lr=1)
        assert broker.drain({"train": train}) == 1
        assert runs == [False]

    def test_a_callback_that_does_not_look_is_given_up(self, broker: FakeBroker) -> None:
        never = threading.Event()
        raised: list[type[BaseException]] = []

        def hang(**job: Any) -> None:
            try:
                broker.clock.advance(3600)
                while not never.wait(0.01):
                    pass
            except TimeLimit as error:
                raised.append(type(error))
                raise

        with TrainProducerOperator(url=broker.url) as producer:
            producer.process(lr=1)
        broker.drain({"train": hang}, time_limit=60, max_attempts=1)
        assert raised == [TimeLimit]
        (letter,) = broker.dead_letters("train")
        assert "time limit of 60 s" in letter.reason

    def test_a_loop_that_has_nothing_to_do_ends_when_its_time_is_over(
        self, broker: FakeBroker
    ) -> None:
        with TrainConsumerOperator(url=broker.url) as consumer:
            ended = threading.Event()

            def listen() -> None:
                consumer.listen_message(print, idle_timeout=3600)
                ended.set()

            listening = in_thread(listen)

            def pass_time() -> bool:
                broker.clock.advance(600)
                return ended.is_set()

            until(pass_time, "an hour is over")
            listening()

    def test_a_broker_that_stays_away_costs_a_loop_no_time(self, broker: FakeBroker) -> None:
        broker.fail("receive", BrokerUnavailable("gone"), times=20)
        begin = broker.clock.now()
        assert broker.drain({"train": print}) == 0
        assert broker.clock.now() - begin > 30

    def test_time_goes_forward(self) -> None:
        for wrong in (-1, float("inf"), float("nan"), "1"):
            with pytest.raises(ValueError, match="time goes forward"):
                TravellingClock().advance(wrong)  # type: ignore[arg-type]


class TestRunJob:
    def test_a_handler_sees_the_job_that_it_is_given(self) -> None:
        def handler(kwargs: dict[str, Any], host: str) -> tuple[Any, ...]:
            now = current_job()
            return kwargs, host, now.id, now.attempt, now.phase, now.rank.name, now.time_limit

        outcome = run_job(
            handler,
            {"lr": (1, 2)},
            phase="evaluate",
            attempt=3,
            job_id="nightly",
            priority="high",
            time_limit=60,
        )
        assert outcome.value == ({"lr": [1, 2]}, "localhost", "nightly", 3, "evaluate", "HIGH", 60)
        assert outcome.result is None
        assert outcome.ended == "succeeded"
        assert outcome.job is not None
        assert outcome.job.attempt == 3
        with pytest.raises(NoJob):
            current_job()

    @pytest.mark.parametrize(
        ("error", "attempt", "ended", "delay"),
        [
            (ValueError("no"), 1, "retried", None),
            (ValueError("no"), 5, "died", None),
            (Retry("no", delay=7200), 1, "retried", 7200),
            (Retry("no", delay=5, count=False), 5, "given_back", 5),
            (Reject("no"), 1, "died", None),
            (SystemExit("no"), 1, "retried", None),
        ],
    )
    def test_what_it_comes_to(
        self, error: BaseException, attempt: int, ended: str, delay: float | None
    ) -> None:
        def handler(**job: Any) -> None:
            raise error

        outcome = run_job(handler, {}, attempt=attempt)
        assert outcome.ended == ended
        assert "no" in outcome.reason
        assert outcome.error is error
        assert outcome.result is None
        assert (outcome.delay is None) == (ended == "died")
        if delay is not None:
            assert outcome.delay == delay
        with pytest.raises(type(error), match="no"):
            print(outcome.value)

    def test_the_limit_of_attempts_is_the_caller_s(self) -> None:
        def handler(**job: Any) -> None:
            raise ValueError

        assert run_job(handler, {}, attempt=2, max_attempts=2).ended == "died"

    def test_a_job_that_was_never_run_says_why(self) -> None:
        outcome = run_job(lambda lr: lr, {"epochs": 3})
        assert outcome.ended == "died"
        with pytest.raises(Exception, match="cannot take it"):
            print(outcome.value)
        outcome = run_job(print, {}, attempt=6)
        assert outcome.ended == "died"
        with pytest.raises(AssertionError, match="started 5 times without an end"):
            print(outcome.value)

    def test_checkpoints_are_json(self) -> None:
        def handler(**job: Any) -> Any:
            now = current_job()
            found = now.saved
            now.save({"epoch": (1, 2)})
            return {"found": found}

        outcome = run_job(handler, {}, saved={"epoch": 0})
        assert outcome.result == {"found": {"epoch": 0}}
        assert outcome.saved == {"epoch": [1, 2]}

        def saves_too_much(**job: Any) -> None:
            now = current_job()
            now.save("x" * 70_000)

        assert isinstance(run_job(saves_too_much, {}).error, InvalidJob)

    def test_a_cancelled_job_may_finish_all_the_same(self) -> None:
        seen: list[bool] = []

        def handler(**job: Any) -> dict[str, int]:
            now = current_job()
            seen.append(now.cancelled)
            return {"done": 1}

        outcome = run_job(handler, {}, cancelled=True)
        assert outcome.ended == "succeeded"
        assert outcome.result == {"done": 1}
        assert seen == [True]

        def leaves(**job: Any) -> None:
            raise Cancelled("I was asked to")

        assert run_job(leaves, {}, cancelled=True).ended == "cancelled"
        assert run_job(leaves, {}).ended == "retried"

    def test_an_archiver_s_callback(self) -> None:
        outcome = run_job(lambda loss: {"kept": loss}, {"loss": 1}, phase="completed")
        assert outcome.value == {"kept": 1}
        assert outcome.result is None

    def test_ctrl_c_is_not_the_handler_s(self) -> None:
        def handler(**job: Any) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_job(handler, {})

    def test_what_cannot_be_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="not 'tarin'"):
            run_job(print, {}, phase="tarin")  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="not 0"):
            run_job(print, {}, attempt=0)
        with pytest.raises(InvalidJob):
            run_job(print, {"a": {1}})

    def test_no_thread_is_left(self) -> None:
        before = set(threading.enumerate())
        run_job(lambda **job: {"a": 1}, {})
        until(lambda: set(threading.enumerate()) <= before, "its threads have ended")


@pytest.mark.parametrize("module", ["broker", "clock", "running"])
def test_the_examples(module: str) -> None:
    failed, tried = doctest.testmod(
        __import__(f"synmanager.testkit.{module}", fromlist=["*"]), verbose=False
    )
    assert (failed, tried > 0) == (0, True)


def test_the_kit_and_the_contract_are_told_apart() -> None:
    assert "synmanager.testing" in (synmanager.testkit.__doc__ or "")


def test_a_loop_that_is_idle_ends_by_the_clock(broker: FakeBroker) -> None:
    worker = Worker({"train": lambda lr: None}, url=broker.url)
    with TrainProducerOperator(url=broker.url) as producer:
        producer.process(lr=0.1)
        spy = broker.connect()
        join = in_thread(lambda: worker.run(idle_timeout=3600))
        # Not before: on the way from one hand to the next, a job's lease would run out.
        until(lambda: spy.count("train") == Counts(0, 0, 0, 0), "the job has run")

        def has_ended() -> bool:
            broker.clock.advance(1800)
            return not worker._runner._loops

        until(has_ended)
    assert join() == 1

"""What operators can do beyond 0.1.0: ids, ranks, delays, batches, removal, dead letters."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from grid import Grid

from synmanager import Rank, Reject, current_job
from synmanager.base import BaseOperator, ConsumerOperator, ProducerOperator
from synmanager.errors import (
    BrokerUnavailable,
    ConfigurationError,
    InvalidJob,
    NotConnected,
    NotPublished,
    PublishInterrupted,
    PublishRefused,
    SynmanagerError,
)
from synmanager.job import Job
from synmanager.message import TIME_LIMIT
from synmanager.train import TrainConsumerOperator, TrainProducerOperator


def runs(grid: Grid) -> list[Any]:
    """Run what is ready, and return which, in order."""
    seen: list[Any] = []
    consumer = grid.consumer()
    while consumer.check_message_count():
        consumer.poll_message(lambda run, **_: seen.append(run))
    return seen


class TestSubmit:
    def test_returns_the_job_s_id(self, grid: Grid) -> None:
        job_id = grid.producer().submit({"run": 1})
        seen: list[Job | None] = []
        grid.consumer().poll_message(lambda **_: seen.append(current_job()))
        assert seen[0] is not None
        assert seen[0].id == job_id

    def test_takes_an_id(self, grid: Grid) -> None:
        producer = grid.producer()
        assert producer.submit({"run": 1}, job_id="mine") == "mine"
        assert producer.submit({"run": 2}, job_id="mine") == "mine"  # still queued: once is enough
        assert runs(grid) == [1]

    @pytest.mark.parametrize("job_id", ["", "x" * 201, "é" * 101, 7, b"id", "\ud800"])
    def test_refuses_an_id_that_cannot_be(self, job_id: Any, grid: Grid) -> None:
        producer = grid.producer()
        for submit in (
            lambda: producer.submit({}, job_id=job_id),
            lambda: producer.submit_many([{}, {}], job_ids=["fine", job_id]),
            lambda: producer.delete(job_id),
        ):
            with pytest.raises(InvalidJob, match="job_id must be a string of 1 to 200 bytes"):
                submit()
        assert grid.count() == {}

    def test_takes_none_of_the_job_s_keys_for_an_option(self, grid: Grid) -> None:
        job = {"priority": "urgent", "delay": -1, "job_id": 7, "self": 0, "job": 1}
        grid.producer().submit(job)
        assert grid.consumer().poll_message(process_callback=lambda kwargs, _: kwargs) == job

    def test_ranks(self, grid: Grid) -> None:
        producer = grid.producer()
        ranks: list[Any] = ["low", "normal", "HIGH", Rank.LOW, Rank.HIGH, 1]
        for run, rank in enumerate(ranks):
            producer.submit({"run": run}, priority=rank)
        producer.process(run=6)
        assert runs(grid) == [2, 4, 1, 5, 6, 0, 3]

    @pytest.mark.parametrize("priority", ["urgent", 7, None, ""])
    def test_refuses_a_rank_that_there_is_not(self, priority: Any, grid: Grid) -> None:
        producer = grid.producer()
        with pytest.raises(InvalidJob, match="'high', 'normal', 'low'"):
            producer.submit({}, priority=priority)
        with pytest.raises(InvalidJob, match="'high', 'normal', 'low'"):
            producer.submit_many([{}], priority=priority)
        assert grid.count() == {}

    def test_a_delayed_job_appears_when_it_is_due(self, grid: Grid) -> None:
        grid.producer().submit({"run": 1}, delay=3600)
        assert grid.count() == {"delayed": 1}
        grid.clock.advance(3599)
        assert runs(grid) == []
        grid.clock.advance(2)
        assert runs(grid) == [1]

    @pytest.mark.parametrize("delay", [90, 90.0, timedelta(minutes=1.5), Decimal(90)])
    def test_a_delay_is_seconds_or_a_timedelta(self, delay: Any, grid: Grid) -> None:
        producer = grid.producer()
        producer.submit({"run": 1}, delay=delay)
        producer.submit_many([{"run": 2}], delay=delay)
        grid.clock.advance(89)
        assert runs(grid) == []
        grid.clock.advance(2)
        assert runs(grid) == [1, 2]

    def test_a_delay_longer_than_the_broker_can_do_is_as_long_as_that(
        self, grid: Grid, caplog: pytest.LogCaptureFixture
    ) -> None:
        producer = grid.producer()
        flaky = grid.flaky(producer)
        flaky.features = replace(flaky.features, longest_delay=100.0)
        producer.submit({"run": 1}, delay=100)
        assert caplog.records == []
        for delay in (timedelta.max, 10**300):
            producer.submit({"run": 2}, delay=delay)
        assert len(caplog.records) == 1  # once for each operator
        assert "delayed by 100 s, the longest that this broker can do" in caplog.text
        grid.clock.advance(101)
        assert runs(grid) == [1, 2, 2]

    @pytest.mark.parametrize(
        "delay",
        [-1, float("nan"), float("inf"), "soon", None, True, 10**400, timedelta(seconds=-1), 1j],
    )
    def test_refuses_a_delay_that_cannot_be(self, delay: Any, grid: Grid) -> None:
        producer = grid.producer()
        with pytest.raises(InvalidJob, match="delay"):
            producer.submit({}, delay=delay)
        with pytest.raises(InvalidJob, match="delay"):
            producer.submit_many([{}], delay=delay)
        assert grid.count() == {}


class TestTimeLimit:
    @pytest.mark.parametrize("limit", [90, 90.0, timedelta(minutes=1.5), Decimal(90)])
    def test_travels_as_a_header(self, limit: Any, grid: Grid) -> None:
        producer, client = grid.producer(), grid.client()
        producer.submit({}, time_limit=limit)
        producer.submit_many([{}, {}], time_limit=limit)
        producer.submit({})
        seen = []
        for _ in range(4):
            delivery = client.receive(["train"], 0)
            assert delivery is not None
            assert delivery.message.body == b"{}"
            seen.append(dict(delivery.message.headers))
        assert seen == [{TIME_LIMIT: "90.0"}] * 3 + [{}]

    @pytest.mark.parametrize("limit", [0, -1, 0.01, 31 * 86_400, float("nan"), True, "1", [90]])
    def test_refuses_one_that_cannot_be(self, limit: Any, grid: Grid) -> None:
        producer = grid.producer()
        with pytest.raises(InvalidJob, match=r"time_limit must be from 0\.1 to 2,592,000 seconds"):
            producer.submit({}, time_limit=limit)
        with pytest.raises(InvalidJob, match="time_limit"):
            producer.submit_many([{}], time_limit=limit)
        assert grid.count() == {}


class TestSubmitMany:
    def test_takes_ids(self, grid: Grid) -> None:
        producer = grid.producer()
        jobs = [{"run": 1}, {"run": 2}]
        assert producer.submit_many(jobs, job_ids=iter(["a", "b"])) == ["a", "b"]
        assert producer.submit_many([*jobs, {"run": 3}], job_ids=["a", "b", "c"]) == list("abc")
        assert runs(grid) == [1, 2, 3]  # a repeat is harmless
        assert producer.submit_many([], job_ids=[]) == []

    @pytest.mark.parametrize(
        ("job_ids", "why"),
        [
            (["a"], "as many as the jobs, 2, not 1"),
            (["a", "b", "c"], "as many as the jobs, 2, not more"),
            (map(str, itertools.count()), "as many as the jobs, 2, not more"),
            (["a", "a"], "differ from each other; 'a' comes twice"),
            ("ab", "not one string"),
        ],
        ids=["too few", "too many", "without end", "twice the same", "a string"],
    )
    def test_refuses_ids_that_do_not_fit(self, job_ids: Any, why: str, grid: Grid) -> None:
        with pytest.raises(InvalidJob, match=why):
            grid.producer().submit_many([{}, {}], job_ids=job_ids)
        assert grid.count() == {}

    def test_says_which_job_is_wrong(self, grid: Grid) -> None:
        jobs: list[Any] = [{}, {"a": [0, print]}]
        with pytest.raises(InvalidJob, match=r"^jobs\[1\]: job\['a'\]\[1\] is a builtin"):
            grid.producer().submit_many(jobs)
        one: Any = {"run": 1}
        with pytest.raises(InvalidJob, match=r"^jobs\[0\]: a job is a mapping"):
            grid.producer().submit_many(one)
        assert grid.count() == {}

    @pytest.mark.parametrize("error", [PublishRefused, PublishInterrupted])
    def test_what_was_not_accepted_is_in_the_error(
        self, error: type[NotPublished], grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SYNMANAGER_RECONNECT", "0.1")
        producer = grid.producer()
        flaky = grid.flaky(producer)
        jobs = [{"run": run} for run in range(4)]
        ids = [f"id-{run}" for run in range(4)]
        accept = flaky.publish

        def halfway(exchange: str, key: str, messages: Any, *, delay: float) -> int:
            accept(exchange, key, messages[:2])
            monkeypatch.setattr(flaky, "publish", accept)
            if error is PublishInterrupted:  # and the broker stays away: which hides nothing
                flaky.break_connection()
                flaky.fail("open", *[BrokerUnavailable("away")] * 100)
            raise error("planted", messages[2:])

        monkeypatch.setattr(flaky, "publish", halfway)
        with pytest.raises(error) as caught:
            producer.submit_many(jobs, job_ids=ids)
        assert [message.id for message in caught.value.unconfirmed] == ids[2:]

        flaky.failures.clear()
        assert producer.submit_many(jobs, job_ids=ids) == ids  # harmless
        assert runs(grid) == [0, 1, 2, 3]


class TestSharedIds:
    def test_one_warning_names_the_job_that_was_not_queued(
        self, grid: Grid, caplog: pytest.LogCaptureFixture
    ) -> None:
        ours, theirs = grid.producer(), grid.producer()
        ours.submit({"run": 1}, job_id="nightly\x1b")
        assert caplog.records == []
        for run in range(2, 5):
            theirs.submit({"run": run}, job_id="nightly\x1b")
        assert len(caplog.records) == 1
        assert r"1 of 1 jobs sent with 'SynMQ_topic_train' were not queued" in caplog.text
        assert r"'nightly\x1b'" in caplog.text
        assert "share its ids" in caplog.text
        assert runs(grid) == [1]
        theirs.submit({"run": 5}, job_id="nightly\x1b")  # done: free again
        assert runs(grid) == [5]

    def test_of_a_batch_it_says_how_many(
        self, grid: Grid, caplog: pytest.LogCaptureFixture
    ) -> None:
        ids = [f"id-{number}" for number in range(10)]
        producer = grid.producer()
        producer.submit_many([{}] * 3, job_ids=ids[:3])
        producer.submit_many([{}] * 10, job_ids=ids)
        assert "3 of 10 jobs" in caplog.text
        assert "'id-0', 'id-1', 'id-2', 'id-3', 'id-4', ..." in caplog.text
        assert grid.count() == {"ready": 10}

    def test_what_was_repeated_after_an_interruption_is_our_own(
        self, grid: Grid, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        producer = grid.producer()
        flaky = grid.flaky(producer)
        publish = flaky.publish

        def accepted_and_lost(exchange: str, key: str, messages: Any, *, delay: float) -> int:
            publish(exchange, key, messages, delay=delay)
            monkeypatch.setattr(flaky, "publish", publish)
            flaky.break_connection()
            raise PublishInterrupted("planted", messages)

        monkeypatch.setattr(flaky, "publish", accepted_and_lost)
        producer.submit({}, job_id="a")
        assert grid.count() == {"ready": 1}
        assert "not queued" not in caplog.text


class TestNames:
    """Names on the broker that cannot be are refused before it is asked."""

    WRONG = ("x" * 300, "é" * 200, "", "\ud800", None, 7, b"train")

    @pytest.fixture
    def silent(self, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> Iterator[Grid]:
        """Nothing may be asked of the broker in here."""
        yield grid
        assert grid.broker.queues == {}

    @pytest.mark.parametrize("name", ["exchange_name", "exchange_type", "routing_key", "queue"])
    @pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:12])
    def test_set_before_connect(self, name: str, value: Any, silent: Grid) -> None:
        if (name, value) in (("routing_key", ""), ("queue", None)):
            return  # which are legal
        kinds: list[type[BaseOperator]] = [ConsumerOperator, TrainConsumerOperator]
        if name != "queue":
            kinds += [ProducerOperator, TrainProducerOperator]
        for kind in kinds:
            operator = kind(url=silent.url)
            if kind is ConsumerOperator:
                operator.queue = "mine"  # type: ignore[attr-defined]
            setattr(operator, name, value)
            with pytest.raises(ConfigurationError, match=rf"^{name} must be a string") as error:
                operator.connect()
            assert len(str(error.value)) < 250
            assert not operator.is_connected()

    @pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:12])
    def test_set_after_connect(self, value: Any, grid: Grid) -> None:
        producer, consumer = grid.producer(), grid.consumer()
        for name in ("exchange_name", "routing_key") if value != "" else ("exchange_name",):
            before = getattr(producer, name)
            setattr(producer, name, value)
            with pytest.raises(ConfigurationError, match=rf"^{name} must"):
                producer.process()
            with pytest.raises(ConfigurationError, match=rf"^{name} must"):
                producer.submit({})
            setattr(producer, name, before)
        consumer.queue = value
        for use in (consumer.check_message_count, lambda: consumer.poll_message(lambda **_: 1)):
            with pytest.raises(ConfigurationError, match="queue"):
                use()
        assert grid.count() == {}

    def test_the_longest_can_be_used(self, grid: Grid) -> None:
        consumer, producer = ConsumerOperator(url=grid.url), ProducerOperator(url=grid.url)
        consumer.queue = "é" * 125
        consumer.routing_key = producer.routing_key = "k" * 255
        with consumer, producer:
            producer.process(run=1)
            assert consumer.poll_message(lambda run: run) == 1


def cyclic() -> dict[str, Any]:
    job: dict[str, Any] = {}
    job["self"] = job
    return job


def nested(depth: int) -> Any:
    return {"a": nested(depth - 1)} if depth else 0


BAD_JOBS: dict[str, Any] = {
    "cyclic": cyclic(),
    "over the limit of size": {"a": "x" * 9_000_000},
    "nested too deep": nested(600),
    "lone surrogate": {"a": "\ud800"},
    "lone surrogate in a key": {"\udfff": 1},
    "colliding keys": {"a": {1: "x", "1": "y"}},
    "keys of another kind": {"a": {(1, 2): 3}},
}


@pytest.mark.parametrize("job", BAD_JOBS.values(), ids=BAD_JOBS.keys())
def test_a_job_that_no_reader_can_read_is_refused_and_nothing_is_sent(
    job: dict[str, Any], grid: Grid
) -> None:
    producer = grid.producer()
    for submit in (
        lambda: producer.process(**job),
        lambda: producer.submit(job),
        lambda: producer.submit_many([{}, job]),
        lambda: producer.create_message(job),
    ):
        with pytest.raises(InvalidJob):
            submit()
    assert grid.count() == {}


@pytest.mark.parametrize("job", [None, [], "{}", 7, [("a", 1)]])
def test_a_job_that_is_no_mapping(job: Any, grid: Grid) -> None:
    producer = grid.producer()
    with pytest.raises(InvalidJob):
        producer.submit(job)
    with pytest.raises(InvalidJob):
        producer.submit_many([job])


class TestDelete:
    def test_removes_a_job_that_has_not_started(self, grid: Grid) -> None:
        producer, consumer = grid.producer(), grid.consumer()
        ready = producer.submit({"run": 1})
        delayed = producer.submit({"run": 2}, delay=60)
        producer.submit({"run": 3})
        assert producer.delete(ready)
        assert consumer.delete(delayed)
        assert not producer.delete(ready)
        assert runs(grid) == [3]

    def test_not_one_that_runs(self, grid: Grid) -> None:
        job_id = grid.producer().submit({})
        consumer = grid.consumer()
        assert consumer.poll_message(lambda **_: consumer.delete(job_id)) is False
        assert grid.count() == {}

    def test_of_an_operator_without_a_queue(self, grid: Grid) -> None:
        for kind in (ProducerOperator, ConsumerOperator):
            with kind(url=grid.url) as operator, pytest.raises(ConfigurationError, match="queue"):
                operator.delete("id")


class TestDeadLetters:
    @pytest.fixture
    def consumer(self, grid: Grid) -> Any:
        def refuse(run: int) -> None:
            raise Reject(f"no {run}")

        consumer = grid.consumer()
        grid.put(*({"run": run} for run in range(4)))
        consumer.listen_message(refuse, max_jobs=4)
        return consumer

    def test_are_listed_oldest_first(self, consumer: Any) -> None:
        assert [letter.reason for letter in consumer.dead_letters()] == [
            f"no {run}" for run in range(4)
        ]
        assert [letter.reason for letter in consumer.dead_letters(limit=2)] == ["no 0", "no 1"]

    def test_are_put_back_and_counted_anew(self, consumer: Any, grid: Grid) -> None:
        assert consumer.redrive(limit=1) == 1
        assert grid.count() == {"ready": 1, "dead": 3}
        attempts: list[Any] = []
        consumer.poll_message(lambda run: attempts.append((run, current_job().attempt)))
        assert attempts == [(0, 1)]
        assert consumer.redrive() == 3
        assert runs(grid) == [1, 2, 3]

    def test_are_purged(self, consumer: Any, grid: Grid) -> None:
        assert consumer.purge_dead_letters() == 4
        assert grid.count() == {}

    def test_purge_empties_the_queue_itself(self, consumer: Any, grid: Grid) -> None:
        grid.put({}, {})
        grid.producer().submit({}, delay=60)
        assert consumer.purge() == 3
        assert grid.count() == {"dead": 4}


def test_a_repr_tells_where_and_whether(grid: Grid) -> None:
    consumer = TrainConsumerOperator("mq.example", url=grid.url)
    assert repr(consumer) == "<TrainConsumerOperator memory://mq.example not connected>"
    with consumer:
        assert repr(consumer) == "<TrainConsumerOperator memory://mq.example connected>"


def test_a_repr_is_one_line(grid: Grid) -> None:
    consumer = TrainConsumerOperator(url=grid.url)
    consumer.host = "mq\n\x1b[2J"
    assert repr(consumer) == r"<TrainConsumerOperator memory://mq\n\x1b[2J not connected>"


def test_features_tell_what_the_broker_can(grid: Grid) -> None:
    assert TrainProducerOperator(url=grid.url).features.deletes


def test_every_error_has_one_root() -> None:
    assert issubclass(NotConnected, SynmanagerError)
    assert issubclass(NotConnected, RuntimeError)

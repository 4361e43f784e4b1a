"""What operators can do beyond 0.1.0: ids, ranks, delays, batches, removal, dead letters."""

from __future__ import annotations

from typing import Any

import pytest
from grid import Grid

from synmanager import Rank, Reject, current_job
from synmanager.errors import ConfigurationError, InvalidJob, NotConnected, SynmanagerError
from synmanager.job import Job
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

    @pytest.mark.parametrize("job_id", ["", "x" * 201, "é" * 101, 7, b"id"])
    def test_refuses_an_id_that_cannot_be(self, job_id: Any, grid: Grid) -> None:
        with pytest.raises(InvalidJob, match="job_id"):
            grid.producer().submit({}, job_id=job_id)
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

    @pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), "soon", None])
    def test_refuses_a_delay_that_cannot_be(self, delay: Any, grid: Grid) -> None:
        producer = grid.producer()
        with pytest.raises(InvalidJob, match="delay"):
            producer.submit({}, delay=delay)
        with pytest.raises(InvalidJob, match="delay"):
            producer.submit_many([{}], delay=delay)
        assert grid.count() == {}


class TestSubmitMany:
    def test_returns_the_ids_in_order(self, grid: Grid) -> None:
        ids = grid.producer().submit_many({"run": run} for run in range(100))
        seen: list[Any] = []

        def note(run: int) -> None:
            job = current_job()
            assert job is not None
            seen.append((run, job.id))

        grid.consumer().listen_message(note, max_jobs=100)
        assert seen == list(enumerate(ids))
        assert len(set(ids)) == 100

    def test_nothing_is_sent_if_one_is_wrong(self, grid: Grid) -> None:
        cyclic: dict[str, Any] = {}
        cyclic["self"] = cyclic
        with pytest.raises(InvalidJob):
            grid.producer().submit_many([{"run": 1}, cyclic])
        assert grid.count() == {}

    def test_ranks_and_delays_all(self, grid: Grid) -> None:
        producer = grid.producer()
        producer.submit_many([{"run": 1}, {"run": 2}], priority="high", delay=60)
        producer.submit_many([{"run": 3}])
        grid.clock.advance(61)
        assert runs(grid) == [1, 2, 3]

    def test_of_none(self, grid: Grid) -> None:
        assert grid.producer().submit_many([]) == []
        assert grid.count() == {}


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
        from synmanager.base import ConsumerOperator, ProducerOperator

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
        consumer.poll_message(lambda run: attempts.append((run, current_job().attempt)))  # type: ignore[union-attr]
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


def test_features_tell_what_the_broker_can(grid: Grid) -> None:
    assert TrainProducerOperator(url=grid.url).features.deletes


def test_every_error_has_one_root() -> None:
    assert issubclass(NotConnected, SynmanagerError)
    assert issubclass(NotConnected, RuntimeError)

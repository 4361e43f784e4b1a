"""Connecting and disconnecting: twice, in a callback, from other threads."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from grid import Grid, in_thread, until

from synmanager.errors import BrokerUnavailable, NotConnected, TopologyError
from synmanager.train import TrainConsumerOperator, TrainProducerOperator


def test_double_connect_and_disconnect_are_no_ops(grid: Grid) -> None:
    for operator in (TrainProducerOperator(url=grid.url), TrainConsumerOperator(url=grid.url)):
        operator.disconnect()
        operator.connect()
        connection = operator.connection
        operator.connect()
        assert operator.connection is connection
        assert operator.is_connected()
        operator.disconnect()
        operator.disconnect()
        assert not operator.is_connected()


def test_an_operator_may_be_connected_again(grid: Grid) -> None:
    producer, consumer = TrainProducerOperator(url=grid.url), TrainConsumerOperator(url=grid.url)
    for run in range(3):
        with producer, consumer:
            producer.process(run=run)
            assert consumer.listen_message(lambda run: run, max_jobs=1) == 1
            assert not grid.count()


def test_a_producer_makes_sure_that_its_job_has_somewhere_to_wait(grid: Grid) -> None:
    with TrainProducerOperator(url=grid.url) as producer:
        producer.process(run=1)
    assert grid.count() == {"ready": 1}


def test_a_refused_connect_leaves_it_not_connected(grid: Grid) -> None:
    consumer = TrainConsumerOperator(url=grid.url)
    producer = grid.producer()
    consumer.exchange_type = "fanout"  # which it is not
    with pytest.raises(TopologyError, match="SynMQ_topic_logs"):
        consumer.connect()
    assert not consumer.is_connected()
    assert producer.is_connected()
    consumer.exchange_type = "topic"
    consumer.connect()
    assert consumer.is_connected()
    consumer.disconnect()


def test_connect_fails_at_once_when_nobody_answers(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = grid.client()
    client.close()
    client.calls.clear()
    client.fail("open", BrokerUnavailable("nobody there"))
    monkeypatch.setattr("synmanager.base.create_backend", lambda address: client)
    producer = TrainProducerOperator(url=grid.url)
    with pytest.raises(ConnectionError, match="nobody there"):
        producer.connect()
    assert client.calls == ["open"]
    assert not producer.is_connected()
    producer.connect()
    assert producer.is_connected()
    producer.disconnect()


class TestInsideACallback:
    def test_submit(self, grid: Grid) -> None:
        producer = grid.producer()

        def split(run: int) -> None:
            if run:
                producer.process(run=run - 1)

        producer.process(run=3)
        assert grid.consumer().listen_message(split, idle_timeout=0.1) == 4
        assert grid.count() == {}

    @pytest.mark.parametrize("how", ["listen", "poll"])
    def test_disconnect_settles_the_job_first(self, how: str, grid: Grid) -> None:
        consumer = grid.consumer()
        client = grid.flaky(consumer)
        grid.put({"run": 1}, {"run": 2})

        def leave(run: int) -> str:
            consumer.disconnect()
            assert not consumer.is_connected()
            return "done"

        if how == "listen":
            assert consumer.listen_message(leave) == 1
        else:
            assert consumer.poll_message(leave) == "done"
        assert client.calls.count("ack") == 1
        assert not client.is_open
        assert grid.count() == {"ready": 1}
        with pytest.raises(NotConnected):
            consumer.poll_message(leave)

    def test_disconnect_and_fail(self, grid: Grid) -> None:
        consumer = grid.consumer()
        client = grid.flaky(consumer)
        grid.put({"run": 1})

        def leave(run: int) -> None:
            consumer.disconnect()
            raise ZeroDivisionError

        consumer.listen_message(leave)
        assert grid.count() == {"delayed": 1}
        assert not client.is_open

    def test_disconnect_and_connect_again(self, grid: Grid) -> None:
        consumer = grid.consumer()
        first = grid.flaky(consumer)
        grid.put({"run": 1}, {"run": 2})

        def renew(run: int) -> int:
            consumer.disconnect()
            consumer.connect()
            return run

        assert consumer.listen_message(renew) == 1
        assert consumer.is_connected()
        assert not first.is_open
        assert consumer.poll_message(lambda run: run) == 2
        assert grid.count() == {}

    def test_polling_the_same_consumer(self, grid: Grid) -> None:
        consumer = grid.consumer()
        grid.put({"run": 1}, {"run": 2}, {"run": 3})

        def more(run: int) -> Any:
            inner = consumer.poll_message(lambda run: run)
            return (run, inner)

        assert consumer.poll_message(more) == (1, 2)
        assert consumer.listen_message(more, max_jobs=1) == 1
        assert grid.count() == {}


class TestThreads:
    def test_sixteen_threads_produce_and_consume_through_one_operator_each(
        self, grid: Grid
    ) -> None:
        producer, consumer = grid.producer(), grid.consumer()
        seen: list[int] = []

        def produce(number: int) -> None:
            for run in range(50):
                producer.process(run=100 * number + run)

        def consume() -> int:
            return consumer.listen_message(lambda run: seen.append(run))

        joins = [in_thread(consume) for _ in range(8)]
        for join in [in_thread(produce, number) for number in range(8)]:
            join()
        until(lambda: len(seen) >= 400, "all have run")
        consumer.stop()
        assert sum(join() for join in joins) == 400
        assert sorted(seen) == [100 * number + run for number in range(8) for run in range(50)]
        assert grid.count() == {}

    def test_disconnect_ends_an_idle_listen_in_another_thread(self, grid: Grid) -> None:
        consumer = grid.consumer()
        client = grid.flaky(consumer)
        join = in_thread(consumer.listen_message, lambda **_: None)
        until(lambda: "receive" in client.calls)
        consumer.disconnect()
        assert join() == 0

    def test_disconnect_under_a_running_callback_gives_its_job_back(self, grid: Grid) -> None:
        consumer = grid.consumer()
        started, go_on = threading.Event(), threading.Event()

        def work(**kwargs: Any) -> None:
            started.set()
            go_on.wait(10)

        grid.put({})
        join = in_thread(consumer.listen_message, work)
        assert started.wait(10)
        consumer.disconnect()
        assert grid.count() == {"ready": 1}
        go_on.set()
        assert join() == 1
        assert grid.count() == {"ready": 1}

    def test_stop_ends_every_listen(self, grid: Grid) -> None:
        consumer = grid.consumer()
        client = grid.flaky(consumer)
        joins = [in_thread(consumer.listen_message, lambda **_: None) for _ in range(3)]
        until(lambda: client.calls.count("receive") >= 6)
        consumer.stop()
        assert [join() for join in joins] == [0, 0, 0]
        grid.put({})
        assert consumer.listen_message(lambda **_: None, max_jobs=1) == 1

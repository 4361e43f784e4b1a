"""``channel`` and ``connection`` are pika's own, and 0.1.0's callers use them by themselves."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pika
import pika.exceptions
import pytest
import released
from exchange import MAKERS, fresh_queues
from pika.adapters.blocking_connection import BlockingChannel
from roles import consumer_class, producer_class
from threads import WAIT, in_thread, until

from synmanager import current_job

KEY = released.KEYS["train"]
PERSISTENT = pika.BasicProperties(delivery_mode=2)


@pytest.fixture(params=MAKERS)
def url(request: pytest.FixtureRequest, amqp_url: str) -> Iterator[str]:
    with fresh_queues(amqp_url, request.param):
        yield amqp_url


@pytest.fixture
def producer(url: str) -> Iterator[Any]:
    with producer_class("train")(url=url) as made:
        yield made


@pytest.fixture
def consumer(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("SYNMANAGER_RETRY_DELAY", "0.1")
    monkeypatch.setenv("SYNMANAGER_MAX_ATTEMPTS", "2")
    with consumer_class("train")(url=url) as made:
        yield made


def publish(operator: Any, **job: Any) -> None:
    """What a caller does who goes past ``process``."""
    operator.channel.basic_publish(
        exchange=operator.exchange_name,
        routing_key=operator.routing_key,
        body=operator.create_message(job),
        properties=PERSISTENT,
    )


def count(operator: Any, queue: str = "train") -> int:
    found: int = operator.channel.queue_declare(queue, passive=True).method.message_count
    return found


def test_they_live_as_long_as_the_operator_is_connected(url: str) -> None:
    for operator in (producer_class("train")(url=url), consumer_class("train")(url=url)):
        assert (operator.connection, operator.channel) == (None, None)
        channels = []
        for _ in range(2):
            operator.connect()
            connection, channel = operator.connection, operator.channel
            assert isinstance(connection, pika.BlockingConnection)
            assert isinstance(channel, BlockingChannel)
            assert connection.is_open
            assert channel.is_open
            assert channel.connection is connection
            assert operator.channel is channel
            connection.process_data_events(time_limit=0)
            operator.disconnect()
            assert (operator.connection, operator.channel) == (None, None)
            assert not connection.is_open
            assert not channel.is_open
            channels.append(channel)
        assert channels[0] is not channels[1]


def test_a_caller_may_close_them(consumer: Any, producer: Any) -> None:
    consumer.channel.close()
    producer.connection.close()
    producer.process(run=1)
    assert consumer.poll_message(lambda run: run) == 1


def test_publishing_and_counting(producer: Any, consumer: Any) -> None:
    for run in range(3):
        publish(producer, run=run)
    until(lambda: count(producer) == 3)
    assert count(consumer) == consumer.check_message_count() == 3
    assert [consumer.poll_message(lambda run: run) for _ in range(3)] == [0, 1, 2]


def test_what_was_published_before_is_counted_and_taken_at_once(
    producer: Any, consumer: Any
) -> None:
    """As it was when there was one channel for all."""
    for _ in range(5):
        for run in range(50):
            publish(consumer, run=run)
        # A queue that is busy answers a count before what has arrived, and all else after it.
        until(lambda: consumer.check_message_count() == 50)
        assert consumer.purge() == 50
        for run in range(20):
            publish(consumer, run=run)
            assert consumer.poll_message(lambda run: run) == run
    consumer.channel.close()
    producer.process(run=1)
    assert consumer.check_message_count() == 1


def test_a_queue_that_is_missing_costs_no_caller_s_channel(consumer: Any) -> None:
    channel = consumer.channel
    channel.queue_delete(consumer.queue)
    assert consumer.check_message_count() == 0  # it is declared once more
    assert channel.is_open


def test_getting(producer: Any, consumer: Any) -> None:
    producer.process(run=1)
    method, properties, body = consumer.channel.basic_get(consumer.queue)
    assert consumer.parse_message(body) == {"run": 1}
    assert properties.delivery_mode == 2
    consumer.channel.basic_ack(method.delivery_tag)
    assert consumer.channel.basic_get(consumer.queue) == (None, None, None)


def test_declaring(producer: Any, consumer: Any) -> None:
    name = consumer.channel.queue_declare("", exclusive=True).method.queue
    consumer.channel.queue_bind(name, producer.exchange_name, KEY)
    producer.process(run=1)
    _, _, body = consumer.channel.basic_get(name, auto_ack=True)
    assert json.loads(body) == {"run": 1}
    assert consumer.poll_message(lambda run: run) == 1  # which has its own copy


class TestConsuming:
    """``channel.basic_consume(queue, consumer.generate_callback(f))``, as 0.1.0 itself did."""

    def test_runs_each_job_and_settles_it(self, producer: Any, consumer: Any) -> None:
        seen: list[Any] = []

        def note(run: int) -> None:
            job = current_job()
            assert job is not None
            seen.append((run, job.phase, job.attempt))
            if run == 2:
                consumer.channel.stop_consuming()

        for run in range(3):
            producer.process(run=run)
        consumer.channel.basic_qos(prefetch_count=1)
        consumer.channel.basic_consume(consumer.queue, consumer.generate_callback(note))
        consumer.channel.start_consuming()
        assert seen == [(0, "train", 1), (1, "train", 1), (2, "train", 1)]
        consumer.disconnect()
        until(lambda: count(producer) == 0)

    def test_as_in_the_readme(self, producer: Any, consumer: Any) -> None:
        seen: list[Any] = []

        def note(kwargs: Any, host: str) -> None:
            seen.append((kwargs, host))
            consumer.channel.stop_consuming()

        producer.process(run=1)
        consumer.channel.basic_consume(consumer.queue, consumer.generate_callback(note))
        consumer.channel.start_consuming()
        assert seen == [({"run": 1}, consumer.host)]

    def test_hands_a_job_to_the_broker_again_if_its_consumer_goes(
        self, producer: Any, consumer: Any
    ) -> None:
        producer.process(run=1)
        method, _, _ = consumer.channel.basic_get(consumer.queue)
        assert method is not None
        consumer.channel.close()  # which holds it
        consumer.channel = consumer.connection.channel()
        seen: list[Any] = []

        def note(run: int) -> None:
            job = current_job()
            assert job is not None
            seen.append((run, job.attempt))
            consumer.channel.stop_consuming()

        consumer.channel.basic_consume(consumer.queue, consumer.generate_callback(note))
        consumer.channel.start_consuming()
        assert seen == [(1, 2)]

    def test_a_failing_callback(
        self, producer: Any, consumer: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen: list[int] = []

        def fail_on_zero(run: int) -> None:
            seen.append(run)
            if run == 0:
                raise ZeroDivisionError("planted")

        producer.process(run=0)
        producer.process(run=1)
        consumer.channel.basic_consume(consumer.queue, consumer.generate_callback(fail_on_zero))

        def run_until(jobs: int) -> None:
            while len(seen) < jobs:
                consumer.connection.process_data_events(time_limit=WAIT)

        with caplog.at_level(logging.ERROR, "synmanager"):
            run_until(3)  # the last is the second attempt, and there is no third
            producer.process(run=2)
            run_until(4)
        assert seen == [0, 1, 0, 2]
        assert "planted" in caplog.text
        (letter,) = consumer.dead_letters()
        assert (letter.message.body, letter.attempts) == (b'{"run": 0}', 2)

    def test_with_auto_ack(self, producer: Any, consumer: Any) -> None:
        seen: list[int] = []

        def note(run: int) -> None:
            seen.append(run)
            if run == 2:
                consumer.channel.stop_consuming()
            raise ZeroDivisionError("planted")

        for run in range(3):
            producer.process(run=run)
        consumer.auto_ack = True
        consumer.channel.basic_consume(
            queue=consumer.queue,
            on_message_callback=consumer.generate_callback(note),
            auto_ack=consumer.auto_ack,
        )
        consumer.channel.start_consuming()
        assert seen == [0, 1, 2]
        assert consumer.channel.is_open  # nothing was settled twice
        assert consumer.dead_letters() == []
        consumer.disconnect()
        assert count(producer) == 0


class TestBesideListening:
    def test_inside_a_callback(self, producer: Any, consumer: Any) -> None:
        seen: list[Any] = []

        def train(run: int) -> None:
            seen.append((run, count(consumer)))
            if run < 3:
                publish(consumer, run=run + 1)  # what this job leads to

        producer.process(run=0)
        assert consumer.listen_message(train, max_jobs=4) == 4
        assert seen == [(run, 0) for run in range(4)]

    def test_a_job_taken_inside_a_callback(self, producer: Any, consumer: Any) -> None:
        def outer(run: int) -> Any:
            _, _, body = consumer.channel.basic_get(consumer.queue, auto_ack=True)
            return run, json.loads(body)["run"], consumer.poll_message(lambda run: run)

        for run in range(3):
            producer.process(run=run)
        assert consumer.poll_message(outer) == (0, 1, 2)

    def test_while_another_thread_listens(self, producer: Any, consumer: Any) -> None:
        seen: list[int] = []
        join = in_thread(lambda: consumer.listen_message(lambda run: seen.append(run), max_jobs=20))
        for run in range(20):
            publish(consumer, run=run)
            assert count(consumer, "evaluate") == 0
        assert join() == 20
        assert seen == list(range(20))

    def test_consuming_beside_it(self, producer: Any, consumer: Any) -> None:
        """Two ways into one queue share it: each job goes one way."""
        heard: list[int] = []
        consumed: list[int] = []
        join = in_thread(lambda: consumer.listen_message(lambda run: heard.append(run)))
        consumer.channel.basic_qos(prefetch_count=1)
        consumer.channel.basic_consume(
            consumer.queue, consumer.generate_callback(lambda run: consumed.append(run))
        )
        producer.submit_many([{"run": run} for run in range(50)])

        def all_are_done() -> bool:
            consumer.connection.process_data_events(time_limit=0.01)
            return len(heard) + len(consumed) >= 50

        until(all_are_done, "50 jobs")
        consumer.stop()
        assert join() == len(heard)
        assert sorted(heard + consumed) == list(range(50))

"""What a component written for 0.1.0 relies on, row by row, on the memory backend.

What concerns pika objects and the wire is proven on a real RabbitMQ, in the integration tests.
"""

from __future__ import annotations

import datetime
import json
import logging
import math
import pathlib
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
from grid import Grid

import synmanager
from synmanager.abstract import AbstractOperator
from synmanager.base import BaseOperator, ConsumerOperator, ProducerOperator
from synmanager.errors import InvalidJob, NotConnected, Undecodable, Unsupported

PHASES = ["preprocess", "train", "evaluate", "completed"]
KINDS = ["Producer", "Consumer"]


def operator_class(phase: str, kind: str) -> Any:
    return getattr(import_module(f"synmanager.{phase}"), f"{phase.capitalize()}{kind}Operator")


class TestModules:
    @pytest.mark.parametrize("phase", PHASES)
    @pytest.mark.parametrize("kind", KINDS)
    def test_both_paths_hold_the_same_classes(self, phase: str, kind: str) -> None:
        name = f"{phase.capitalize()}{kind}Operator"
        released = import_module(f"synmanager.{phase}_operations")
        assert getattr(released, name) is operator_class(phase, kind)

    @pytest.mark.parametrize("name", [*PHASES, "base", "abstract", "config"])
    def test_are_attributes_of_the_package(self, name: str) -> None:
        assert getattr(synmanager, name) is import_module(f"synmanager.{name}")
        assert name in dir(synmanager)

    def test_the_package_has_no_other_name(self) -> None:
        with pytest.raises(AttributeError, match="nonsense"):
            _ = synmanager.nonsense  # type: ignore[attr-defined]

    def test_everything_that_the_package_offers_exists(self) -> None:
        for name in synmanager.__all__:
            assert getattr(synmanager, name) is not None

    @pytest.mark.parametrize("phase", PHASES)
    def test_the_tree_of_classes(self, phase: str) -> None:
        assert issubclass(operator_class(phase, "Producer"), ProducerOperator)
        assert issubclass(operator_class(phase, "Consumer"), ConsumerOperator)
        assert issubclass(ProducerOperator, BaseOperator)
        assert issubclass(ConsumerOperator, BaseOperator)
        assert issubclass(BaseOperator, AbstractOperator)

    def test_the_abstract_operator(self) -> None:
        names = {"connect", "process", "delete", "disconnect"}
        assert AbstractOperator.__abstractmethods__ == names


def test_config_names() -> None:
    config = import_module("synmanager.config")
    expected = {
        "PREPROCESS_ROUTING_KEY": "SynMQ_topic_preprocess",
        "PREPROCESS_QUEUE": "preprocess",
        "TRAIN_ROUTING_KEY": "SynMQ_topic_train",
        "TRAIN_QUEUE": "train",
        "EVALUATE_ROUTING_KEY": "SynMQ_topic_evaluate",
        "EVALUATE_QUEUE": "evaluate",
        "COMPLETED_ROUTING_KEY": "SynMQ_fanout_completed",
        "COMPLETED_EXCHANGE_NAME": "SynMQ_fanout_logs",
        "COMPLETED_EXCHANGE_TYPE": "fanout",
        "COMPLETED_QUEUE": "completed",
    }
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", KINDS)
class TestConstructor:
    def test_host_and_port_by_position_and_by_name(self, phase: str, kind: str, grid: Grid) -> None:
        make = operator_class(phase, kind)
        for operator in (
            make("mq.example", 5673, url=grid.url),
            make(host="mq.example", port=5673, url=grid.url),
            make("mq.example", port=5673, url=grid.url),
        ):
            assert (operator.host, operator.port) == ("mq.example", 5673)

    def test_host_alone(
        self, phase: str, kind: str, grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SYNMANAGER_BACKEND", grid.url)
        operator = operator_class(phase, kind)(host="mq.example")
        assert operator.host == "mq.example"
        operator.connect()
        assert operator.is_connected()
        operator.disconnect()

    def test_a_port_of_digits(self, phase: str, kind: str, grid: Grid) -> None:
        operator = operator_class(phase, kind)("mq.example", "5673", url=grid.url)
        assert operator.port == "5673"  # as given: the caller may read it back
        operator.connect()
        operator.disconnect()

    def test_the_attributes(self, phase: str, kind: str, grid: Grid) -> None:
        operator = operator_class(phase, kind)(host="mq.example", url=grid.url)
        exchange = ("SynMQ_topic_logs", "topic")
        key = f"SynMQ_topic_{phase}"
        if phase == "completed":
            exchange, key = ("SynMQ_fanout_logs", "fanout"), "SynMQ_fanout_completed"
        assert (operator.exchange_name, operator.exchange_type) == exchange
        assert operator.routing_key == key
        assert operator.durability is True
        assert (operator.connection, operator.channel) == (None, None)
        if kind == "Consumer":
            assert operator.queue == phase
            assert operator.auto_ack is False

    def test_connection_and_channel_while_connected(
        self, phase: str, kind: str, grid: Grid
    ) -> None:
        operator = operator_class(phase, kind)(url=grid.url)
        assert not operator.is_connected()
        operator.connect()
        assert operator.is_connected()
        assert operator.connection.is_open
        assert operator.channel.is_open
        assert operator.channel is operator.channel
        operator.disconnect()
        assert not operator.is_connected()
        assert (operator.connection, operator.channel) == (None, None)


class TestMessages:
    def test_create_message_is_the_json_of_0_1_0(self, grid: Grid) -> None:
        jobs: list[dict[str, Any]] = [
            {},
            {"b": 1, "a": [1, 2.5, None, True, {"z": "é ☃", "y": ()}]},
            {"when": datetime.date(2020, 1, 2), "where": pathlib.PurePosixPath("/a"), "t": (1, 2)},
            {"nan": math.nan, "inf": -math.inf},
        ]
        for operator in (grid.producer(), grid.consumer()):
            for job in jobs:
                message = operator.create_message(job)
                assert message == json.dumps(job, default=str, sort_keys=True)
            assert operator.create_message(run_kwarg={"a": 1}) == '{"a": 1}'

    def test_parse_message(self, grid: Grid) -> None:
        for operator in (grid.producer(), grid.consumer()):
            assert operator.parse_message('{"a": [1, "é"]}') == {"a": [1, "é"]}
            assert operator.parse_message(message=b'{"a": 1}') == {"a": 1}
            for body in ("[]", "1", "nothing", "", b"\xff", '"\ud800"'):
                with pytest.raises(Undecodable):
                    operator.parse_message(body)

    def test_they_need_no_connection(self) -> None:
        operator = operator_class("train", "Producer")(url="memory")
        assert operator.parse_message(operator.create_message({"a": 1})) == {"a": 1}


class TestProducer:
    @pytest.mark.parametrize("phase", PHASES)
    def test_process_returns_the_json_that_it_published(self, phase: str, grid: Grid) -> None:
        message = grid.producer(phase).process(b=2, a="é")
        assert message == '{"a": "\\u00e9", "b": 2}'
        delivery = grid.client().receive([phase], 0)
        assert delivery is not None
        assert delivery.message.body == message.encode()

    def test_any_name_may_be_a_key_of_the_job(self, grid: Grid) -> None:
        job = {"self": 1, "kwargs": 2, "host": 3, "delay": 4, "priority": 5, "job_id": 6}
        grid.producer().process(**job)
        assert grid.consumer().poll_message(process_callback=lambda kwargs, _: kwargs) == job

    def test_publish_message_takes_what_is_already_written(self, grid: Grid) -> None:
        grid.producer().publish_message('{"b":1, "a":"é"}')
        delivery = grid.client().receive(["train"], 0)
        assert delivery is not None
        assert delivery.message.body == '{"b":1, "a":"é"}'.encode()
        assert grid.consumer().poll_message(lambda **_: True) is None  # leased to the client

    def test_publish_message_by_name(self, grid: Grid) -> None:
        grid.producer().publish_message(message="{}")
        assert grid.count() == {"ready": 1}

    @pytest.mark.parametrize("message", ["[1]", "no JSON", "", "7", b"\xff", b"{}"])
    def test_publish_message_sends_whatever_it_is_given(
        self, message: str | bytes, grid: Grid
    ) -> None:
        grid.producer().publish_message(message)
        body = message.encode() if isinstance(message, str) else message
        delivery = grid.client().receive(["train"], 0)
        assert delivery is not None
        assert delivery.message.body == body

    def test_what_is_no_json_object_is_a_dead_letter_at_its_reader(self, grid: Grid) -> None:
        grid.producer().publish_message("[1]")
        assert grid.consumer().poll_message(lambda **_: 1) is None
        assert grid.dead() == [(b"[1]", "the body is a JSON list, not an object", 1)]

    @pytest.mark.parametrize("message", ["\ud800", '"' + "a" * 1000 + '"', None, {"run": 1}, 5])
    def test_publish_message_refuses_what_no_reader_takes(
        self, message: Any, grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SYNMANAGER_MAX_BYTES", "1000")
        with pytest.raises(InvalidJob):
            grid.producer().publish_message(message)
        assert grid.count() == {}

    def test_the_routing_key_may_be_set(self, grid: Grid) -> None:
        producer = grid.producer("train")
        grid.consumer("evaluate")
        producer.routing_key = "SynMQ_topic_evaluate"
        producer.process(run=1)
        assert (grid.count("train"), grid.count("evaluate")) == ({}, {"ready": 1})

    def test_a_job_without_a_route_raises(self, grid: Grid) -> None:
        producer = grid.producer("train")
        producer.routing_key = "nobody listens"
        with pytest.raises(RuntimeError, match="nobody listens"):
            producer.process(run=1)

    def test_a_consumer_does_not_submit(self, grid: Grid) -> None:
        with pytest.raises(NotImplementedError):
            grid.consumer().process(run=1)


def returning(value: Any) -> Any:
    return lambda **_: value


class TestConsumer:
    def test_check_message_count(self, grid: Grid) -> None:
        consumer, producer = grid.consumer(), grid.producer()
        assert consumer.check_message_count() == 0
        for run in range(3):
            producer.process(run=run)
        assert consumer.check_message_count() == 3
        consumer.poll_message(lambda run: None)
        assert consumer.check_message_count() == 2

    def test_a_running_job_is_not_counted(self, grid: Grid) -> None:
        consumer = grid.consumer()
        grid.producer().process(run=1)
        assert consumer.poll_message(lambda run: consumer.check_message_count()) == 0

    @pytest.mark.parametrize("value", [True, 0, "text", {"a": 1}, [None]])
    def test_poll_message_returns_what_the_callback_returned(self, value: Any, grid: Grid) -> None:
        grid.put({"run": 1}, {"run": 2}, {"run": 3})
        consumer = grid.consumer()
        assert consumer.poll_message(returning(value)) == value
        assert consumer.poll_message(process_function=returning(value)) == value
        assert consumer.poll_message(process_callback=lambda kwargs, host: value) == value
        assert grid.count() == {}

    def test_poll_message_takes_one_at_most(self, grid: Grid) -> None:
        grid.put({"run": 1}, {"run": 2})
        assert grid.consumer().poll_message(lambda run: run) == 1
        assert grid.count() == {"ready": 1}

    def test_poll_message_of_an_empty_queue(self, grid: Grid) -> None:
        def never(**kwargs: Any) -> None:
            raise AssertionError

        assert grid.consumer().poll_message(never) is None

    def test_listen_message_by_position_and_both_names(self, grid: Grid) -> None:
        consumer = grid.consumer(host="mq.example")
        seen: list[Any] = []
        grid.put(*({"run": run} for run in range(4)))
        consumer.listen_message(lambda run: seen.append(run), max_jobs=1)
        consumer.listen_message(process_function=lambda run: seen.append(run), max_jobs=1)
        consumer.listen_message(
            process_callback=lambda kwargs, host: seen.append((kwargs, host)), max_jobs=1
        )
        consumer.listen_message(lambda kwargs, host: seen.append((kwargs, host)), max_jobs=1)
        assert seen == [0, 1, ({"run": 2}, "mq.example"), ({"run": 3}, "mq.example")]

    def test_the_callback_runs_in_the_thread_that_called(self, grid: Grid) -> None:
        import threading

        grid.put({}, {})
        seen: list[Any] = []
        consumer = grid.consumer()
        consumer.poll_message(lambda **_: seen.append(threading.current_thread()))
        consumer.listen_message(lambda **_: seen.append(threading.current_thread()), max_jobs=1)
        assert seen == [threading.current_thread()] * 2

    def test_a_failing_callback_is_logged_and_survived(
        self, grid: Grid, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(**kwargs: Any) -> None:
            raise ZeroDivisionError("planted")

        grid.put({"run": 1}, {"run": 2})
        consumer = grid.consumer()
        with caplog.at_level(logging.WARNING, "synmanager"):
            assert consumer.poll_message(fail) is None
        assert "planted" in caplog.text
        assert "Traceback" in caplog.text
        assert consumer.listen_message(fail, max_jobs=1) == 1
        assert grid.count() == {"delayed": 2}

    def test_queue_and_routing_key_may_be_set(self, grid: Grid) -> None:
        consumer = grid.consumer("train")
        consumer.queue, consumer.routing_key = "mine", "my-key"
        assert consumer.poll_message(lambda **_: 1) is None
        producer = grid.producer("train")
        producer.routing_key = "my-key"
        producer.process(run=7)
        assert consumer.check_message_count() == 1
        assert consumer.poll_message(lambda run: run) == 7

    def test_bare_operators_with_names_of_the_caller_s(self, grid: Grid) -> None:
        producer, consumer = ProducerOperator(url=grid.url), ConsumerOperator(url=grid.url)
        producer.routing_key = consumer.routing_key = "my-key"
        consumer.queue = "mine"
        with consumer, producer:
            producer.process(run=7)
            assert consumer.poll_message(lambda run: run) == 7

    def test_a_second_queue_on_completed_gets_its_own_copy(self, grid: Grid) -> None:
        first, second = grid.consumer("completed"), grid.consumer("completed")
        second.queue = "archive-of-mine"
        assert second.poll_message(lambda **_: 1) is None
        grid.producer("completed").process(loss=0.5)
        assert first.poll_message(lambda loss: loss) == 0.5
        assert second.poll_message(lambda loss: loss) == 0.5

    def test_generate_callback_runs_what_the_client_library_delivered(self, grid: Grid) -> None:
        consumer = grid.consumer()
        client = grid.flaky(consumer)
        seen: list[Any] = []
        callback = consumer.generate_callback(lambda run: seen.append(run))
        readme = consumer.generate_callback(lambda kwargs, host: seen.append((kwargs, host)))
        grid.put({"run": 1}, {"run": 2}, b"[]")
        for run in (callback, readme, callback):
            run(None, client.receive(["train"], 0), None, b"")
        assert seen == [1, ({"run": 2}, "localhost")]
        assert grid.count() == {"dead": 1}

    def test_generate_callback_settles_nothing_with_auto_ack(self, grid: Grid) -> None:
        consumer = grid.consumer()
        client = grid.flaky(consumer)
        consumer.auto_ack = True
        callback = consumer.generate_callback(process_function=lambda run: run)
        grid.put({"run": 1}, {})
        for _ in range(2):
            callback(None, client.receive(["train"], 0), None, b"")
        assert not {"ack", "nack", "bury"} & set(client.calls)

    def test_generate_callback_may_come_before_connect(self, grid: Grid) -> None:
        consumer = operator_class("train", "Consumer")(url=grid.url)
        callback = consumer.generate_callback(lambda run: run)
        with pytest.raises(NotConnected):
            callback(None, None, None, b"{}")

    def test_generate_callback_is_refused_where_there_is_no_consuming(self, grid: Grid) -> None:
        callback = grid.consumer().generate_callback(lambda **_: None)
        with pytest.raises(Unsupported):
            callback(None, None, None, b"{}")


class TestAutoAck:
    def test_the_job_is_gone_before_it_runs(self, grid: Grid) -> None:
        consumer = grid.consumer()
        consumer.auto_ack = True
        grid.put({}, {})
        assert consumer.poll_message(lambda **_: grid.count()) == {"ready": 1}
        seen: list[Any] = []
        consumer.listen_message(lambda **_: seen.append(grid.count()), max_jobs=1)
        assert seen == [{}]

    def test_a_failure_is_not_retried(self, grid: Grid) -> None:
        def fail(**kwargs: Any) -> None:
            raise ZeroDivisionError

        consumer = grid.consumer()
        consumer.auto_ack = True
        grid.put({})
        assert consumer.poll_message(fail) is None
        assert grid.count() == {}

    def test_a_body_that_cannot_be_read_is_kept_all_the_same(self, grid: Grid) -> None:
        consumer = grid.consumer()
        consumer.auto_ack = True
        grid.put(b"\xff")
        assert consumer.poll_message(lambda **_: 1) is None
        assert grid.count() == {"dead": 1}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("state", ["before connect", "after disconnect"])
class TestNotConnected:
    def test_a_producer(self, phase: str, state: str, grid: Grid) -> None:
        producer = operator_class(phase, "Producer")(url=grid.url)
        if state == "after disconnect":
            producer.connect()
            producer.disconnect()
        calls: list[Callable[[], object]] = [
            lambda: producer.process(run=1),
            lambda: producer.publish_message("{}"),
            lambda: producer.submit({}),
            lambda: producer.submit_many([{}]),
            lambda: producer.delete("id"),
        ]
        for call in calls:
            with pytest.raises(RuntimeError) as caught:
                call()
            assert type(caught.value) is NotConnected
        assert grid.count(phase) == {}

    def test_a_consumer(self, phase: str, state: str, grid: Grid) -> None:
        consumer = operator_class(phase, "Consumer")(url=grid.url)
        if state == "after disconnect":
            consumer.connect()
            consumer.disconnect()
        calls: list[Callable[[], object]] = [
            lambda: consumer.listen_message(lambda **_: 1),
            lambda: consumer.listen_message(process_callback=lambda kwargs, host: 1),
            lambda: consumer.poll_message(lambda **_: 1),
            lambda: consumer.check_message_count(),
            lambda: consumer.purge(),
            lambda: consumer.dead_letters(),
            lambda: consumer.redrive(),
            lambda: consumer.purge_dead_letters(),
            lambda: consumer.delete("id"),
        ]
        for call in calls:
            with pytest.raises(RuntimeError) as caught:
                call()
            assert type(caught.value) is NotConnected
        consumer.stop()  # nothing runs: nothing to do

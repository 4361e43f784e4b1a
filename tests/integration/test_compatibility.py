"""The compatibility surface of 0.1.0 on a real RabbitMQ, call by call.

What needs no broker to be shown is in the unit tests. How whole programs of both versions work
together is in ``test_side_by_side.py``.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from datetime import date
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

import pytest
import released
from exchange import MAKERS, fresh_queues
from roles import consumer_class, producer_class
from threads import until
from wire import Wire

from synmanager import Reject, Retry, Worker
from synmanager.base import ConsumerOperator, ProducerOperator
from synmanager.phases import WORK_PHASES

phases = pytest.mark.parametrize("phase", released.QUEUES)

JOB = {"run": 7, "b": [1, {"z": "é ☃"}], "a": None, "when": date(2020, 1, 2)}
BODY = json.dumps(JOB, default=str, sort_keys=True).encode()
READ = json.loads(BODY)


@pytest.fixture(params=MAKERS)
def channel(request: pytest.FixtureRequest, amqp_url: str) -> Iterator[Any]:
    """Plain pika, on a broker whose queues are as one version or the other made them."""
    with fresh_queues(amqp_url, request.param) as channel:
        yield channel


@pytest.fixture
def ends(amqp_url: str, channel: Any) -> Iterator[Callable[[Any], Any]]:
    """Makes and connects components of either version, and disconnects them."""
    made: list[Any] = []

    def connect(kind: Any) -> Any:
        component = kind(url=amqp_url)
        component.connect()
        made.append(component)
        return component

    yield connect
    for component in made:
        component.disconnect()


def old(kind: Any, phase: str) -> Callable[..., Any]:
    return lambda url: kind(url, phase)


def take(channel: Any, queue: str) -> tuple[Any, bytes]:
    """Take a message by plain pika: its properties and its body."""
    arrived: list[Any] = []

    def get() -> bool:
        method, properties, body = channel.basic_get(queue, auto_ack=True)
        if method is not None:
            arrived.append((properties, body))
        return bool(arrived)

    until(get, f"a message in {queue}")
    properties, body = arrived[0]
    return properties, body


@phases
class TestOldProducer:
    def test_feeds_a_new_consumer(
        self, phase: str, channel: Any, ends: Callable[[Any], Any]
    ) -> None:
        producer = ends(old(released.Producer, phase))
        consumer = ends(consumer_class(phase))
        for _ in range(6):
            producer.process(**JOB)
        assert consumer.check_message_count() == 6
        seen: list[Any] = []

        def as_released(**kwargs: Any) -> int:
            seen.append(kwargs)
            return len(seen)

        def as_in_the_readme(kwargs: dict[str, Any], host: str) -> int:
            seen.append((kwargs, host))
            return len(seen)

        assert consumer.poll_message(as_released) == 1
        assert consumer.poll_message(process_function=as_released) == 2
        assert consumer.poll_message(process_callback=as_in_the_readme) == 3
        assert consumer.poll_message(as_in_the_readme) == 4
        assert consumer.listen_message(as_released, max_jobs=1) == 1
        assert consumer.listen_message(process_callback=as_in_the_readme, max_jobs=1) == 1
        assert consumer.poll_message(as_released) is None
        assert consumer.check_message_count() == 0
        readme = (READ, consumer.host)
        assert seen == [READ, READ, readme, readme, READ, readme]

    def test_wakes_a_consumer_that_listens(
        self, phase: str, channel: Any, ends: Callable[[Any], Any]
    ) -> None:
        producer = ends(old(released.Producer, phase))
        consumer = ends(consumer_class(phase))
        caller, seen = threading.current_thread(), []
        timer = threading.Timer(0.3, lambda: producer.process(**JOB))
        timer.start()
        consumer.listen_message(
            lambda **kwargs: seen.append((threading.current_thread(), kwargs)), max_jobs=1
        )
        timer.join()
        assert seen == [(caller, READ)]


@phases
class TestNewProducer:
    def test_feeds_an_old_consumer(
        self, phase: str, channel: Any, ends: Callable[[Any], Any]
    ) -> None:
        producer = ends(producer_class(phase))
        consumer = ends(old(released.Consumer, phase))
        assert producer.process(**JOB) == BODY.decode()
        assert producer.publish_message(BODY.decode()) is None
        producer.submit(JOB, priority="high")
        producer.submit_many([JOB, JOB], priority="low")
        assert consumer.check_message_count() == 5
        seen: list[Any] = []

        def note(**kwargs: Any) -> str:
            seen.append(kwargs)
            return "done"

        assert consumer.poll_message(note) == "done"

        def until_the_last(**kwargs: Any) -> None:
            seen.append(kwargs)
            if len(seen) == 5:
                consumer.channel.stop_consuming()

        consumer.listen_message(until_the_last)
        assert seen == [READ] * 5
        assert consumer.check_message_count() == 0

    def test_and_the_wire_holds_the_bare_json(
        self, phase: str, channel: Any, ends: Callable[[Any], Any]
    ) -> None:
        producer = ends(producer_class(phase))
        ways: list[Callable[[], object]] = [
            lambda: producer.process(**JOB),
            lambda: producer.publish_message(BODY.decode()),
            lambda: producer.submit(JOB, priority="high", job_id="mine"),
            lambda: producer.submit_many([JOB]),
            lambda: producer.submit(JOB, delay=0.2),
        ]
        for submit in ways:
            submit()
            properties, body = take(channel, phase)
            assert body == BODY
            assert properties.delivery_mode == 2


class TestJobsThatComeAgain:
    """A job may start on a component of one version and end on one of the other."""

    def test_what_an_old_consumer_rejects(self, channel: Any, ends: Callable[[Any], Any]) -> None:
        ends(producer_class("train")).submit(JOB, priority="high", job_id="mine")
        assert ends(old(released.Consumer, "train")).poll_message(fail) is None
        seen: list[Any] = []

        def note(**kwargs: Any) -> bool:
            job = import_module("synmanager").current_job()
            seen.append((kwargs, job.id, job.attempt, job.rank.name))
            return True

        consumer = ends(consumer_class("train"))
        until(lambda: consumer.check_message_count() == 1, "it is back")
        assert consumer.poll_message(note)
        assert seen == [(READ, "mine", 2, "HIGH")]

    def test_what_an_old_producer_sent_and_an_old_consumer_rejects(
        self, channel: Any, ends: Callable[[Any], Any]
    ) -> None:
        ends(old(released.Producer, "train")).process(**JOB)
        assert ends(old(released.Consumer, "train")).poll_message(fail) is None
        consumer = ends(consumer_class("train"))
        until(lambda: consumer.check_message_count() == 1, "it is back")
        assert consumer.poll_message(lambda **kwargs: kwargs) == READ

    @pytest.mark.parametrize("version", ["old", "new"])
    def test_what_a_new_consumer_retries(
        self, version: str, channel: Any, ends: Callable[[Any], Any]
    ) -> None:
        producers = {"old": old(released.Producer, "train"), "new": producer_class("train")}
        ends(producers[version]).process(**JOB)

        def again(**kwargs: Any) -> None:
            raise Retry(delay=0.1)

        assert ends(consumer_class("train")).poll_message(again) is None
        properties, body = take(channel, "train")
        assert body == BODY
        assert properties.delivery_mode == 2

    def test_what_a_new_consumer_redrives(self, channel: Any, ends: Callable[[Any], Any]) -> None:
        def refuse(**kwargs: Any) -> None:
            raise Reject("planted")

        ends(old(released.Producer, "train")).process(**JOB)
        consumer = ends(consumer_class("train"))
        assert consumer.poll_message(refuse) is None
        assert [letter.message.body for letter in consumer.dead_letters()] == [BODY]
        assert consumer.redrive() == 1
        assert ends(old(released.Consumer, "train")).poll_message(lambda **job: job) == READ

    def test_what_a_worker_returns(
        self, amqp_url: str, channel: Any, ends: Callable[[Any], Any]
    ) -> None:
        ends(old(released.Producer, "train")).process(**JOB)
        assert Worker({"train": lambda **kwargs: kwargs}, url=amqp_url).run(burst=True) == 1
        properties, body = take(channel, "completed")
        assert body == BODY
        assert properties.delivery_mode == 2


@pytest.fixture
def project(amqp_url: str) -> Iterator[Any]:
    """Plain pika, on a broker whose queues this project made."""
    with fresh_queues(amqp_url, "this project") as channel:
        yield channel


@pytest.fixture
def elsewhere(amqp_url: str, project: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """The broker's host and port, of which the environment knows only the login."""
    parts = urlsplit(amqp_url)
    login, _, _ = parts.netloc.rpartition("@")
    wrong = parts._replace(netloc=f"{login}@no-such-host.invalid:1")
    monkeypatch.setenv("SYNMANAGER_BACKEND", wrong.geturl())
    return parts.hostname or "", parts.port or 5672


@phases
def test_constructors(phase: str, elsewhere: tuple[str, int]) -> None:
    host, port = elsewhere
    for make in (producer_class(phase), consumer_class(phase)):
        for operator in (
            make(host, port),
            make(host, str(port)),
            make(host, port=port),
            make(port=str(port), host=host),
        ):
            operator.connect()
            operator.connect()  # and once more is no mistake
            assert operator.is_connected()
            assert (operator.host, int(operator.port)) == (host, port)
            operator.disconnect()
            operator.disconnect()
            assert not operator.is_connected()


@phases
def test_released_modules(phase: str, elsewhere: tuple[str, int]) -> None:
    module = import_module(f"synmanager.{phase}_operations")
    name = phase.capitalize()
    producer = getattr(module, f"{name}ProducerOperator")(*elsewhere)
    consumer = getattr(module, f"{name}ConsumerOperator")(*elsewhere)
    producer.connect()
    consumer.connect()
    assert producer.process(**JOB) == producer.create_message(JOB) == BODY.decode()
    assert consumer.poll_message(lambda **kwargs: kwargs) == consumer.parse_message(BODY) == READ
    producer.disconnect()
    consumer.disconnect()


class TestAttributes:
    """0.1.0's callers set them on the finished object."""

    def test_names_of_the_caller_s(self, project: Any, elsewhere: tuple[str, int]) -> None:
        producer, consumer = ProducerOperator(*elsewhere), ConsumerOperator(*elsewhere)
        try:
            producer.routing_key = consumer.routing_key = "test-compatibility"
            consumer.queue = "test-compatibility"
            consumer.connect()
            producer.connect()
            producer.process(**JOB)
            assert consumer.check_message_count() == 1
            assert consumer.poll_message(lambda **kwargs: kwargs) == READ
        finally:
            consumer.disconnect()
            producer.disconnect()
            for queue in ("test-compatibility", "test-compatibility.dead"):
                project.queue_delete(queue)

    @pytest.mark.parametrize("when", ["before connect", "after connect"])
    def test_another_routing_key(self, when: str, project: Any, elsewhere: tuple[str, int]) -> None:
        producer = producer_class("train")(*elsewhere)
        if when == "after connect":
            producer.connect()
        producer.routing_key = released.KEYS["evaluate"]
        producer.connect()
        producer.process(**JOB)
        producer.disconnect()
        assert take(project, "evaluate")[1] == BODY
        assert project.queue_declare("train", passive=True).method.message_count == 0

    @pytest.mark.parametrize("when", ["before connect", "after connect"])
    def test_another_queue(self, when: str, project: Any, elsewhere: tuple[str, int]) -> None:
        consumer = consumer_class("train")(*elsewhere)
        if when == "after connect":
            consumer.connect()
        consumer.queue, consumer.routing_key = "evaluate", released.KEYS["evaluate"]
        consumer.connect()
        project.basic_publish("SynMQ_topic_logs", released.KEYS["evaluate"], BODY)
        assert consumer.check_message_count() == 1
        assert consumer.poll_message(lambda **kwargs: kwargs) == READ
        consumer.disconnect()

    def test_auto_ack(self, project: Any, elsewhere: tuple[str, int]) -> None:
        consumer = consumer_class("train")(*elsewhere)
        consumer.connect()
        consumer.auto_ack = True
        for _ in range(3):
            project.basic_publish("", "train", BODY)
        assert consumer.poll_message(fail) is None
        assert consumer.poll_message(lambda **kwargs: kwargs) == READ
        assert consumer.listen_message(fail, max_jobs=1) == 1
        assert consumer.dead_letters() == []
        consumer.disconnect()
        for queue in ("train", "train.dead"):
            assert project.queue_declare(queue, passive=True).method.message_count == 0


def fail(**kwargs: Any) -> None:
    raise ZeroDivisionError("planted")


class TestAFailingCallback:
    def test_is_logged_and_survived(
        self,
        project: Any,
        elsewhere: tuple[str, int],
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setenv("SYNMANAGER_RETRY_DELAY", "0.1")
        monkeypatch.setenv("SYNMANAGER_MAX_ATTEMPTS", "3")
        consumer = consumer_class("train")(*elsewhere)
        consumer.connect()
        project.basic_publish("", "train", BODY)
        with caplog.at_level(logging.WARNING, "synmanager"):
            assert consumer.poll_message(fail) is None
        assert "planted" in caplog.text
        assert "Traceback" in caplog.text
        # It neither spins nor gets lost: twice more, later each time, then it is put aside.
        assert consumer.listen_message(fail, max_jobs=2) == 2
        (letter,) = consumer.dead_letters()
        assert (letter.message.body, letter.attempts) == (BODY, 3)
        assert "planted" in letter.reason
        project.basic_publish("", "train", BODY)
        assert consumer.poll_message(lambda **kwargs: kwargs) == READ
        consumer.disconnect()


@phases
@pytest.mark.parametrize("state", ["before connect", "after disconnect"])
def test_not_connected(phase: str, state: str, elsewhere: tuple[str, int]) -> None:
    producer, consumer = producer_class(phase)(*elsewhere), consumer_class(phase)(*elsewhere)
    if state == "after disconnect":
        for operator in (producer, consumer):
            operator.connect()
            assert operator.channel.is_open
            operator.disconnect()
    calls: list[Callable[[], object]] = [
        lambda: producer.process(run=1),
        lambda: producer.publish_message("{}"),
        lambda: consumer.listen_message(lambda **_: None),
        lambda: consumer.poll_message(lambda **_: None),
        lambda: consumer.check_message_count(),
    ]
    for call in calls:
        with pytest.raises(RuntimeError):
            call()
    for operator in (producer, consumer):
        assert not operator.is_connected()
        assert (operator.connection, operator.channel) == (None, None)


class TestQueuesOfTheRelease:
    """They cannot rank, which is said; and they are left as they are, which is proven."""

    @pytest.fixture(autouse=True)
    def queues(self, amqp_url: str) -> Iterator[Any]:
        with fresh_queues(amqp_url, "0.1.0") as channel:
            yield channel

    @phases
    def test_are_taken_with_one_warning(
        self, phase: str, amqp_url: str, queues: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        with (
            caplog.at_level(logging.WARNING),
            Wire(amqp_url) as wire,
            consumer_class(phase)(url=wire.url) as consumer,
        ):
            for _ in range(2):
                queues.basic_publish("", phase, BODY)
                assert consumer.poll_message(lambda **kwargs: kwargs) == READ
            assert consumer.listen_message(fail, idle_timeout=0) == 0
            before = wire.connections
            wire.cut()
            assert consumer.check_message_count() == 0
            assert wire.connections > before, "and so the queues are declared again"
        said = [record.getMessage() for record in caplog.records]
        (warning,) = [line for line in said if "rank" in line]
        assert repr(phase) in warning
        assert "0.1.0" in warning
        queues.queue_declare(phase, durable=True)  # refused, were it another queue by now

    def test_a_worker_warns_once_for_each(
        self, amqp_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        def nothing(**kwargs: Any) -> None: ...

        with caplog.at_level(logging.WARNING):
            handlers = dict.fromkeys(WORK_PHASES, nothing)
            assert Worker(handlers, url=amqp_url).run(burst=True) == 0
        said = [record.getMessage() for record in caplog.records]
        assert len(said) == 4
        assert all(any(repr(phase) in line for line in said) for phase in released.QUEUES)

    def test_run_every_rank_in_the_order_of_submission(self, amqp_url: str) -> None:
        with (
            producer_class("train")(url=amqp_url) as producer,
            consumer_class("train")(url=amqp_url) as consumer,
        ):
            for run, priority in enumerate(["low", "high", "normal", "high"]):
                producer.submit({"run": run}, priority=priority)
            assert [consumer.poll_message(lambda run: run) for _ in range(4)] == [0, 1, 2, 3]


class TestQueuesOfThisProject:
    @phases
    def test_are_taken_without_a_word(
        self, phase: str, amqp_url: str, project: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        with (
            caplog.at_level(logging.WARNING),
            producer_class(phase)(url=amqp_url) as producer,
            consumer_class(phase)(url=amqp_url) as consumer,
        ):
            producer.process(run=1)
            assert consumer.poll_message(lambda run: run) == 1
        assert caplog.records == []

"""A queue for each rank behind one name: what quorum queues need before RabbitMQ 4.3."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pika
import pytest
from conftest import connecting, version
from threads import in_thread, until

from synmanager.backends import ExchangeSpec, QueueSpec
from synmanager.backends.rabbitmq import RabbitMQBackend
from synmanager.cli import main
from synmanager.errors import PublishInterrupted, TopologyError
from synmanager.message import Message, Rank, decode, encode
from synmanager.settings import parse_url
from synmanager.train import TrainConsumerOperator, TrainProducerOperator

LOW, NORMAL, HIGH = Rank.LOW, Rank.NORMAL, Rank.HIGH
SUFFIXES = (".high", "", ".low")
QUORUM = {"x-queue-type": "quorum"}

#: A worker that takes a job and never ends it.
HOLDER = """
import sys, time
from synmanager.backends.rabbitmq import RabbitMQBackend
from synmanager.settings import parse_url
client = RabbitMQBackend(parse_url(sys.argv[1]))
client.open()
print(client.receive([sys.argv[2]], 10).attempt, flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def quorum_url(amqp_url: str) -> str:
    return f"{amqp_url}?queues=quorum"


@pytest.fixture
def needs_sisters(plain: Any) -> None:
    if version(plain) >= (4, 3):
        pytest.skip("one quorum queue ranks by itself from RabbitMQ 4.3 on")


@pytest.fixture
def connect(quorum_url: str) -> Iterator[Callable[[], RabbitMQBackend]]:
    with connecting(quorum_url) as connect_one:
        yield connect_one


@pytest.fixture
def client(connect: Callable[[], RabbitMQBackend]) -> RabbitMQBackend:
    return connect()


@pytest.fixture
def make_spec(plain: Any) -> Iterator[Callable[[], QueueSpec]]:
    made: list[QueueSpec] = []

    def make_one() -> QueueSpec:
        name = f"ranks-{uuid4().hex}"
        made.append(QueueSpec(name, ExchangeSpec(f"{name}-exchange", "topic"), "key"))
        return made[-1]

    yield make_one
    for spec in made:
        discard(plain, spec.name, spec.exchange.name)


@pytest.fixture
def spec(make_spec: Callable[[], QueueSpec]) -> QueueSpec:
    return make_spec()


def discard(plain: Any, queue: str, exchange: str) -> None:
    plain.queue_delete(f"{queue}.dead")
    for suffix in SUFFIXES:
        plain.queue_delete(f"~{queue}{suffix}.due")
        plain.queue_delete(f"{queue}{suffix}")
        plain.exchange_delete(f"~{queue}{suffix}.due")
        plain.exchange_delete(f"{exchange}{suffix}")


def publish(client: RabbitMQBackend, spec: QueueSpec, *ranks: Rank, **options: Any) -> list[str]:
    sent = [Message(encode({"number": n}), rank=rank) for n, rank in enumerate(ranks)]
    client.publish(spec.exchange.name, spec.routing_key, sent, **options)
    return [message.id for message in sent]


def take(client: RabbitMQBackend, *specs: QueueSpec) -> Any:
    delivery = client.receive([spec.name for spec in specs], 10)
    assert delivery is not None
    return delivery


def run_down(client: RabbitMQBackend, *specs: QueueSpec) -> list[Any]:
    taken: list[Any] = []
    names = [spec.name for spec in specs]
    done = None
    while (done := client.receive(names, 0.3, done)) is not None:
        taken.append(done)
    return taken


def counts(plain: Any, queue: str) -> list[int]:
    """How many are in the queue of each rank, high first."""
    return [
        plain.queue_declare(f"{queue}{suffix}", passive=True).method.message_count
        for suffix in SUFFIXES
    ]


def consumers(plain: Any, queue: str) -> list[int]:
    """How many the queue of each rank has, high first."""
    return [
        plain.queue_declare(f"{queue}{suffix}", passive=True).method.consumer_count
        for suffix in SUFFIXES
    ]


def stands(channel_of: Any, name: str, kind: str = "queue") -> bool:
    channel = channel_of.connection.channel()
    try:
        getattr(channel, f"{kind}_declare")(name, passive=True)
    except pika.exceptions.ChannelClosedByBroker:
        return False
    channel.close()
    return True


def test_a_fanout_s_queue_has_no_sisters_by_another_route_either(
    client: RabbitMQBackend, spec: QueueSpec, plain: Any
) -> None:
    """As ``synmanager move`` reaches it."""
    fanout = QueueSpec(spec.name, ExchangeSpec(f"{spec.name}-fanout", "fanout"), "")
    client.declare(fanout, spec)
    sent = publish(client, spec, LOW, HIGH)
    assert plain.queue_declare(spec.name, passive=True).method.message_count == len(sent)
    plain.exchange_delete(fanout.exchange.name)


@pytest.mark.usefixtures("needs_sisters")
def test_what_a_sister_refuses_is_tried_again(
    client: RabbitMQBackend, spec: QueueSpec, plain: Any
) -> None:
    """A queue that has lost its leader says the same as one that is full."""
    full = {"x-max-length": 1, "x-overflow": "reject-publish"}
    plain.queue_declare(f"{spec.name}.high", durable=True, arguments={**QUORUM, **full})
    client.declare(spec)

    def fill() -> None:
        for _ in range(10):  # it has room for some more than it should
            publish(client, spec, HIGH, LOW)

    with pytest.raises(PublishInterrupted, match="leader") as caught:
        fill()
    assert [message.rank for message in caught.value.unconfirmed] == [HIGH, LOW]


def test_what_there_is_of_each_queue(
    client: RabbitMQBackend, plain: Any, needs_sisters: None, spec: QueueSpec
) -> None:
    client.declare(spec)
    names = [f"{spec.name}{suffix}" for suffix in (*SUFFIXES, ".dead")]
    for name, arguments in client.facts(names).arguments.items():
        assert arguments["x-queue-type"] == "quorum", name
        assert arguments["x-delivery-limit"] == 2**31 - 1
    assert not stands(plain, f"{spec.name}.high.dead")
    assert not client.features.requeues_at_head
    assert client.features.ranks_foreign
    publish(client, spec, NORMAL, LOW, HIGH, HIGH)
    assert counts(plain, spec.name) == [2, 1, 1]
    assert client.count(spec.name).ready == 4
    assert client.purge(spec.name) == 4
    assert client.count(spec.name).ready == 0


@pytest.mark.parametrize("declares", [True, False])
def test_ranks_are_strict_over_several_queues(
    connect: Callable[[], RabbitMQBackend],
    client: RabbitMQBackend,
    make_spec: Callable[[], QueueSpec],
    declares: bool,
) -> None:
    """Also for who has declared none of them."""
    first, second = make_spec(), make_spec()
    client.declare(first, second)
    other = connect()
    if declares:
        other.declare(first, second)
    ranks = [LOW, HIGH, NORMAL, HIGH, LOW, NORMAL]
    later, sooner = publish(other, second, *ranks), publish(other, first, *ranks)
    order = [1, 3, 2, 5, 0, 4]
    taken = run_down(other, first, second)
    assert [each.message.id for each in taken] == [
        ids[number] for ids in (sooner, later) for number in order
    ]
    assert {each.queue for each in taken} == {first.name, second.name}
    assert {each.attempt for each in taken} == {1}


def test_ranks_are_strict_for_who_waits(
    connect: Callable[[], RabbitMQBackend],
    client: RabbitMQBackend,
    plain: Any,
    needs_sisters: None,
    spec: QueueSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A job of each rank comes at once, and none of them counts as tried that was not run.

    What comes later than it is awaited meets the end of its consumer, and that would count.
    """
    monkeypatch.setattr("synmanager.backends.rabbitmq.backend._GATHERING", 10.0)
    client.declare(spec)
    worker = connect()
    worker.declare(spec)
    for _ in range(5):
        until(lambda: consumers(plain, spec.name) == [0, 0, 0], "nobody waits")
        waiting = in_thread(worker.receive, [spec.name], 10)
        until(lambda: consumers(plain, spec.name) == [1, 1, 1], "it waits")
        publish(client, spec, LOW, NORMAL, HIGH)
        taken = [waiting()]
        while len(taken) < 3:
            taken.append(worker.receive([spec.name], 10, taken[-1]))
        worker.ack(taken[-1])
        assert [each.message.rank for each in taken] == [HIGH, NORMAL, LOW]
        assert [each.attempt for each in taken] == [1, 1, 1]


def test_components_of_0_1_0_meet_theirs(
    client: RabbitMQBackend, plain: Any, spec: QueueSpec
) -> None:
    """They publish a body to the one exchange, and get from the one queue."""
    client.declare(spec)
    publish(client, spec, LOW, HIGH)
    plain.confirm_delivery()  # else it may come when the others have been taken
    plain.basic_publish(spec.exchange.name, spec.routing_key, b'{"number": "old"}')
    taken = [decode(each.message.body)["number"] for each in run_down(client, spec)]
    assert taken == [1, "old", 0]
    publish(client, spec, NORMAL)
    until(lambda: plain.basic_get(spec.name, auto_ack=True)[0] is not None, "it gets the job")


def test_a_job_of_high_rank_arrives_where_there_is_but_one_queue(
    client: RabbitMQBackend, plain: Any, needs_sisters: None, make_spec: Callable[[], QueueSpec]
) -> None:
    spec, old = make_spec(), make_spec()
    client.declare(spec)
    plain.queue_declare(old.name, durable=True)
    plain.queue_bind(old.name, spec.exchange.name, "old")
    for rank in (HIGH, LOW):
        client.publish(spec.exchange.name, "old", [Message(b"{}", rank=rank)])
        until(lambda: plain.basic_get(old.name, auto_ack=True)[0] is not None, "it has come")


def test_another_programs_queue_gets_sisters(
    amqp_url: str, plain: Any, needs_sisters: None, spec: QueueSpec,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Whatever queues are made otherwise; it is known to who has declared it."""
    plain.queue_declare(spec.name, durable=True, arguments=QUORUM)
    with closing(RabbitMQBackend(parse_url(amqp_url))) as client:
        client.open()
        client.declare(spec)
        assert "cannot rank" not in caplog.text
        publish(client, spec, LOW, NORMAL, HIGH)
        assert counts(plain, spec.name) == [1, 1, 1]
        assert [each.message.rank for each in run_down(client, spec)] == [HIGH, NORMAL, LOW]


def test_what_goes_back_and_what_is_buried_keeps_its_rank(
    client: RabbitMQBackend, plain: Any, needs_sisters: None, spec: QueueSpec
) -> None:
    client.declare(spec)
    sent = publish(client, spec, LOW, NORMAL, HIGH)
    for delivery in [take(client, spec) for _ in sent]:  # all, before the first is back
        client.nack(delivery, delay=0.2)
    until(lambda: counts(plain, spec.name) == [1, 1, 1], "all have come back")
    for rank in (HIGH, NORMAL, LOW):
        delivery = take(client, spec)
        assert (delivery.message.rank, delivery.attempt) == (rank, 2)
        client.bury(delivery, "why")
    letters = client.dead_letters(spec.name, 10)
    assert [(each.message.rank, each.queue) for each in letters] == [
        (rank, spec.name) for rank in (HIGH, NORMAL, LOW)
    ]
    assert client.redrive_letters(spec.name, [sent[0]]) == 1
    assert counts(plain, spec.name) == [0, 0, 1]
    assert client.redrive(spec.name, 10) == 2
    assert counts(plain, spec.name) == [1, 1, 1]
    assert [each.attempt for each in run_down(client, spec)] == [1, 1, 1]


def test_a_delayed_job_comes_to_the_queue_of_its_rank(
    client: RabbitMQBackend, plain: Any, needs_sisters: None, spec: QueueSpec
) -> None:
    client.declare(spec)
    publish(client, spec, LOW, NORMAL, HIGH, delay=0.2)
    until(lambda: counts(plain, spec.name) == [1, 1, 1], "all have come")


def test_a_queue_is_removed_with_its_sisters(
    client: RabbitMQBackend,
    connect: Callable[[], RabbitMQBackend],
    plain: Any,
    needs_sisters: None,
    spec: QueueSpec,
) -> None:
    client.declare(spec)
    connect().undeclare(spec)
    for suffix in SUFFIXES:
        assert not stands(plain, f"{spec.name}{suffix}")
        assert not stands(plain, f"~{spec.name}{suffix}.due")
        assert not stands(plain, f"~{spec.name}{suffix}.due", "exchange")
    with pytest.raises(TopologyError):
        client.receive([spec.name], 0)
    client.declare(spec)
    publish(client, spec, HIGH)
    assert take(client, spec).message.rank is HIGH


def test_a_sister_that_is_deleted_is_made_again(
    client: RabbitMQBackend, plain: Any, needs_sisters: None, spec: QueueSpec
) -> None:
    client.declare(spec)
    plain.queue_delete(f"{spec.name}.high")
    publish(client, spec, HIGH)  # into the one that is there
    with pytest.raises(TopologyError):
        client.receive([spec.name], 0)
    client.declare(spec)
    publish(client, spec, HIGH)
    assert counts(plain, spec.name) == [1, 1, 0]


def test_a_job_whose_holder_is_killed_comes_again_and_counts(
    quorum_url: str, client: RabbitMQBackend, needs_sisters: None, spec: QueueSpec
) -> None:
    client.declare(spec)
    (sent,) = publish(client, spec, HIGH)
    for attempt in (1, 2, 3):
        with subprocess.Popen(
            [sys.executable, "-c", HOLDER, quorum_url, spec.name], stdout=subprocess.PIPE
        ) as holder:
            assert holder.stdout is not None
            said = holder.stdout.readline()
            holder.kill()
        assert int(said) == attempt
    delivery = take(client, spec)
    assert (delivery.message.id, delivery.message.rank, delivery.attempt) == (sent, HIGH, 4)


def test_no_job_is_dropped_however_often_it_goes_back(
    client: RabbitMQBackend, connect: Callable[[], RabbitMQBackend], spec: QueueSpec
) -> None:
    client.declare(spec)
    (sent,) = publish(client, spec, LOW)
    for attempt in range(1, 51):
        delivery = take(client, spec)
        assert delivery.attempt == attempt
        client.nack(delivery)
    for attempt in range(51, 76):
        worker = connect()
        assert take(worker, spec).attempt == attempt
        worker.close()
    last = take(client, spec)
    assert (last.message.id, last.attempt) == (sent, 76)


def test_sisters_are_found_where_one_queue_ranks(
    client: RabbitMQBackend, connect: Callable[[], RabbitMQBackend], plain: Any, spec: QueueSpec
) -> None:
    """They were made before the broker was upgraded, and jobs lie in them."""
    if version(plain) < (4, 3):
        pytest.skip("nothing is found there: all are made")
    plain.confirm_delivery()
    for suffix in SUFFIXES:
        name = f"{spec.exchange.name}{suffix}"
        plain.exchange_declare(name, "topic", durable=True)
        plain.queue_declare(f"{spec.name}{suffix}", durable=True, arguments=QUORUM)
        plain.queue_bind(f"{spec.name}{suffix}", name, spec.routing_key)
        plain.basic_publish("", f"{spec.name}{suffix}", json.dumps({"in": suffix}).encode())
    client.declare(spec)
    assert [decode(each.message.body)["in"] for each in run_down(client, spec)] == [*SUFFIXES]
    publish(client, spec, LOW, HIGH)
    assert counts(plain, spec.name) == [1, 0, 1]


def test_move_takes_all_of_them(
    quorum_url: str, plain: Any, needs_sisters: None, tmp_path: Path
) -> None:
    parked = f"sqlite:///{tmp_path / 'parked.db'}"
    phases = ("preprocess", "train", "evaluate", "completed")

    def clean() -> None:
        for queue in phases:
            discard(plain, queue, "SynMQ_topic_logs")
        plain.exchange_delete("SynMQ_fanout_logs")

    clean()
    try:
        with TrainProducerOperator(url=quorum_url) as producer:
            for number in range(9):
                producer.submit({"number": number}, priority=("low", "normal", "high")[number % 3])
        assert counts(plain, "train") == [3, 3, 3]
        assert main(["move", "--from", quorum_url, "--to", parked]) == 0
        assert counts(plain, "train") == [0, 0, 0]
        assert main(["move", "--from", parked, "--to", quorum_url]) == 0
        taken: list[int] = []
        with TrainConsumerOperator(url=quorum_url) as consumer:
            assert consumer.check_message_count() == 9
            consumer.listen_message(lambda number: taken.append(number), max_jobs=9)
        assert taken == [2, 5, 8, 1, 4, 7, 0, 3, 6]
    finally:
        clean()

"""Topology that is not ours: type of exchange or key, replica, loading, disk. Named."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

import pytest
from harness.director import Director
from harness.processes import Processes
from harness.rabbitmq import RabbitMQ
from harness.redis_server import RedisServer
from harness.waiting import wait_until

from synmanager.backends.rabbitmq import RabbitMQBackend
from synmanager.errors import (
    BrokerUnavailable,
    PublishRefused,
    Reject,
    Retry,
    TopologyError,
    Unroutable,
)
from synmanager.message import Rank
from synmanager.settings import parse_url
from synmanager.testing.steps import make_message, make_spec, publish, take
from synmanager.train import TrainConsumerOperator, TrainProducerOperator

on_redis = pytest.mark.only("redis", "valkey")
on_rabbitmq = pytest.mark.only("rabbitmq")


@on_rabbitmq
def test_exchange_of_another_type(broker: RabbitMQ) -> None:
    with broker.channel() as channel:
        channel.exchange_declare("SynMQ_topic_logs", "direct", durable=True)
    with pytest.raises(TopologyError, match="SynMQ_topic_logs"):
        TrainProducerOperator(url=broker.url()).connect()


@on_rabbitmq
@pytest.mark.parametrize("kind", ["quorum", "stream"])
def test_a_virtual_host_whose_queues_are_of_another_kind(broker: RabbitMQ, kind: str) -> None:
    """Ours rank all the same, and looking at their dead letters costs none."""
    broker.make_queues_of(kind)
    ran = []

    def fail_once(key: str) -> None:
        ran.append(key)
        if len(ran) == 1:
            raise Retry("once", delay=0.1)
        if key == "last":
            raise Reject("never")

    with TrainProducerOperator(url=broker.url()) as producer:
        producer.submit({"key": "last"}, priority="low")
        producer.submit({"key": "middle"}, priority="normal")
        producer.submit({"key": "first"}, priority="high")
    with TrainConsumerOperator(url=broker.url()) as consumer:
        consumer.listen_message(fail_once, max_jobs=4)
        assert sorted(ran) == ["first", "first", "last", "middle"]
        assert ran[0] == "first"
        for _ in range(30):
            assert len(consumer.dead_letters()) == 1
        assert consumer.redrive() == 1


@on_rabbitmq
def test_a_quorum_queue_beside_which_no_sisters_may_be_made(
    broker: RabbitMQ, caplog: pytest.LogCaptureFixture
) -> None:
    broker.make_queues_of("quorum")
    url = broker.url_of_a_stranger()
    broker.forbid("stranger", r".*\\.(high|low)")
    spec = make_spec()
    with closing(RabbitMQBackend(parse_url(url))) as client:
        client.open()
        client.declare(spec)
        ranks = client.facts().version.startswith("4.3")
        assert ("may not declare a queue for each rank" in caplog.text) is not ranks
        sent = [make_message(rank.name, rank=rank) for rank in Rank]
        publish(client, spec, *sent)
        client.nack(take(client, spec))
        for _ in sent:
            client.ack(take(client, spec))
        assert client.receive([spec.name], 0) is None


@on_rabbitmq
def test_a_job_whose_queue_was_deleted_finds_it_made_anew(broker: RabbitMQ) -> None:
    with TrainProducerOperator(url=broker.url()) as producer:
        broker.delete_queue("train")
        producer.process(key="kept")
    with TrainConsumerOperator(url=broker.url()) as consumer:
        assert consumer.check_message_count() == 1


@on_rabbitmq
def test_stranded_jobs_that_were_looked_at_go_on_however_busy_their_queue_is(
    broker: RabbitMQ,
) -> None:
    """Its process says how many there are before it has taken back those that it was given."""
    stranded = "synmanager.delay.stranded"
    spec = make_spec()
    with (
        closing(RabbitMQBackend(parse_url(broker.url()))) as client,
        closing(RabbitMQBackend(parse_url(broker.url()))) as other,
        broker.channel() as channel,
    ):
        client.open()
        client.declare(spec)
        broker.delete_queue(spec.name)
        (sent,) = publish(client, spec, delay=0.1)
        tag = wait_until(lambda: channel.basic_get(stranded)[0], 20, "it is stranded").delivery_tag
        other.open()
        other.declare(make_spec())  # and so there is nothing else that it asks that queue
        broker.hold_queue(stranded, 1.0)
        channel.basic_nack(tag)
        other.declare(spec)
        assert take(other, spec).message.id == sent.id


@on_rabbitmq
def test_a_job_without_a_route_raises(broker: RabbitMQ) -> None:
    with TrainProducerOperator(url=broker.url()) as producer:
        producer.routing_key = "nowhere"
        with pytest.raises(Unroutable, match="nowhere"):
            producer.process(key="lost")


@on_redis
def test_key_of_another_type(broker: RedisServer, director: Director) -> None:
    director.declare()
    broker.delete_queue("train")
    broker.command("SET", "{synmanager}:queue:train:normal", "a string")
    with pytest.raises(TopologyError, match=r"WRONGTYPE|is of type string"):
        director.submit([{"key": "lost"}])
    with pytest.raises(TopologyError, match=r"WRONGTYPE|is of type string"):
        TrainConsumerOperator(url=broker.url()).connect()


@on_redis
def test_read_only_replica(broker: RedisServer, director: Director) -> None:
    director.declare()
    broker.command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises((TopologyError, BrokerUnavailable), match=r"replica|master"):
        director.submit([{"key": "lost"}])


@on_redis
def test_a_server_that_drops_scripts_from_its_log(
    broker: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It replays them as "default", who may not write: what was confirmed would be gone."""
    monkeypatch.setattr("synmanager.backends.redis.checks._warned", set())  # it says so once
    broker.command("ACL", "SETUSER", "default", "-@all")
    try:
        with TrainProducerOperator(url=broker.url()):
            pass
    finally:
        broker.command("ACL", "SETUSER", "default", "+@all")
    assert "may drop confirmed jobs when it restarts" in caplog.text


@on_redis
def test_a_disk_that_cannot_be_written(broker: RedisServer, director: Director) -> None:
    """MISCONF: Redis refuses writes after a snapshot that failed."""
    director.declare()
    broker.fail_snapshot()
    try:
        with pytest.raises(PublishRefused, match="disk"):
            director.submit([{"key": "refused"}])
    finally:
        broker.mend_snapshot()
    director.submit([{"key": "taken"}])


@on_redis
def test_a_server_that_loads_its_data_is_waited_for(
    broker: RedisServer,
    director: Director,
    processes: Processes,
    figures: Callable[[str], None],
) -> None:
    processes.worker("worker", results=False)
    processes.await_event("ready", 30)
    director.submit({"key": f"job-{n}", "work": 0.1} for n in range(100))
    processes.await_event("finished", 30, count=3)
    began = time.monotonic()
    broker.restart_slowly(seconds=3)
    loaded = time.monotonic()
    keys = director.submit([{"key": "after"}])  # should the others have been done before
    processes.await_done({f"job-{n}" for n in range(100)} | keys, 60)
    resumed = processes.history().check_resumed(since=loaded, within=10)
    figures(f"loading took {loaded - began:.1f} s; work again after {resumed:.2f} s")

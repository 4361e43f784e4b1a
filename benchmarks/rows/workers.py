"""A Worker over three phases against the workers of other job queues."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.bench import Bench, Row
from benchmarks.job import BODY
from benchmarks.method import Comparison, Goal, Result, Side, rounds
from benchmarks.peers.catalogue import OURS, PEERS, Peer
from benchmarks.raw.rabbitmq import take_in_order

_IN_ORDER = "pika BlockingConnection that asks three queues in their order"


def _clear_rabbitmq(url: str) -> None:
    """Remove what the peers leave behind; the queues of ours stay, empty."""
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    for queue in ("celery", "default", "default.DQ", "default.XQ", "taskiq", "taskiq.dead_letter"):
        channel.queue_delete(queue)
    for exchange in ("celery", "taskiq"):
        channel.exchange_delete(exchange)
    connection.close()


def _clear_redis(url: str) -> None:
    import redis

    with redis.Redis.from_url(url) as client:
        client.flushdb()


def _compare(scheme: str, bench: Bench) -> Iterator[Result]:
    if scheme == "amqp":
        address, clear, title = bench.brokers.amqp, _clear_rabbitmq, "RabbitMQ"
        count = bench.count(2_000)
    else:
        address, clear, title = bench.brokers.redis, _clear_redis, "Redis"
        count = bench.count(1_000)  # some peers handle a hundred in a second
    peers = [peer for peer in PEERS if scheme in peer.schemes]
    settings: dict[str, list[str]] = {}

    def measure(peer: Peer) -> float:
        settings[peer.name] = peer.fill(address, count)
        try:
            return peer.drain(address, count)
        finally:
            clear(address)

    present = [peer for peer in peers if not peer.missing]
    sides: dict[str, Side] = {peer.name: partial(measure, peer) for peer in (OURS, *present)}
    if scheme == "amqp":
        sides[_IN_ORDER] = partial(take_in_order, address, BODY, count)
    rates = rounds(sides, bench.fewer(3), warm_up=False)
    for peer in peers:
        note = peer.note
        if peer.missing:
            note = f"not measured: {', '.join(peer.missing)} is not installed"
        yield Comparison(
            f"Worker over three phases, empty handlers, {title}",
            peer.name,
            "jobs/s",
            rates[OURS.name] if not peer.missing else [],
            rates.get(peer.name, []),
            Goal(">", 1.0),
            settings.get(peer.name, []),
            note,
        )
    if scheme == "amqp":
        yield Comparison(
            f"Worker over three phases, empty handlers, {title}",
            _IN_ORDER,
            "jobs/s",
            rates[OURS.name],
            rates[_IN_ORDER],
            None,
            ["basic_get from three queues with priorities, first to last, and basic_ack; no JSON"],
        )


ROWS = (
    Row(
        "rabbitmq-workers",
        "Worker against Celery, Dramatiq and taskiq on RabbitMQ",
        partial(_compare, "amqp"),
    ),
    Row(
        "redis-workers",
        "Worker against Celery, Dramatiq, taskiq, RQ and Huey on Redis",
        partial(_compare, "redis"),
    ),
)

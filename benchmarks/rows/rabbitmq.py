"""RabbitMQ: operators against pika."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench, Row
from benchmarks.job import BODY
from benchmarks.method import Comparison, Goal, Result, rounds
from benchmarks.ours import Ours
from benchmarks.raw.rabbitmq import PIPELINE, PikaBlocking, PikaSelect

_UNIT = "jobs/s"
_MESSAGES = "body encoded beforehand, delivery mode 2, mandatory, durable classic queue"
_ALIKE = "the same with priorities and properties"
_RANKED = (
    "x-max-priority 9, and messages with id, priority and a header, as synmanager's: "
    "what these cost the broker"
)
_EACH = f"pika.BlockingConnection in the same thread, confirm_delivery(); {_MESSAGES}"


def _process(bench: Bench) -> Iterator[Result]:
    count = bench.count(3_000)
    url = bench.brokers.amqp
    with (
        Ours(url) as ours,
        PikaBlocking(url, BODY) as raw,
        PikaBlocking(url, BODY, ranked=True) as ranked,
    ):
        rates = rounds(
            {
                "ours": lambda: ours.process(count),
                "raw": lambda: raw.publish_each(count),
                "ranked": lambda: ranked.publish_each(count),
            },
            bench.repeats,
        )
    yield Comparison(
        "process() one by one, RabbitMQ",
        "pika BlockingConnection, confirm each",
        _UNIT,
        rates["ours"],
        rates["raw"],
        Goal(">=", 1.0),
        [_EACH],
    )
    yield Comparison(
        "process() one by one, RabbitMQ",
        _ALIKE,
        _UNIT,
        rates["ours"],
        rates["ranked"],
        None,
        [_EACH, _RANKED],
    )


def _submit_many(bench: Bench) -> Iterator[Result]:
    count = bench.count(10_000)
    some = count // 5  # one by one they are a rate, however many
    url = bench.brokers.amqp
    with (
        Ours(url) as ours,
        PikaBlocking(url, BODY) as raw,
        PikaSelect(url, BODY) as pipelined,
        PikaBlocking(url, BODY, ranked=True),
        PikaSelect(url, BODY, ranked=True) as ranked,
    ):
        rates = rounds(
            {
                "ours": lambda: ours.submit_many(count),
                "pipelined": lambda: pipelined.publish_pipelined(count),
                "ranked": lambda: ranked.publish_pipelined(count),
                "each": lambda: raw.publish_each(some),
            },
            bench.repeats,
        )
    work = f"submit_many of {count:,}, RabbitMQ"
    pipelining = f"pika.SelectConnection, up to {PIPELINE:,} unconfirmed; {_MESSAGES}"
    yield Comparison(
        work,
        "pika SelectConnection, pipelined confirms",
        _UNIT,
        rates["ours"],
        rates["pipelined"],
        Goal(">=", 0.8),
        [pipelining],
    )
    yield Comparison(
        work, _ALIKE, _UNIT, rates["ours"], rates["ranked"], None, [pipelining, _RANKED]
    )
    yield Comparison(
        work,
        "pika, a loop of confirmed publishes",
        _UNIT,
        rates["ours"],
        rates["each"],
        Goal(">=", 10.0),
        [_EACH],
    )


def _listen(bench: Bench) -> Iterator[Result]:
    count = bench.count(8_000)
    url = bench.brokers.amqp
    with (
        Ours(url) as ours,
        PikaBlocking(url, BODY) as raw,
        PikaSelect(url, BODY) as filling,
        PikaBlocking(url, BODY, ranked=True) as ranked,
        PikaSelect(url, BODY, ranked=True) as filling_ranked,
    ):
        rates = rounds(
            {
                "ours": lambda: ours.listen(count),
                "raw": lambda: raw.consume(count, filling.fill),
                "ranked": lambda: ranked.consume(count, filling_ranked.fill),
            },
            bench.repeats,
        )
    work = "listen_message, empty callback, RabbitMQ"
    setting = (
        "pika.BlockingConnection: basic_qos(prefetch_count=1), basic_consume, basic_ack in the "
        "callback; the body is not decoded"
    )
    yield Comparison(
        work,
        "pika BlockingConnection consumer, prefetch 1, ack",
        _UNIT,
        rates["ours"],
        rates["raw"],
        Goal(">=", 1.0),
        [setting],
    )
    yield Comparison(
        work,
        _ALIKE,
        _UNIT,
        rates["ours"],
        rates["ranked"],
        None,
        [setting, _RANKED],
    )


ROWS = (
    Row("rabbitmq-process", "process() one by one against pika", _process),
    Row("rabbitmq-submit-many", "submit_many against pika, pipelined and one by one", _submit_many),
    Row("rabbitmq-listen", "listen_message against a pika consumer", _listen),
)

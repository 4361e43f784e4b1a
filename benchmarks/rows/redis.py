"""Redis: operators against redis-py."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.bench import Bench, Row
from benchmarks.job import BODY
from benchmarks.method import Comparison, Goal, Result, rounds
from benchmarks.ours import Ours
from benchmarks.raw.redis import RedisStream

_UNIT = "jobs/s"
_CLIENT = "redis.Redis with one connection of its own; the body is encoded beforehand"


def _process(bench: Bench) -> Iterator[Result]:
    count = bench.count(3_000)
    with Ours(bench.brokers.redis) as ours, RedisStream(bench.brokers.redis, BODY) as raw:
        rates = rounds(
            {"ours": lambda: ours.process(count), "raw": lambda: raw.publish_each(count)},
            bench.repeats,
        )
    yield Comparison(
        "process() one by one, Redis",
        "redis-py XADD",
        _UNIT,
        rates["ours"],
        rates["raw"],
        Goal(">=", 0.8),
        [_CLIENT],
    )


def _submit_many(bench: Bench) -> Iterator[Result]:
    count = bench.count(10_000)
    with Ours(bench.brokers.redis) as ours, RedisStream(bench.brokers.redis, BODY) as raw:
        rates = rounds(
            {"ours": lambda: ours.submit_many(count), "raw": lambda: raw.publish_pipelined(count)},
            bench.repeats,
        )
    yield Comparison(
        f"submit_many of {count:,}, Redis",
        "redis-py pipelined XADD",
        _UNIT,
        rates["ours"],
        rates["raw"],
        Goal(">=", 0.5),
        [f"pipeline(transaction=False), all in one; {_CLIENT}"],
    )


def _listen(bench: Bench) -> Iterator[Result]:
    count = bench.count(5_000)
    with Ours(bench.brokers.redis) as ours, RedisStream(bench.brokers.redis, BODY) as raw:
        rates = rounds(
            {"ours": lambda: ours.listen(count), "raw": lambda: raw.consume(count)},
            bench.repeats,
        )
    yield Comparison(
        "listen_message, empty callback, Redis",
        "redis-py XREADGROUP COUNT 1, XACK + XDEL",
        _UNIT,
        rates["ours"],
        rates["raw"],
        Goal(">=", 0.9),
        [f"XACK and XDEL in one pipeline, without a transaction; {_CLIENT}, and never decoded"],
    )


ROWS = (
    Row("redis-process", "process() one by one against redis-py", _process),
    Row("redis-submit-many", "submit_many against a redis-py pipeline", _submit_many),
    Row("redis-listen", "listen_message against redis-py", _listen),
)

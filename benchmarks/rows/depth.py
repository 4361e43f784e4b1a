"""Whether a long queue is a slow one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.bench import Bench, Row
from benchmarks.method import Comparison, Goal, Result, rounds
from benchmarks.ours import Ours

#: Jobs that are submitted, and as many consumed, in one run: the depth stays what it is.
_CHUNK = 1_000


def _run(title: str, url: Callable[[Bench], str], bench: Bench) -> Iterator[Result]:
    deep, shallow = bench.count(1_000_000), bench.count(1_000)
    if bench.quick:
        deep *= 5
    chunk = min(_CHUNK, shallow)
    address = url(bench)
    submitted: dict[str, list[float]] = {"deep": [], "shallow": []}
    with Ours(address, "preprocess") as long, Ours(address, "train") as short:
        long.fill(deep)
        short.fill(shallow)

        def run(name: str, side: Ours) -> float:
            submitted[name].append(side.fill(chunk))
            return side.drain(chunk)

        drained = rounds(
            {"deep": partial(run, "deep", long), "shallow": partial(run, "shallow", short)},
            max(bench.repeats, 7),
        )
        assert (long.depth(), short.depth()) == (deep, shallow)
    for what, rates in (("submit_many", submitted), ("listen_message", drained)):
        warm = len(rates["deep"]) - len(drained["deep"])
        yield Comparison(
            f"{what} at a depth of {deep:,}, {title}",
            f"the same at {shallow:,}",
            "jobs/s",
            rates["deep"][warm:],
            rates["shallow"][warm:],
            Goal(">=", 0.8),
            [f"{chunk:,} jobs submitted and as many consumed, the depth standing behind them"],
        )


ROWS = (
    Row(
        "rabbitmq-depth",
        "the rate with a million jobs queued against a thousand, RabbitMQ",
        partial(_run, "RabbitMQ", lambda bench: bench.brokers.amqp),
    ),
    Row(
        "redis-depth",
        "the rate with a million jobs queued against a thousand, Redis",
        partial(_run, "Redis", lambda bench: bench.brokers.redis),
    ),
    Row(
        "memory-depth",
        "the rate with a million jobs queued against a thousand, memory",
        partial(_run, "memory", lambda bench: "memory:///depth"),
    ),
)

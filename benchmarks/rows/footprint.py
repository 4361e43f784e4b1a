"""How much memory a consumer takes, however much there is to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.bench import Bench, Row
from benchmarks.method import Comparison, Goal, Result, rounds
from benchmarks.ours import Ours
from benchmarks.programs.processes import Program

_MEBIBYTE = 1024 * 1024


def _peak(url: str, ours: Ours, jobs: int) -> float:
    """The peak of a fresh process that drains so many jobs, in MiB."""
    ours.fill(jobs)
    with Program("drain", url, "60", str(jobs)) as consumer:
        consumer.hear()
        consumer.tell()
        heard = consumer.hear()
    assert heard["jobs"] == jobs
    return float(heard["peak"]) / _MEBIBYTE


def _run(title: str, url: Callable[[Bench], str], bench: Bench) -> Iterator[Result]:
    many, few = bench.count(1_000_000), bench.count(1_000)
    address = url(bench)
    with Ours(address) as ours:
        peaks = rounds(
            {
                "many": lambda: _peak(address, ours, many),
                "few": lambda: _peak(address, ours, few),
            },
            bench.fewer(2),
            warm_up=False,
        )
    yield Comparison(
        f"consumer's memory while it drains {many:,} jobs, {title}",
        f"the same for {few:,}",
        "MiB",
        peaks["many"],
        peaks["few"],
        Goal("<=", 1.05),
        ["peak resident size of a fresh process (VmHWM)"],
    )


ROWS = (
    Row(
        "rabbitmq-memory",
        "a consumer's memory while it drains a million jobs, RabbitMQ",
        partial(_run, "RabbitMQ", lambda bench: bench.brokers.amqp),
    ),
    Row(
        "redis-memory",
        "a consumer's memory while it drains a million jobs, Redis",
        partial(_run, "Redis", lambda bench: bench.brokers.redis),
    ),
)

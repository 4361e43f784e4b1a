"""From a thousand jobs to a million: the rates, and the memory of the consumer that drains them.

One row per broker tells all of it, because a million jobs take minutes to drain.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

from benchmarks.bench import Bench, Row
from benchmarks.method import Comparison, Curve, Goal, Result, rounds
from benchmarks.ours import Ours
from benchmarks.programs.processes import Program

#: Jobs that are submitted, and as many consumed, in one run: the depth stays what it is.
_CHUNK = 1_000

#: Jobs that wait in the short queue, and the fewest that a consumer drains.
_FEW = 1_000

_ROUNDS = 15

_MEBIBYTE = 1024 * 1024


def _run(title: str, url: Callable[[Bench], str], bench: Bench) -> Iterator[Result]:
    address = url(bench)
    depths = [_FEW]
    while depths[-1] < bench.most:
        depths.append(min(depths[-1] * 10, bench.most))
    submitted: list[tuple[float, float]] = []
    drained: list[tuple[float, float]] = []
    peaks: list[tuple[float, float]] = []
    peak: float | None = None
    with Ours(address, "preprocess") as long, Ours(address, "train") as short:
        for depth in depths:
            # One run of a thousand jobs is over before anything has settled down.
            fillings, drainings = [], []
            for _ in range(3 if depth <= 10_000 and depth < bench.most else 1):
                fillings.append(long.fill(depth))
                if depth == bench.most:
                    short.fill(_FEW)
                    yield from _at_depth(title, long, short, depth)
                rate, peak = _drain(address, long, depth)
                drainings.append(rate)
            submitted.append((depth, median(fillings)))
            drained.append((depth, median(drainings)))
            if peak is not None:
                peaks.append((depth, peak / _MEBIBYTE))
    if peaks:
        yield Comparison(
            f"consumer's memory while it drains {bench.most:,} jobs, {title}",
            f"the same for {_FEW:,}",
            "MiB",
            [peaks[-1][1]],
            [peaks[0][1]],
            Goal("<=", 1.05),
            ["peak resident size of a fresh process (VmHWM)"],
        )
        yield Curve("a consumer's peak of memory", "jobs drained", "MiB", title, peaks)
    note = "submitted in batches of 10,000, then consumed"
    yield Curve("submit_many", "jobs", "jobs/s", title, submitted, note)
    yield Curve("listen_message", "jobs", "jobs/s", title, drained, note)


def _at_depth(title: str, long: Ours, short: Ours, depth: int) -> Iterator[Result]:
    """The rates with so many jobs waiting behind, against few."""
    submitted: dict[str, list[float]] = {"deep": [], "shallow": []}

    def run(name: str, side: Ours) -> float:
        submitted[name].append(side.fill(_CHUNK))
        return side.drain(_CHUNK)

    drained = rounds(
        {"deep": partial(run, "deep", long), "shallow": partial(run, "shallow", short)}, _ROUNDS
    )
    assert (long.depth(), short.depth()) == (depth, _FEW)
    for what, rates in (("submit_many", submitted), ("listen_message", drained)):
        yield Comparison(
            f"{what} at a depth of {depth:,}, {title}",
            f"the same at {_FEW:,}",
            "jobs/s",
            rates["deep"][-_ROUNDS:],  # without the round that warmed up
            rates["shallow"][-_ROUNDS:],
            Goal(">=", 0.8),
            [f"{_CHUNK:,} jobs submitted and as many consumed, the depth standing behind them"],
        )


def _drain(url: str, ours: Ours, jobs: int) -> tuple[float, float | None]:
    """Jobs per second, and the most memory in bytes of a fresh process that does nothing else."""
    if url.startswith("memory:"):  # its queues do not cross processes
        return ours.drain(jobs), None
    with Program("drain", url, "60", str(jobs)) as consumer:
        consumer.hear()
        consumer.tell()
        heard = consumer.hear()
    assert heard["jobs"] == jobs
    return jobs / float(heard["last"] - heard["first"]), float(heard["peak"])


ROWS = (
    Row(
        "rabbitmq-depth",
        "a thousand to a million jobs on RabbitMQ: rates, and the consumer's memory",
        partial(_run, "RabbitMQ", lambda bench: bench.brokers.amqp),
    ),
    Row(
        "redis-depth",
        "a thousand to a million jobs on Redis: rates, and the consumer's memory",
        partial(_run, "Redis", lambda bench: bench.brokers.redis),
    ),
    Row(
        "sqlite-depth",
        "a thousand to a million jobs in SQLite: rates, and the consumer's memory",
        partial(_run, "SQLite", lambda bench: bench.brokers.sqlite),
    ),
    Row(
        "memory-depth",
        "a thousand to a million jobs in memory: rates",
        partial(_run, "memory", lambda bench: "memory:///depth"),
    ),
)

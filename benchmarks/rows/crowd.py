"""Many workers that wait: what that costs, how soon one starts a job, and what a restart does."""

from __future__ import annotations

import os
import random
import selectors
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import pika

from benchmarks.bench import Bench, Row
from benchmarks.job import JOB
from benchmarks.method import Curve, Result
from benchmarks.programs.processes import Program
from synmanager.train import TrainProducerOperator

_BROKERS: dict[str, Callable[[Bench], str]] = {
    "RabbitMQ": lambda bench: bench.brokers.amqp,
    "Redis": lambda bench: bench.brokers.redis,
    "SQLite": lambda bench: bench.brokers.sqlite,
}

#: How many workers one process has: more would wait for its interpreter rather than for the broker.
_IN_ONE = 50

#: Seconds for which idle workers are watched, of which whatever comes once belongs to no more than
#: its part; and for which they settle before.
_WATCHED, _SETTLED = 60.0, 5.0

#: Workers whose broker is killed.
_BEREFT = 1000

#: Seconds between two looks at who is back after a restart; for which that may take.
_LOOKS, _MOST_AWAY = 1.0, 300.0


def _crowd(stack: ExitStack, url: str, workers: int) -> list[Program]:
    """Programs with so many workers, all of which wait.

    They begin one after the other: a thousand first connections in the same moment would be
    refused for slowness, which ends a Worker.
    """
    programs = []
    for begun in range(0, workers, _IN_ONE):
        share = str(min(_IN_ONE, workers - begun))
        programs.append(stack.enter_context(Program("crowd", url, share)))
        assert programs[-1].hear() == "ready"
    return programs


def _latency(title: str, bench: Bench) -> Iterator[Result]:
    url = _BROKERS[title](bench)
    points: list[tuple[float, float]] = []
    for workers in (1, 4) if bench.quick else (1, 4, 16, 64, 256):
        with ExitStack() as stack:
            programs = _crowd(stack, url, workers)
            producer = stack.enter_context(TrainProducerOperator(url=url))
            milliseconds = []
            for _ in range(bench.count(200)):
                time.sleep(random.uniform(0.02, 0.05))
                producer.submit({**JOB, "sent": perf_counter()})
                milliseconds.append(_first(programs) * 1000)
            time.sleep(_SETTLED)  # else the last job is not acknowledged, and the next crowd's
            points.append((workers, median(milliseconds)))
    yield Curve("submit to handler start, median", "idle workers", "ms", title, points)


def _first(programs: Sequence[Program]) -> float:
    """What the one of them says that speaks."""
    with selectors.DefaultSelector() as selector:
        for program in programs:
            selector.register(program.voice, selectors.EVENT_READ, program)
        ((key, _), *_) = selector.select()
    return float(key.data.hear())


def _idle(title: str, bench: Bench) -> Iterator[Result]:
    url = _BROKERS[title](bench)
    points: list[tuple[float, float]] = []
    seconds = 5.0 if bench.quick else _WATCHED
    for workers in (1, 10) if bench.quick else (10, 100, 300, 1000):
        with ExitStack() as stack:
            programs = _crowd(stack, url, workers)
            time.sleep(_SETTLED)
            before = _used(title, url, programs)
            time.sleep(seconds)
            used = _used(title, url, programs) - before
            points.append((workers, used / seconds * 1000))
    whose = "its workers'" if title == "SQLite" else "its server's"
    yield Curve(f"{whose} processor", "idle workers", "ms/s", title, points)


def _restart(title: str, bench: Bench) -> Iterator[Result]:
    url = _BROKERS[title](bench)
    workers = 50 if bench.quick else _BEREFT
    points: list[tuple[float, float]] = []
    with ExitStack() as stack:
        _crowd(stack, url, workers)
        bench.brokers.restart(url)
        began = perf_counter()
        while not points or points[-1][1] < workers:
            back = _waiting(title, url)
            points.append((perf_counter() - began, back))
            if points[-1][0] > _MOST_AWAY:
                raise TimeoutError(f"{back} of {workers} workers are back after {_MOST_AWAY} s")
            time.sleep(_LOOKS)
    yield Curve(
        "workers that wait again",
        "seconds since a killed broker lets a client in",
        "workers",
        title,
        points,
        f"of {workers:,}",
    )


def _waiting(title: str, url: str) -> int:
    """How many workers a server has asleep."""
    if title == "Redis":
        import redis

        with redis.Redis.from_url(url) as client:
            return int(client.info("clients")["blocked_clients"])
    connection = pika.BlockingConnection(pika.URLParameters(url))
    with connection, connection.channel() as channel:
        return int(channel.queue_declare("train", passive=True).method.consumer_count)


def _used(title: str, url: str, programs: Sequence[Program]) -> float:
    """Seconds of processor that a broker has used so far; of a file's, all who have it open."""
    if title == "SQLite":
        for program in programs:
            program.tell()
        return sum(float(program.hear()) for program in programs)
    if title == "Redis":
        import redis

        with redis.Redis.from_url(url) as client:
            about = client.info("cpu")
        return float(about["used_cpu_user"] + about["used_cpu_sys"])
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, fields = stat.read_text().partition("(")[2].rpartition(")")
        except OSError:  # it has ended
            continue
        if name == "beam.smp":
            ticks += sum(map(int, fields.split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")


ROWS = (
    *(
        Row(
            f"crowd-latency-{title.lower()}",
            f"how soon one of 1 to 256 idle Workers starts a job, {title}",
            partial(_latency, title),
        )
        for title in _BROKERS
    ),
    *(
        Row(
            f"crowd-idle-{title.lower()}",
            f"what 10 to 1,000 idle Workers cost, {title}",
            partial(_idle, title),
        )
        for title in _BROKERS
    ),
    *(
        Row(
            f"crowd-restart-{title.lower()}",
            f"when {_BEREFT:,} Workers are back after their broker was killed, {title}",
            partial(_restart, title),
        )
        for title in ("RabbitMQ", "Redis")
    ),
)

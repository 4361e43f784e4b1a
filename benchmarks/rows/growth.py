"""How the cost of a job grows: with the number of consumers, and with its size.

With the number of jobs: see ``depth``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from statistics import median

from benchmarks.bench import Bench, Row
from benchmarks.job import BODY, job_of
from benchmarks.method import Curve, Result
from benchmarks.ours import Ours
from benchmarks.programs.processes import Program
from benchmarks.raw.rabbitmq import PikaBlocking, PikaSelect
from benchmarks.raw.redis import RedisStream

_BROKERS: dict[str, Callable[[Bench], str]] = {
    "RabbitMQ": lambda bench: bench.brokers.amqp,
    "Redis": lambda bench: bench.brokers.redis,
    "memory": lambda bench: "memory:///growth",
}

#: How many bytes of jobs are moved for one point of the curve over their size.
_BYTES = 20_000_000


def _repeated(bench: Bench, side: Callable[[], float]) -> float:
    return median(side() for _ in range(bench.fewer(3)))


def _together(
    program: str, url: str, fill: Callable[[int], object], consumers: int, jobs: int
) -> float:
    """Jobs per second of so many consumers, each a process, from the first job to the last."""
    with ExitStack() as stack:
        programs = [stack.enter_context(Program(program, url, "1.5")) for _ in range(consumers)]
        for each in programs:
            each.hear()
        fill(jobs)
        for each in programs:
            each.tell()
        heard = [each.hear() for each in programs]
    worked = [one for one in heard if one["jobs"]]
    assert sum(one["jobs"] for one in worked) == jobs
    began = min(one["first"] for one in worked)
    return jobs / float(max(one["last"] for one in worked) - began)


@contextmanager
def _bare_queue(url: str) -> Iterator[Callable[[int], object]]:
    """How to fill a queue of the driver's alone."""
    if url.startswith("amqp"):
        with PikaBlocking(url, BODY, ranked=True), PikaSelect(url, BODY, ranked=True) as filling:
            yield filling.fill
    else:
        with RedisStream(url, BODY) as stream:
            yield stream.fill


def _consumers(bench: Bench) -> Iterator[Result]:
    """Beside the drivers alone, whose curve says how much of a fall is the broker's and ours."""
    jobs = bench.count(8_000)
    crowds = (1, 2) if bench.quick else (1, 2, 4, 8, 16)
    for title, bare in (("RabbitMQ", "pika"), ("Redis", "redis-py")):
        url = _BROKERS[title](bench)
        with Ours(url) as ours, _bare_queue(url) as fill_bare:
            for work, program, fill, note in (
                ("listen_message", "drain", ours.fill, "of all together"),
                (f"{bare} alone", "drain_bare", fill_bare, "of all together; one at a time"),
            ):
                sides = {
                    each: partial(_together, program, url, fill, each, jobs) for each in crowds
                }
                points = [(float(each), _repeated(bench, side)) for each, side in sides.items()]
                yield Curve(work, "consumers", "jobs/s", title, points, note)


def _sizes(bench: Bench) -> Iterator[Result]:
    for title, url in _BROKERS.items():
        submitted: list[tuple[float, float]] = []
        consumed: list[tuple[float, float]] = []
        for size in (100, 1_000, 10_000, 100_000, 1_000_000):
            count = bench.count(max(20, min(2_000, _BYTES // size)))
            with Ours(url(bench), job=job_of(size)) as ours:
                submit = partial(ours.process, count)
                consume = partial(ours.listen, count)
                submitted.append((size, _repeated(bench, submit)))
                consumed.append((size, _repeated(bench, consume)))
        yield Curve("process()", "bytes of a job", "jobs/s", title, submitted)
        yield Curve("listen_message", "bytes of a job", "jobs/s", title, consumed)


ROWS = (
    Row("growth-consumers", "the rate of 1 to 16 consumers", _consumers),
    Row("growth-size", "the rates for jobs of 0.1 kB to 1 MB", _sizes),
)

"""How the cost of a job grows: with the number of consumers, and with its size.

With the number of jobs: see ``depth``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from statistics import median

from benchmarks.bench import Bench, Row
from benchmarks.job import job_of
from benchmarks.method import Curve, Result
from benchmarks.ours import Ours
from benchmarks.programs.processes import Program

_BROKERS: dict[str, Callable[[Bench], str]] = {
    "RabbitMQ": lambda bench: bench.brokers.amqp,
    "Redis": lambda bench: bench.brokers.redis,
    "memory": lambda bench: "memory:///growth",
}

#: How many bytes of jobs are moved for one point of the curve over their size.
_BYTES = 20_000_000


def _repeated(bench: Bench, side: Callable[[], float]) -> float:
    return median(side() for _ in range(bench.fewer(3)))


def _together(url: str, ours: Ours, consumers: int, jobs: int) -> float:
    """Jobs per second of so many consumers, each a process, from the first job to the last."""
    with ExitStack() as stack:
        programs = [stack.enter_context(Program("drain", url, "1.5")) for _ in range(consumers)]
        for program in programs:
            program.hear()
        ours.fill(jobs)
        for program in programs:
            program.tell()
        heard = [program.hear() for program in programs]
    worked = [one for one in heard if one["jobs"]]
    assert sum(one["jobs"] for one in worked) == jobs
    began = min(one["first"] for one in worked)
    return jobs / float(max(one["last"] for one in worked) - began)


def _consumers(bench: Bench) -> Iterator[Result]:
    jobs = bench.count(8_000)
    for title, url in _BROKERS.items():
        if title == "memory":
            continue  # its queues do not cross processes
        points: list[tuple[float, float]] = []
        with Ours(url(bench)) as ours:
            for consumers in (1, 2) if bench.quick else (1, 2, 4, 8, 16):
                side = partial(_together, url(bench), ours, consumers, jobs)
                points.append((consumers, _repeated(bench, side)))
        yield Curve("listen_message", "consumers", "jobs/s", title, points, "of all together")


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

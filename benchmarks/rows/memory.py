"""The memory backend against the standard library's queue."""

from __future__ import annotations

import json
import queue
from collections.abc import Iterator
from time import perf_counter

from benchmarks.bench import Bench, Row
from benchmarks.job import JOB
from benchmarks.method import Comparison, Goal, Result, rounds
from benchmarks.ours import Ours


def _simple_queue(count: int) -> float:
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    began = perf_counter()
    for _ in range(count):
        waiting.put(json.dumps(JOB, default=str, sort_keys=True))
    for _ in range(count):
        json.loads(waiting.get())
    return count / (perf_counter() - began)


def _run(bench: Bench) -> Iterator[Result]:
    count = bench.count(10_000)
    with Ours("memory:///benchmark") as ours:
        rates = rounds(
            {
                "ours": lambda: ours.process_and_listen(count),
                "queue": lambda: _simple_queue(count),
            },
            bench.repeats,
        )
    yield Comparison(
        "process() and listen_message, memory",
        "queue.SimpleQueue, JSON both ways",
        "jobs/s",
        rates["ours"],
        rates["queue"],
        Goal(">=", 0.3),
        ["json.dumps(default=str, sort_keys=True), put, get, json.loads; one thread"],
    )


ROWS = (Row("memory", "submit and consume in memory against queue.SimpleQueue", _run),)

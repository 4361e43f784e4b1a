"""The journal: its price per job, how soon it tells of progress, and what reading it takes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

from benchmarks.bench import Bench, Row
from benchmarks.job import JOB
from benchmarks.method import Comparison, Curve, Goal, Result, Samples, rounds
from benchmarks.ours import Ours
from benchmarks.programs.processes import Program
from synmanager.backends import create_backend
from synmanager.backends.base import QueueBackend
from synmanager.engine.session import Session
from synmanager.job import current_job
from synmanager.journal.events import EVENTS, Event, source, together
from synmanager.journal.reader import Reader
from synmanager.settings import load_settings
from synmanager.train import TrainProducerOperator
from synmanager.worker import Worker

_BROKERS: dict[str, Callable[[Bench], str]] = {
    "memory": lambda bench: "memory:///benchmark-journal",
    "SQLite": lambda bench: bench.brokers.sqlite,
    "Redis": lambda bench: bench.brokers.redis,
    "RabbitMQ": lambda bench: bench.brokers.amqp,
}

#: Jobs of one stretch of a journal, all of which end before the next are submitted.
_STRETCH = 500

#: Events of a job there, of which the first is shared by all of a stretch.
_EVENTS = 2

_ALL = str(2**40)

_MEBIBYTE = 1024 * 1024


@contextmanager
def _journal(switch: str) -> Iterator[None]:
    with patch.dict(os.environ, {"SYNMANAGER_JOURNAL": switch}):
        yield


def _price(bench: Bench, broker: str) -> Iterator[Result]:
    url = _BROKERS[broker](bench)
    count = bench.count(10_000 if broker == "memory" else 2_000)
    with _journal("on"):
        watched = Ours(url)
    with _journal("off"):
        alone = Ours(url)
    with watched, alone:
        for work, measure in (
            ("process() and listen_message", Ours.process_and_listen),
            ("submit_many", Ours.submit_many),
        ):
            rates = rounds(
                {"on": partial(measure, watched, count), "off": partial(measure, alone, count)},
                bench.repeats,
            )
            yield Comparison(
                f"{work} with the journal, {broker}",
                "the same without",
                "jobs/s",
                rates["on"],
                rates["off"],
                None,
                [f"{count:,} jobs that do nothing; their events are written from beside them"],
            )


def _progress(bench: Bench, broker: str) -> Iterator[Result]:
    url = _BROKERS[broker](bench)
    count = bench.count(50)
    took: list[float] = []
    seen = threading.Event()

    def look(event: Event) -> None:
        figures = event.data.get("figures") if event.type == "job.progress" else None
        if figures and "said" in figures:
            took.append((time.perf_counter() - figures["said"]) * 1000)
            seen.set()

    def handler(**kwargs: object) -> None:
        seen.clear()
        time.sleep(0.01)
        current_job().progress(1, said=time.perf_counter())
        if not seen.wait(30):
            raise RuntimeError("nothing was seen of it")

    session = Session(create_backend(load_settings(url=url).address), 10.0)
    session.open()
    stop = threading.Event()

    def follow() -> None:
        reader = Reader(session, look, time.time())
        while not stop.is_set():
            reader.wait(0.5)

    with _journal("on"), TrainProducerOperator(url=url) as producer:
        thread = threading.Thread(target=follow)
        thread.start()
        try:
            producer.submit_many([JOB] * count)
            Worker({"train": handler}, url=url).run(max_jobs=count)
        finally:
            stop.set()
            thread.join()
            session.close()
    yield Samples(
        f"from progress() to an observer, {broker}",
        "95th percentile",
        "ms",
        took,
        0.95,
        None,
        ["one process; events are gathered for 0.05 to 0.3 s before they are written together"],
    )


def _fill(backend: QueueBackend, begin: int, end: int) -> None:
    """Record what jobs of these numbers leave behind, each of which is run and ends."""
    who = source("benchmark")
    for first in range(begin, end, _STRETCH):
        numbers = range(first, min(first + _STRETCH, end))
        now = time.time()
        about = {"phase": "train", "rank": "normal", "submitted_at": now}
        ids = [f"job-{number:08}" for number in numbers]
        events = [Event("job.submitted", who, now, "train", {**about, "ids": ids, "delay": 0})]
        for id in ids:
            data = {**about, "id": id, "attempt": 1}
            events += [
                Event("job.started", who, now, f"train/{id}", data),
                Event("job.succeeded", who, now, f"train/{id}", data),
            ]
        backend.record(EVENTS, list(together(events)))


def _replay(bench: Bench, broker: str) -> Iterator[Result]:
    url = _BROKERS[broker](bench)
    points: list[tuple[float, float]] = []
    peaks: list[tuple[float, float]] = []
    sizes = [size for size in (20_000, 100_000, 1_000_000) if size <= bench.most]
    with patch.dict(os.environ, {"SYNMANAGER_JOURNAL_BYTES": _ALL}):
        backend = create_backend(load_settings(url=url).address)
        backend.open()
        filled = 0
        try:
            for jobs in sizes:
                _fill(backend, filled, jobs)
                filled = jobs
                with Program("observe", url) as observer:
                    heard = observer.hear()
                points.append((jobs * _EVENTS, jobs * _EVENTS / heard["seconds"]))
                peaks.append((jobs, heard["peak"] / _MEBIBYTE))
        finally:
            backend.close()
    yield Comparison(
        f"an observer's memory over {sizes[-1]:,} jobs, {broker}",
        f"the same over {sizes[0]:,}",
        "MiB",
        [peaks[-1][1]],
        [peaks[0][1]],
        Goal("<=", 1.25),
        ["peak resident size of a fresh process (VmHWM) that has read the whole journal"],
    )
    yield Curve("an observer's peak of memory", "jobs in the journal", "MiB", broker, peaks)
    yield Curve("replay of the journal", "events", "events/s", broker, points, "and folding them")


ROWS = (
    *(
        Row(
            f"journal-{broker.lower()}",
            f"with the journal against without, {broker}",
            partial(_price, broker=broker),
        )
        for broker in _BROKERS
    ),
    *(
        Row(
            f"progress-{broker.lower()}",
            f"from progress() to an observer, {broker}",
            partial(_progress, broker=broker),
        )
        for broker in _BROKERS
    ),
    Row(
        "replay-sqlite",
        "reading a journal of a million jobs, SQLite: rate, and the observer's memory",
        partial(_replay, broker="SQLite"),
    ),
    Row(
        "replay-redis",
        "reading a journal of a million jobs, Redis: rate, and the observer's memory",
        partial(_replay, broker="Redis"),
    ),
)

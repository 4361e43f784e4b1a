"""What it costs to have jobs on several nodes, and how long the loss of one is felt."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.bench import Bench, Row
from benchmarks.job import JOB
from benchmarks.method import Comparison, Curve, Result, rounds
from benchmarks.ours import Ours
from synmanager.train import TrainProducerOperator
from synmanager.worker import Worker

_UNIT = "jobs/s"

#: Kills in a row; jobs that are submitted and run between two of them; seconds from one submission
#: to the next.
_KILLS, _BETWEEN, _PACE = 10, 200, 0.005


def _cost(bench: Bench, what: str, against: str, replicated: Ours, alone: Ours) -> Iterator[Result]:
    few, many = bench.count(1_000), bench.count(5_000)
    works: Sequence[tuple[str, Callable[[Ours], float]]] = (
        ("process() one by one", lambda side: side.process(few)),
        (f"submit_many of {many:,}", lambda side: side.submit_many(many)),
        ("listen_message, empty callback", lambda side: side.listen(few)),
    )
    for work, measure in works:
        rates = rounds(
            {"replicated": partial(measure, replicated), "alone": partial(measure, alone)},
            bench.fewer(5),
        )
        yield Comparison(f"{work}, {what}", against, _UNIT, rates["replicated"], rates["alone"])


def _replicas(bench: Bench) -> Iterator[Result]:
    group = bench.brokers.redis_group
    with Ours(group.url(replicas=1)) as replicated, Ours(group.url(), "train") as alone:
        yield from _cost(
            bench, "Redis with replicas=1", "the same servers, replicas=0", replicated, alone
        )


def _quorum(bench: Bench) -> Iterator[Result]:
    cluster = bench.brokers.rabbitmq_cluster
    with Ours(cluster.url) as replicated, Ours(cluster.classic("classic")) as alone:
        yield from _cost(
            bench, "quorum queues on three nodes of RabbitMQ", "classic queues", replicated, alone
        )


class _Flow:
    """A Director that submits and a Worker that runs; a context manager.

    Attributes:
        longest: seconds without service since the last :meth:`begin`, of the two the longer.
    """

    def __init__(self, url: str) -> None:
        self.longest = 0.0
        self._url = url
        self._over = threading.Event()
        self._worker = Worker({"train": self._run}, url=url)
        self._at = dict.fromkeys(("submitted", "started"), 0.0)
        self._seen = dict.fromkeys(self._at, 0)
        self._threads = [threading.Thread(target=run) for run in (self._submit, self._worker.run)]

    def __enter__(self) -> _Flow:
        for thread in self._threads:
            thread.start()
        self.go_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._worker.stop()
        for thread in self._threads:
            thread.join()

    def begin(self) -> None:
        self._at = dict.fromkeys(self._at, time.monotonic())
        self.longest = 0.0

    def go_on(self) -> None:
        """Wait until that many more were submitted, and have begun."""
        before = dict(self._seen)
        while any(self._seen[what] < before[what] + _BETWEEN for what in before):
            if not all(thread.is_alive() for thread in self._threads):
                raise RuntimeError("the Director or the Worker has ended")
            time.sleep(0.05)

    def _note(self, what: str) -> None:
        now = time.monotonic()
        self.longest = max(self.longest, now - self._at[what])
        self._at[what] = now
        self._seen[what] += 1

    def _run(self, **_: Any) -> None:
        self._note("started")

    def _submit(self) -> None:
        with TrainProducerOperator(url=self._url) as producer:
            while not self._over.wait(_PACE):
                producer.process(**JOB)
                self._note("submitted")


def _losses(
    bench: Bench, title: str, url: str, lose: Callable[[], Callable[[], None]]
) -> Iterator[Result]:
    """Args: lose: kills the node that has the queue; returns what makes all as before."""
    logging.getLogger("synmanager").setLevel(logging.CRITICAL)  # of what is lost on purpose
    points: list[tuple[float, float]] = []
    for kill in range(1, 3 if bench.quick else _KILLS + 1):
        with _Flow(url) as flow:
            flow.begin()
            mend = lose()
            flow.go_on()
            points.append((kill, flow.longest))
            mend()
    yield Curve("no service after the loss of a node", "kill", "s", title, points)


def _lose_primary(bench: Bench) -> Iterator[Result]:
    group = bench.brokers.redis_group

    def lose() -> Callable[[], None]:
        group.primary.launcher.kill()
        return group.mend

    yield from _losses(bench, "Redis (Sentinels wait 1.5 s)", group.url(replicas=1), lose)


def _lose_leader(bench: Bench) -> Iterator[Result]:
    cluster = bench.brokers.rabbitmq_cluster

    def lose() -> Callable[[], None]:
        node = cluster.leader(next(iter(cluster.ports)))
        cluster.kill(node)

        def mend() -> None:
            cluster.start(node)
            cluster.wait_until_whole()

        return mend

    yield from _losses(bench, "RabbitMQ (quorum queues)", cluster.url, lose)


ROWS = (
    Row("replicas-redis", "what Redis's replicas cost", _replicas),
    Row("quorum-rabbitmq", "what RabbitMQ's quorum queues cost", _quorum),
    Row("loss-redis", f"the loss of Redis's primary, {_KILLS} times", _lose_primary),
    Row("loss-rabbitmq", f"the loss of the node that leads, {_KILLS} times", _lose_leader),
)

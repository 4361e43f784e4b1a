"""RQ, its SimpleWorker: the one that does not fork for every job.

A job whose worker died runs again only if it may be retried.
"""

from __future__ import annotations

from typing import Any

from redis import Redis
from rq import Queue, Retry

from benchmarks.job import JOB
from benchmarks.peers.filling import BROKER
from benchmarks.peers.stopwatch import tick

SETTINGS = {"result_ttl": 0, "retry": "Retry(max=4)", "enqueue_many": "batches of 1,000"}


def job(**kwargs: Any) -> None:
    tick()


def submit(count: int) -> None:
    queue = Queue(connection=Redis.from_url(BROKER))
    for start in range(0, count, 1000):
        prepared = Queue.prepare_data(
            "benchmarks.peers.rq_app.job", kwargs=JOB, result_ttl=0, retry=Retry(max=4)
        )
        queue.enqueue_many([prepared] * min(1000, count - start))

"""Celery, one solo worker."""

from __future__ import annotations

from typing import Any

from celery import Celery

from benchmarks.job import JOB
from benchmarks.peers.filling import BROKER, PREFETCH
from benchmarks.peers.stopwatch import tick

SETTINGS: dict[str, Any] = {
    "task_acks_late": True,
    "task_ignore_result": True,
    "task_serializer": "json",
    "task_default_delivery_mode": "persistent",
    "broker_connection_retry_on_startup": True,
}
if PREFETCH is not None:
    SETTINGS["worker_prefetch_multiplier"] = PREFETCH
if BROKER.startswith("amqp"):
    SETTINGS["broker_transport_options"] = {"confirm_publish": True}

app = Celery("benchmark", broker=BROKER)
app.conf.update(SETTINGS)


@app.task
def job(**kwargs: Any) -> None:
    tick()


def submit(count: int) -> None:
    with app.producer_pool.acquire() as producer:
        for _ in range(count):
            job.apply_async(kwargs=JOB, producer=producer)

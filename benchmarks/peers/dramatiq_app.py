"""Dramatiq, one process with one worker thread."""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq import Broker

from benchmarks.job import JOB
from benchmarks.peers.filling import BROKER, PREFETCH
from benchmarks.peers.stopwatch import tick

SETTINGS: dict[str, Any] = {"middleware": "the default"}


def _broker() -> Broker:
    if BROKER.startswith("amqp"):
        from dramatiq.brokers.rabbitmq import RabbitmqBroker

        SETTINGS["confirm_delivery"] = True
        return RabbitmqBroker(url=BROKER, confirm_delivery=True)
    from dramatiq.brokers.redis import RedisBroker

    return RedisBroker(url=BROKER)


if PREFETCH is not None:  # read by dramatiq from its environment variable, see peers.catalogue
    SETTINGS["dramatiq_queue_prefetch"] = PREFETCH
dramatiq.set_broker(_broker())


@dramatiq.actor
def job(**kwargs: Any) -> None:
    tick()


def submit(count: int) -> None:
    for _ in range(count):
        job.send(**JOB)

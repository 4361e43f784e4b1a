"""taskiq, one worker process that runs one task at a time."""

from __future__ import annotations

import asyncio
from typing import Any

from taskiq import AsyncBroker

from benchmarks.job import JOB
from benchmarks.peers.filling import BROKER, PREFETCH
from benchmarks.peers.stopwatch import tick

SETTINGS: dict[str, Any] = {"acknowledges": "when_saved, the default"}


def _broker() -> AsyncBroker:
    if BROKER.startswith("amqp"):
        from taskiq_aio_pika import AioPikaBroker, Queue, QueueType

        # Its default is a quorum queue, which is slower on one node.
        options: dict[str, Any] = {"task_queues": [Queue(type=QueueType.CLASSIC)]}
        options |= {} if PREFETCH is None else {"qos": PREFETCH}
        SETTINGS.update(
            queue="classic, durable",
            qos=options.get("qos", "10, the default"),
            confirms="aio-pika's default: on",
        )
        return AioPikaBroker(BROKER, **options)
    from taskiq_redis import RedisStreamBroker

    # "0": what was queued before the worker's group existed is for it as well.
    options = {"consumer_id": "0"}
    options |= {} if PREFETCH is None else {"xread_count": PREFETCH}
    SETTINGS.update(
        options,
        broker="RedisStreamBroker",
        xread_count=options.get("xread_count", "100, the default"),
    )
    return RedisStreamBroker(BROKER, **options)


broker = _broker()


@broker.task
async def job(**kwargs: Any) -> None:
    tick()


def submit(count: int) -> None:
    async def kick() -> None:
        await broker.startup()
        for _ in range(count):
            await job.kiq(**JOB)
        await broker.shutdown()

    asyncio.run(kick())

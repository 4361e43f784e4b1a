"""The same as ``drain`` without anything around the driver: takes and settles one by one.

    python -m benchmarks.programs.drain_bare URL IDLE_SECONDS

Of a queue that ``benchmarks.raw`` has made. Bodies are not decoded.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

import pika
import redis

from benchmarks.programs.drain import Tally
from benchmarks.programs.processes import say, wait_for_word
from benchmarks.raw.rabbitmq import RANKED_QUEUE
from benchmarks.raw.redis import GROUP, STREAM


def with_pika(url: str, idle: float, tally: Tally) -> Callable[[], None]:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=1)

    def take(_: object, method: Any, properties: object, body: bytes) -> None:
        tally({}, "")
        channel.basic_ack(method.delivery_tag)

    def look(until: float) -> None:
        if tally.last + idle > until:
            connection.call_later(idle / 4, partial(look, perf_counter()))
        else:
            channel.stop_consuming()

    def drain() -> None:
        channel.basic_consume(RANKED_QUEUE, take)
        connection.call_later(idle, partial(look, perf_counter()))
        channel.start_consuming()

    return drain


def with_redis_py(url: str, idle: float, tally: Tally) -> Callable[[], None]:
    client: Any = redis.Redis.from_url(url, single_connection_client=True)
    name = f"consumer-{os.getpid()}"

    def drain() -> None:
        patience = int(idle * 1000)
        while read := client.xreadgroup(GROUP, name, {STREAM: ">"}, count=1, block=patience):
            ((_, ((entry, _),)),) = read
            tally({}, "")
            with client.pipeline(transaction=False) as pipeline:
                pipeline.xack(STREAM, GROUP, entry)
                pipeline.xdel(STREAM, entry)
                pipeline.execute()

    return drain


def run(url: str, idle: float) -> None:
    tally = Tally()
    connect = with_pika if url.startswith("amqp") else with_redis_py
    drain = connect(url, idle, tally)
    say("connected")
    wait_for_word()
    drain()
    say({"first": tally.first, "last": tally.last, "jobs": tally.count})


if __name__ == "__main__":
    run(sys.argv[1], float(sys.argv[2]))

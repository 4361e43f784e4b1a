"""A TTP of 0.1.0: counts three queues over three connections, takes, sleeps five seconds.

python -m benchmarks.programs.echo_0_1_0 URL
"""

from __future__ import annotations

import json
import sys
import time
from time import perf_counter

import pika

from benchmarks.programs.processes import say
from synmanager.config import EVALUATE_QUEUE, PREPROCESS_QUEUE, TRAIN_QUEUE

_SLEEP = 5.0


def run(url: str) -> None:
    connections = [pika.BlockingConnection(pika.URLParameters(url)) for _ in range(3)]
    channels = dict(
        zip(
            (PREPROCESS_QUEUE, TRAIN_QUEUE, EVALUATE_QUEUE),
            (connection.channel() for connection in connections),
            strict=True,
        )
    )
    while True:
        for queue, channel in channels.items():
            if channel.queue_declare(queue, passive=True).method.message_count:
                method, _, body = channel.basic_get(queue)
                say(perf_counter() - json.loads(body)["sent"])
                channel.basic_ack(method.delivery_tag)
                break
        time.sleep(_SLEEP)


if __name__ == "__main__":
    run(sys.argv[1])

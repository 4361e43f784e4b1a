"""Components of 0.1.0, as small as they can be: plain pika, and nothing of this project.

Written from what is known of the release: its names on the broker, what it puts on the wire and
how its calls behave. The calls have the names that they have there, so a program that was written
for 0.1.0 runs on these components or on this project's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pika

__all__ = ["KEYS", "QUEUES", "Consumer", "Producer", "define", "exchange_of", "open_channel"]

logger = logging.getLogger(__name__)

QUEUES = ("preprocess", "train", "evaluate", "completed")
KEYS = {
    "preprocess": "SynMQ_topic_preprocess",
    "train": "SynMQ_topic_train",
    "evaluate": "SynMQ_topic_evaluate",
    "completed": "SynMQ_fanout_completed",
}


def exchange_of(phase: str) -> tuple[str, str]:
    """The name and the type of the exchange that leads to a phase."""
    if phase == "completed":
        return "SynMQ_fanout_logs", "fanout"
    return "SynMQ_topic_logs", "topic"


def open_channel(url: str) -> Any:
    """A channel in confirm mode on a connection of its own, whose heartbeat is off."""
    parameters = pika.URLParameters(url)
    parameters.heartbeat = 0
    channel = pika.BlockingConnection(parameters).channel()
    channel.confirm_delivery()
    return channel


def define(channel: Any) -> None:
    """Create what the definitions of 0.1.0's image create."""
    for phase in QUEUES:
        exchange, kind = exchange_of(phase)
        channel.exchange_declare(exchange, kind, durable=True)
        channel.queue_declare(phase, durable=True)
        channel.queue_bind(phase, exchange, KEYS[phase])


class _Component:
    def __init__(self, url: str, phase: str) -> None:
        self.url = url
        self.queue = phase
        self.routing_key = KEYS[phase]
        self.exchange_name, self.exchange_type = exchange_of(phase)
        self.channel: Any = None

    def connect(self) -> None:
        self.channel = open_channel(self.url)
        self.channel.exchange_declare(self.exchange_name, self.exchange_type, durable=True)

    def disconnect(self) -> None:
        self.channel.connection.close()


class Producer(_Component):
    def process(self, **kwargs: Any) -> str:
        message = json.dumps(kwargs, default=str, sort_keys=True)
        self.channel.basic_publish(
            self.exchange_name,
            self.routing_key,
            message.encode(),
            pika.BasicProperties(delivery_mode=2),
        )
        return message


class Consumer(_Component):
    """Runs its callback in the thread that owns the connection, and blocks that meanwhile."""

    def listen_message(self, process_function: Callable[..., Any]) -> None:
        self.channel.basic_qos(prefetch_count=1)
        self.channel.basic_consume(
            self.queue, lambda channel, method, _, body: self._run(method, body, process_function)
        )
        self.channel.start_consuming()

    def poll_message(self, process_function: Callable[..., Any]) -> Any:
        method, _, body = self.channel.basic_get(self.queue)
        return None if method is None else self._run(method, body, process_function)

    def check_message_count(self) -> int:
        count: int = self.channel.queue_declare(self.queue, passive=True).method.message_count
        return count

    def _run(self, method: Any, body: bytes, process_function: Callable[..., Any]) -> Any:
        try:
            result = process_function(**json.loads(body))
        except Exception as error:
            logger.error("a job failed: %s", error)
            self.channel.basic_reject(method.delivery_tag, requeue=True)
            return None
        self.channel.basic_ack(method.delivery_tag)
        return result

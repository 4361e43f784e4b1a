"""pika, without anything around it."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from types import TracebackType
from typing import Any

import pika

__all__ = ["PIPELINE", "RANKED_QUEUE", "PikaBlocking", "PikaSelect", "take_in_order"]

_EXCHANGE = "benchmark"
_QUEUE = "benchmark.raw"
RANKED_QUEUE = f"{_QUEUE}.ranked"
_PERSISTENT = pika.BasicProperties(delivery_mode=pika.DeliveryMode.Persistent)

#: As much as synmanager's messages carry: id, rank, and time.
_RANKED = pika.BasicProperties(
    delivery_mode=pika.DeliveryMode.Persistent,
    priority=4,
    message_id="0123456789abcdef0123456789abcdef",
    headers={"x-benchmark-submitted-at": 1_700_000_000_123_456},
)

#: How many publishes the pipelining side has unconfirmed at most.
PIPELINE = 1000


class PikaBlocking:
    """A durable queue behind a durable topic exchange, one connection, everything in one thread.

    The methods that measure return messages per second. A context manager.

    Args:
        ranked: give the queue as many priorities, and the messages as many properties, as
            synmanager's have.
    """

    def __init__(self, url: str, body: bytes, *, ranked: bool = False) -> None:
        self._body = body
        self._queue = RANKED_QUEUE if ranked else _QUEUE
        self._properties = _RANKED if ranked else _PERSISTENT
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel = self._connection.channel()
        self._channel.exchange_declare(_EXCHANGE, "topic", durable=True)
        arguments = {"x-max-priority": 9} if ranked else None
        self._channel.queue_declare(self._queue, durable=True, arguments=arguments)
        self._channel.queue_bind(self._queue, _EXCHANGE, self._queue)
        self._channel.confirm_delivery()
        self._channel.basic_qos(prefetch_count=1)

    def __enter__(self) -> PikaBlocking:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._channel.queue_delete(self._queue)
        self._channel.exchange_delete(_EXCHANGE)
        self._connection.close()

    def publish_each(self, count: int) -> float:
        """Publish, wait for the confirm, publish the next."""
        began = perf_counter()
        for _ in range(count):
            self._channel.basic_publish(
                _EXCHANGE, self._queue, self._body, properties=self._properties, mandatory=True
            )
        rate = count / (perf_counter() - began)
        self._channel.queue_purge(self._queue)
        return rate

    def consume(self, count: int, fill: Callable[[int], None]) -> float:
        """A consumer with an empty callback and an ack for each, over a filled queue."""
        fill(count)
        left = count

        def callback(channel: Any, method: Any, properties: Any, body: bytes) -> None:
            nonlocal left
            channel.basic_ack(method.delivery_tag)
            left -= 1
            if not left:
                channel.stop_consuming()

        began = perf_counter()
        self._channel.basic_consume(self._queue, callback)
        self._channel.start_consuming()
        return count / (perf_counter() - began)


def take_in_order(url: str, body: bytes, count: int) -> float:
    """Take from the first of three queues that has a message, ack, and begin with the first again.

    What a worker cannot do without that ranks its queues strictly and holds one message at a time.
    """
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    queues = [f"{_QUEUE}.{number}" for number in range(3)]
    for number in range(count):
        queue = queues[number % len(queues)]
        if number < len(queues):
            channel.queue_declare(queue, durable=True, arguments={"x-max-priority": 9})
        channel.basic_publish("", queue, body, properties=_RANKED, mandatory=True)
    began = perf_counter()
    for _ in range(count):
        for queue in queues:
            method, _, _ = channel.basic_get(queue)
            if method is not None:
                channel.basic_ack(method.delivery_tag)
                break
    rate = count / (perf_counter() - began)
    for queue in queues:
        channel.queue_delete(queue)
    connection.close()
    return rate


class PikaSelect:
    """Publishes to such a queue, with confirms that are awaited together. A context manager."""

    def __init__(self, url: str, body: bytes, *, ranked: bool = False) -> None:
        self._body = body
        self._queue = RANKED_QUEUE if ranked else _QUEUE
        self._properties = _RANKED if ranked else _PERSISTENT
        self._channel: Any = None
        self._to_send = self._sent = self._confirmed = 0
        self._early: set[int] = set()  # confirmed before one that was sent earlier
        self._refused = False
        self._connection = pika.SelectConnection(
            pika.URLParameters(url), on_open_callback=self._on_open
        )
        self._connection.ioloop.start()

    def __enter__(self) -> PikaSelect:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._connection.add_on_close_callback(lambda *_: self._connection.ioloop.stop())
        self._connection.close()
        self._connection.ioloop.start()

    def publish_pipelined(self, count: int) -> float:
        """Publish all, at most :data:`PIPELINE` of them unconfirmed at a time."""
        rate = self._publish(count)
        self._channel.queue_purge(self._queue, callback=lambda _: self._connection.ioloop.stop())
        self._connection.ioloop.start()
        return rate

    def fill(self, count: int) -> None:
        self._publish(count)

    def _publish(self, count: int) -> float:
        self._to_send = self._sent + count
        began = perf_counter()
        self._send()
        self._connection.ioloop.start()  # until the last confirm
        if self._refused:
            raise RuntimeError("the broker refused a message, or had no queue for it")
        return count / (perf_counter() - began)

    def _send(self) -> None:
        window = min(self._to_send, self._confirmed + PIPELINE)
        while self._sent < window:
            self._sent += 1
            self._channel.basic_publish(
                _EXCHANGE, self._queue, self._body, properties=self._properties, mandatory=True
            )

    def _on_open(self, connection: Any) -> None:
        connection.channel(on_open_callback=self._on_channel)

    def _on_channel(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(
            self._on_confirm, callback=lambda _: self._connection.ioloop.stop()
        )

    def _on_return(self, *_: Any) -> None:
        self._refused = True

    def _on_confirm(self, frame: Any) -> None:
        # Tags count from one, and a confirm with "multiple" covers all before it.
        self._refused |= isinstance(frame.method, pika.spec.Basic.Nack)
        tag = frame.method.delivery_tag
        if frame.method.multiple or tag == self._confirmed + 1:
            self._confirmed = tag
            while self._early and self._confirmed + 1 in self._early:
                self._confirmed += 1
                self._early.remove(self._confirmed)
        else:
            self._early.add(tag)
        if self._confirmed == self._to_send:
            self._connection.ioloop.stop()
        else:
            self._send()

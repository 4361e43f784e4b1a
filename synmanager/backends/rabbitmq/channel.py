"""A channel that keeps what it is given."""

from __future__ import annotations

import logging
from typing import Any

import pika.channel

__all__ = ["GreedyChannel"]


class GreedyChannel(pika.channel.Channel):  # type: ignore[misc]
    """Collects deliveries, whichever consumer they are for.

    pika gives each to its consumer's callback, and rejects what crosses with the cancelling of the
    consumer. The broker then flags that as redelivered, and a job that nobody has begun would
    count as begun.

    Attributes:
        arrived: (method, properties, body) of deliveries that nobody has taken yet.
    """

    def __init__(self, connection: Any, channel_number: int, on_open_callback: Any) -> None:
        super().__init__(connection, channel_number, on_open_callback)
        self.arrived: list[tuple[Any, Any, bytes]] = []

    def _on_deliver(self, method_frame: Any, header_frame: Any, body: bytes) -> None:
        self.arrived.append((method_frame.method, header_frame.properties, body))


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a warning of pika's is about a channel that is not of this kind.

    What the broker refuses reaches the caller as an exception, or was only a question: whether a
    queue has certain arguments. pika warns of it all the same.
    """
    arguments = record.args if isinstance(record.args, tuple) else ()
    is_ours = any(isinstance(argument, GreedyChannel) for argument in arguments)
    return not (is_ours and record.levelno == logging.WARNING)


logging.getLogger(pika.channel.__name__).addFilter(_is_news)

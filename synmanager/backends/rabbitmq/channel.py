"""A channel that keeps what it is given."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pika.channel
import pika.spec

from synmanager.backends.rabbitmq.frames import Confirmation, Incoming, Nothing

__all__ = ["GreedyChannel"]


class GreedyChannel(pika.channel.Channel):  # type: ignore[misc]
    """Collects messages, whoever asked for them.

    pika gives each to its consumer's callback, and rejects what crosses with the cancelling of the
    consumer. The broker then flags that as redelivered, and a job that nobody has begun would
    count as begun.

    Attributes:
        arrived: what nobody has taken yet.
        is_empty: whether the queue that was asked last had nothing.
        on_confirmation: called with each, and with whether the broker refuses what it confirms.
    """

    def __init__(self, connection: Any, channel_number: int, on_open_callback: Any) -> None:
        super().__init__(connection, channel_number, on_open_callback)
        self.arrived: list[Incoming] = []
        self.is_empty = False
        self.on_confirmation: Callable[[Confirmation, bool], None]

    def take(self, value: Incoming | Confirmation | Nothing) -> None:
        """Take what was read without pika."""
        if isinstance(value, Incoming):
            self.arrived.append(value)
        elif isinstance(value, Confirmation):
            self.on_confirmation(value, False)
        else:
            self.is_empty = True

    def note_confirmation(self, frame: Any) -> None:
        """Take a confirmation that pika has read."""
        method = frame.method
        confirmation = Confirmation(method.delivery_tag, method.multiple)
        self.on_confirmation(confirmation, isinstance(method, pika.spec.Basic.Nack))

    def _on_deliver(self, method_frame: Any, header_frame: Any, body: bytes) -> None:
        self._note_arrival(method_frame.method.consumer_tag, method_frame, header_frame, body)

    def _on_getok(self, method_frame: Any, header_frame: Any, body: bytes) -> None:
        self._note_arrival("", method_frame, header_frame, body)

    def _on_getempty(self, method_frame: Any) -> None:
        self.is_empty = True

    def _note_arrival(
        self, consumer: str, method_frame: Any, header_frame: Any, body: bytes
    ) -> None:
        method, properties = method_frame.method, header_frame.properties
        self.arrived.append(
            Incoming(consumer, method.delivery_tag, method.redelivered, properties, body)
        )


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a warning of pika's is about a channel that is not of this kind.

    What the broker refuses reaches the caller as an exception, or was only a question: whether a
    queue has certain arguments. pika warns of it all the same.
    """
    arguments = record.args if isinstance(record.args, tuple) else ()
    is_ours = any(isinstance(argument, GreedyChannel) for argument in arguments)
    return not (is_ours and record.levelno == logging.WARNING)


logging.getLogger(pika.channel.__name__).addFilter(_is_news)

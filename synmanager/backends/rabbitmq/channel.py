"""A channel that hands over what it is given."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pika.channel
import pika.exceptions
from pika.spec import BasicProperties

__all__ = ["GreedyChannel"]


class GreedyChannel(pika.channel.Channel):  # type: ignore[misc]
    """Hands over every message, whoever asked for it, and refuses what nobody can have asked for.

    pika gives each message to its consumer's callback, and rejects what crosses with the
    cancelling of the consumer. The broker then flags that as redelivered, and a job that nobody
    has begun would count as begun. What it does not expect it logs, and goes on.

    Attributes:
        on_message: called with the consumer's tag, or "" for what was got without one, the method,
            the properties and the body.
    """

    on_message: Callable[[str, Any, BasicProperties, bytes], None]

    def _on_deliver(self, method_frame: Any, header_frame: Any, body: bytes) -> None:
        method = method_frame.method
        self.on_message(method.consumer_tag, method, header_frame.properties, body)

    def _on_getok(self, method_frame: Any, header_frame: Any, body: bytes) -> None:
        self.on_message("", method_frame.method, header_frame.properties, body)

    def _on_unexpected_frame(self, frame_value: Any) -> None:
        raise pika.exceptions.UnexpectedFrameError(frame_value)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a warning of pika's is about a channel that is not of this kind.

    What the broker refuses reaches the caller as an exception, or was only a question: whether a
    queue has certain arguments. pika warns of it all the same.
    """
    arguments = record.args if isinstance(record.args, tuple) else ()
    is_ours = any(isinstance(argument, GreedyChannel) for argument in arguments)
    return not (is_ours and record.levelno == logging.WARNING)


logging.getLogger(pika.channel.__name__).addFilter(_is_news)

"""Publishing on a lane, in terms of this project's messages and errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pika.exceptions import ChannelClosedByBroker

from synmanager.backends.rabbitmq.faults import NOT_FOUND, PRECONDITION_FAILED
from synmanager.backends.rabbitmq.frames import Content
from synmanager.backends.rabbitmq.lane import Lane, Unaccepted, Unconfirmed
from synmanager.errors import (
    BrokerUnavailable,
    InvalidJob,
    NotPublished,
    PublishInterrupted,
    PublishRefused,
    Unroutable,
)
from synmanager.message import Message, Rank

__all__ = ["publish", "publish_apart"]


def publish(
    lane: Lane,
    exchange: str,
    routing_key: str,
    contents: Sequence[Content],
    messages: Sequence[Message],
) -> None:
    """Publish a batch, and say in our errors what was not accepted.

    Raises:
        Unroutable, PublishRefused, PublishInterrupted: which messages were not.
        InvalidJob: one is larger than the broker takes.
    """
    try:
        lane.publish(exchange, routing_key, contents)
    except Unaccepted as error:
        left = [messages[index] for index in error.indices]
        if error.returned is None:
            raise PublishRefused(
                f"the broker refused {len(left)} messages: is a queue full?", left
            ) from None
        raise Unroutable(
            f"no queue is bound to exchange {exchange!r} with routing key {routing_key!r} "
            f"({error.returned})",
            left,
        ) from None
    except Unconfirmed as error:
        cause = error.cause
        left = [messages[index] for index in error.indices]
        if isinstance(cause, ChannelClosedByBroker):
            if cause.reply_code == NOT_FOUND:
                raise Unroutable(cause.reply_text, left) from cause
            if cause.reply_code == PRECONDITION_FAILED and "larger" in cause.reply_text:
                largest = max(left, key=lambda message: len(message.body))
                raise InvalidJob(f"job {largest.id!r:.80}: {cause.reply_text}") from cause
        ours = lane.link.understand(cause) or cause
        if isinstance(ours, BrokerUnavailable):
            raise PublishInterrupted(f"not confirmed: {ours}", left) from cause
        raise ours from cause


def publish_apart(
    contents: Sequence[Content],
    messages: Sequence[Message],
    put: Callable[[Rank, Sequence[Content], Sequence[Message]], None],
) -> None:
    """Publish a batch rank by rank: what ranks highest is there before the others.

    Args:
        put: publishes what is of one rank.

    Raises:
        Unroutable, PublishRefused, PublishInterrupted: which messages were not accepted; with
            those that have not been tried.
    """
    left = list(messages)
    for rank in sorted({message.rank for message in messages}, reverse=True):
        some = [index for index, message in enumerate(messages) if message.rank is rank]
        left = [message for message in left if message.rank is not rank]
        try:
            put(rank, [contents[index] for index in some], [messages[index] for index in some])
        except NotPublished as error:
            raise type(error)(str(error), [*error.unconfirmed, *left]) from error

"""Operators of the ``completed`` phase: results, on their way to the archive."""

from __future__ import annotations

from synmanager.base import ConsumerOperator, ProducerOperator
from synmanager.phases import COMPLETED

__all__ = ["CompletedConsumerOperator", "CompletedProducerOperator"]


class CompletedProducerOperator(ProducerOperator):
    """Submits results to the queue ``completed``.

    Example:
        >>> with CompletedProducerOperator(url="memory") as producer:
        ...     producer.process(loss=0.2)
        '{"loss": 0.2}'
    """

    phase = COMPLETED


class CompletedConsumerOperator(ConsumerOperator):
    """Takes results from the queue ``completed``.

    Example:
        >>> with CompletedProducerOperator(url="memory") as producer:
        ...     text = producer.process(loss=0.2)
        >>> with CompletedConsumerOperator(url="memory") as consumer:
        ...     consumer.poll_message(lambda loss: loss)
        0.2
    """

    phase = COMPLETED

"""Operators of the ``evaluate`` phase: evaluation jobs."""

from __future__ import annotations

from synmanager.base import ConsumerOperator, ProducerOperator
from synmanager.phases import EVALUATE

__all__ = ["EvaluateConsumerOperator", "EvaluateProducerOperator"]


class EvaluateProducerOperator(ProducerOperator):
    """Submits evaluations to the queue ``evaluate``.

    Example:
        >>> with EvaluateProducerOperator(url="memory") as producer:
        ...     producer.process(model="m1")
        '{"model": "m1"}'
    """

    phase = EVALUATE


class EvaluateConsumerOperator(ConsumerOperator):
    """Takes evaluations from the queue ``evaluate``.

    Example:
        >>> with EvaluateProducerOperator(url="memory") as producer:
        ...     text = producer.process(model="m1")
        >>> with EvaluateConsumerOperator(url="memory") as consumer:
        ...     consumer.poll_message(lambda model: model)
        'm1'
    """

    phase = EVALUATE

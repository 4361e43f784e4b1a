"""Operators of the ``train`` phase: training jobs."""

from __future__ import annotations

from synmanager.base import ConsumerOperator, ProducerOperator
from synmanager.phases import TRAIN

__all__ = ["TrainConsumerOperator", "TrainProducerOperator"]


class TrainProducerOperator(ProducerOperator):
    """Submits training jobs to the queue ``train``.

    Example:
        >>> with TrainProducerOperator(url="memory") as producer:
        ...     producer.process(lr=0.1)
        '{"lr": 0.1}'
    """

    phase = TRAIN


class TrainConsumerOperator(ConsumerOperator):
    """Takes training jobs from the queue ``train``.

    Example:
        >>> with TrainProducerOperator(url="memory") as producer:
        ...     text = producer.process(lr=0.1)
        >>> with TrainConsumerOperator(url="memory") as consumer:
        ...     consumer.poll_message(lambda lr: lr)
        0.1
    """

    phase = TRAIN

"""Operators of the ``preprocess`` phase: data alignment jobs."""

from __future__ import annotations

from synmanager.base import ConsumerOperator, ProducerOperator
from synmanager.phases import PREPROCESS

__all__ = ["PreprocessConsumerOperator", "PreprocessProducerOperator"]


class PreprocessProducerOperator(ProducerOperator):
    """Submits alignment jobs to the queue ``preprocess``.

    Example:
        >>> with PreprocessProducerOperator(url="memory") as producer:
        ...     producer.process(project_id="p1")
        '{"project_id": "p1"}'
    """

    phase = PREPROCESS


class PreprocessConsumerOperator(ConsumerOperator):
    """Takes alignment jobs from the queue ``preprocess``.

    Example:
        >>> with PreprocessProducerOperator(url="memory") as producer:
        ...     text = producer.process(project_id="p1")
        >>> with PreprocessConsumerOperator(url="memory") as consumer:
        ...     consumer.poll_message(lambda project_id: project_id)
        'p1'
    """

    phase = PREPROCESS

"""Operators of the ``evaluate`` phase: evaluation jobs."""

from __future__ import annotations

from synmanager.base import ConsumerOperator, ProducerOperator
from synmanager.phases import EVALUATE

__all__ = ["EvaluateConsumerOperator", "EvaluateProducerOperator"]


class EvaluateProducerOperator(ProducerOperator):
    """Submits to the ``evaluate`` queue."""

    phase = EVALUATE


class EvaluateConsumerOperator(ConsumerOperator):
    """Takes from the ``evaluate`` queue."""

    phase = EVALUATE

"""Operators of the ``train`` phase: training jobs."""

from __future__ import annotations

from synmanager.base import ConsumerOperator, ProducerOperator
from synmanager.phases import TRAIN

__all__ = ["TrainConsumerOperator", "TrainProducerOperator"]


class TrainProducerOperator(ProducerOperator):
    """Submits to the ``train`` queue."""

    phase = TRAIN


class TrainConsumerOperator(ConsumerOperator):
    """Takes from the ``train`` queue."""

    phase = TRAIN

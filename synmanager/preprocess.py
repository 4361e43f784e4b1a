"""Operators of the ``preprocess`` phase: data alignment jobs."""

from __future__ import annotations

from synmanager.base import ConsumerOperator, ProducerOperator
from synmanager.phases import PREPROCESS

__all__ = ["PreprocessConsumerOperator", "PreprocessProducerOperator"]


class PreprocessProducerOperator(ProducerOperator):
    """Submits to the ``preprocess`` queue."""

    phase = PREPROCESS


class PreprocessConsumerOperator(ConsumerOperator):
    """Takes from the ``preprocess`` queue."""

    phase = PREPROCESS

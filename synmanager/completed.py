"""Operators of the ``completed`` phase: results, on their way to the archive."""

from __future__ import annotations

from synmanager.base import ConsumerOperator, ProducerOperator
from synmanager.phases import COMPLETED

__all__ = ["CompletedConsumerOperator", "CompletedProducerOperator"]


class CompletedProducerOperator(ProducerOperator):
    """Submits to the ``completed`` queue."""

    phase = COMPLETED


class CompletedConsumerOperator(ConsumerOperator):
    """Takes from the ``completed`` queue."""

    phase = COMPLETED

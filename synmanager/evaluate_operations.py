"""The name under which 0.1.0 released :mod:`synmanager.evaluate`."""

from __future__ import annotations

from synmanager.evaluate import EvaluateConsumerOperator, EvaluateProducerOperator

__all__ = ["EvaluateConsumerOperator", "EvaluateProducerOperator"]

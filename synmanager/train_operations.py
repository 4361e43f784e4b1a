"""The name under which 0.1.0 released :mod:`synmanager.train`."""

from __future__ import annotations

from synmanager.train import TrainConsumerOperator, TrainProducerOperator

__all__ = ["TrainConsumerOperator", "TrainProducerOperator"]

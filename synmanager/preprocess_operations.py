"""The name under which 0.1.0 released :mod:`synmanager.preprocess`."""

from __future__ import annotations

from synmanager.preprocess import PreprocessConsumerOperator, PreprocessProducerOperator

__all__ = ["PreprocessConsumerOperator", "PreprocessProducerOperator"]

"""The name under which 0.1.0 released :mod:`synmanager.completed`."""

from __future__ import annotations

from synmanager.completed import CompletedConsumerOperator, CompletedProducerOperator

__all__ = ["CompletedConsumerOperator", "CompletedProducerOperator"]

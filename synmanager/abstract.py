"""What every operator can do, in four words."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

__all__ = ["AbstractOperator"]


class AbstractOperator(ABC):
    """Connect, process, delete, disconnect: what 0.1.0 promises of every operator.

    To make one, use a phase's, such as ``synmanager.train.TrainProducerOperator``.

    Example:
        >>> from synmanager.train import TrainProducerOperator
        >>> issubclass(TrainProducerOperator, AbstractOperator)
        True
    """

    @abstractmethod
    def connect(self) -> None:
        """Connect to the message exchange."""

    @abstractmethod
    def process(self, /, **kwargs: Any) -> Any:
        """Do what the operator is for with one job."""

    @abstractmethod
    def delete(self, job_id: str) -> bool:
        """Remove a submitted job that has not started."""

    @abstractmethod
    def disconnect(self) -> None:
        """End the connection."""

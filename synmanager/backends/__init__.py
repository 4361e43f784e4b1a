"""The interface to a broker, and the registry that finds the implementation for a URL."""

from synmanager.backends.base import (
    Address,
    Counts,
    DeadLetter,
    Delayed,
    Delivery,
    Entry,
    ExchangeSpec,
    Facts,
    Features,
    QueueBackend,
    QueueSpec,
)
from synmanager.backends.registry import create_backend, known_schemes

__all__ = [
    "Address",
    "Counts",
    "DeadLetter",
    "Delayed",
    "Delivery",
    "Entry",
    "ExchangeSpec",
    "Facts",
    "Features",
    "QueueBackend",
    "QueueSpec",
    "create_backend",
    "known_schemes",
]

"""What every transport does in its own way, below the backend's one way for all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from synmanager.backends.base import Address, ExchangeSpec, QueueSpec
from synmanager.backends.kombu.parcels import Parcel

__all__ = ["Carrier", "Taken"]


@dataclass(eq=False)
class Taken:
    """A message that the transport has handed to us.

    Attributes:
        failures: earlier deliveries of this very message that the transport knows of.
        counted: it counts them by itself; else it only flags that there was one, and the message
            is to be replaced by one that says so.
        handle: what the carrier settles it with.
    """

    queue: str
    parcel: Parcel
    failures: int
    counted: bool
    handle: Any


class Carrier(ABC):
    """One connection of kombu's, for one caller at a time.

    It raises what kombu and the client library raise, and this project's errors where it knows
    better. After anything else than those it is severed and never used again.
    """

    def __init__(self, address: Address) -> None:
        self.address = address

    @abstractmethod
    def open(self) -> None:
        """Connect."""

    @abstractmethod
    def close(self) -> None:
        """Disconnect in an orderly way, within a few seconds. What is held is not given back."""

    @abstractmethod
    def sever(self) -> None:
        """End the connection at once, from any thread, saying nothing to anybody."""

    def beat(self) -> None:
        """Give a sign of life, and look for one; called a few times per heartbeat."""
        return

    beats: bool = False

    @abstractmethod
    def declare_exchange(self, spec: ExchangeSpec) -> None:
        """Make sure that it is there.

        Raises:
            TopologyError: it is of another type.
        """

    @abstractmethod
    def declare_queue(self, spec: QueueSpec, suffixes: list[str]) -> None:
        """Make sure that a queue and those that belong to it are there and bound.

        Args:
            suffixes: of the bound ones, "" for the queue itself. The dead letters are not bound.
        """

    @abstractmethod
    def has(self, queue: str) -> bool:
        """Whether somebody has declared a queue."""

    @abstractmethod
    def publish(
        self, exchange: str, key: str, suffix: str, parcels: list[Parcel], hold: float
    ) -> Iterator[None]:
        """Send to the queues of a route, each with ``suffix``; yields after each that is accepted.

        Raises:
            Unroutable: without the messages.
            PublishRefused: without the messages.
        """

    @abstractmethod
    def put(self, queue: str, parcel: Parcel, hold: float = 0.0) -> None:
        """Send to a queue by its name.

        Args:
            hold: seconds, where the broker keeps delayed messages.
        """

    def filled(self, queues: list[str]) -> Collection[str]:
        """Those in which something may be, where asking for all at once is cheap."""
        return queues

    @abstractmethod
    def take(self, queue: str, lease: float) -> Taken | None:
        """Take the oldest, for ``lease`` seconds where leases end by time."""

    @abstractmethod
    def drop(self, taken: Taken) -> None:
        """It is done.

        Raises:
            LeaseLost: where the transport tells.
        """

    @abstractmethod
    def give_back(self, taken: Taken) -> None:
        """Somebody else may have it, at once; it counts as delivered."""

    def renew(self, taken: Taken, lease: float) -> None:
        """Keep it for another ``lease`` seconds, or look whether it is still ours.

        Raises:
            LeaseLost: it is not.
        """
        return

    def reclaim(self) -> None:
        """Free what others held for too long, where nobody else does that."""
        return

    @abstractmethod
    def size(self, queue: str) -> int:
        """How many wait in it."""

    @abstractmethod
    def purge(self, queue: str) -> int:
        """Remove all that wait in it."""

    @abstractmethod
    def peek(self, queue: str, limit: int) -> list[Parcel]:
        """The oldest, where they lie. Only where the row of the transport says so."""

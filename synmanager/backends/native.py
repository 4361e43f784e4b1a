"""For a driver whose client library has consumer callbacks of its own, and callers who use them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from synmanager.backends.base import Delivery, QueueBackend

__all__ = ["NativeBackend"]


class NativeBackend(QueueBackend):
    """A connection that callers may go past, as those of 0.1.0 do with pika's.

    No driver has to be one. Where it is none, the operators' ``connection`` and ``channel`` are
    the driver itself, and ``generate_callback`` has nothing that could call it.
    """

    @abstractmethod
    def native(self) -> tuple[Any, Any]:
        """The client library's own ``(connection, channel)``.

        They belong to the caller's thread and live until ``close``.

        Raises:
            BrokerUnavailable: nobody answers.
        """

    @abstractmethod
    def adopt(
        self, queue: str, channel: Any, method: Any, properties: Any, body: bytes, *, settled: bool
    ) -> Delivery | None:
        """Make a delivery of what the client library handed to a consumer callback.

        Settling it goes through ``channel``, in the calling thread. None if it must not be run
        now, because it comes again with its attempts counted.

        Args:
            settled: the consumer acknowledges by itself.
        """

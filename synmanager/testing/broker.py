"""What the suite asks of a broker besides its backend."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any

from synmanager.backends.base import ExchangeSpec, QueueBackend, QueueSpec

__all__ = ["BrokerUnderTest"]


class BrokerUnderTest(ABC):
    """A running broker, and what only its own test module knows how to do to it.

    It may be shared and dirty: every test declares names of its own. It may live for one test or
    for many: the suite closes the clients that it took after each test.

    Attributes:
        lease: seconds. Tests that let a lease run out connect with this one: short, because a
            real broker makes them sit it out, and long enough that a busy machine keeps it.
        delay: seconds by which delayed messages are delayed; the same thoughts.
        quiet: seconds of silence after which a test believes that nothing will come.
    """

    lease: float = 1.0
    delay: float = 1.0
    quiet: float = 0.2

    def __init__(self) -> None:
        self._clients: list[QueueBackend] = []

    @abstractmethod
    def new_client(self, **address: Any) -> QueueBackend:
        """Make a backend, not yet opened, with a connection of its own.

        Args:
            address: fields of :class:`~synmanager.backends.Address` to differ in, such as
                ``lease=1.0``.
        """

    @abstractmethod
    def cut(self, client: QueueBackend) -> None:
        """End this client's connection abruptly, as when its process dies or its cable breaks.

        Nothing is given back in an orderly way. The broker knows of it when this returns, or
        soon after. A later ``client.open()`` connects anew.
        """

    @abstractmethod
    def publish_raw(self, queue: str, body: bytes) -> None:
        """Put a message in a queue as a foreign program would: the body and nothing else."""

    def publish_damaged(self, queue: str) -> list[bytes]:
        """Put messages in a queue whose *metadata* no reader can make sense of.

        One for each kind of damage that this broker can carry (an attempt that is no number, a
        field that is missing). Returns their bodies in order, ``b""`` for one without a body.
        By default none: a broker of objects, not of fields, cannot carry damage.
        """
        return []

    def pass_time(self, seconds: float) -> None:
        """Let time pass for the broker and its clients: sleep, or advance a clock."""
        time.sleep(seconds)

    def discard(self, *specs: ExchangeSpec | QueueSpec) -> None:  # noqa: B027 - a default
        """Remove what a test declared. By default it stays, for a broker that is thrown away."""

    def connect(self, **address: Any) -> QueueBackend:
        """Make a client and open it."""
        client = self.new_client(**address)
        self._clients.append(client)
        client.open()
        return client

    def close_clients(self) -> None:
        """Close every client that :meth:`connect` gave."""
        while self._clients:
            self._clients.pop().close()

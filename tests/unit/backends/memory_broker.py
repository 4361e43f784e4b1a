"""A broker in memory for the contract, whose time can be moved."""

from __future__ import annotations

from typing import Any

from synmanager.backends import Address, QueueBackend
from synmanager.backends.memory import MemoryBackend, MemoryBroker, _Entry
from synmanager.clock import Clock
from synmanager.message import Message
from synmanager.testing import BrokerUnderTest

__all__ = ["MemoryUnderTest"]


class SkippingClock(Clock):
    """Real time, plus what a test skips: threads wait as they would, and hours pass at once."""

    skipped = 0.0

    def now(self) -> float:
        return super().now() + self.skipped


class MemoryUnderTest(BrokerUnderTest):
    excuses = dict.fromkeys(
        ("freeze", "freeze_server", "restart", "refused", "dead", "requests", "cut_round_trip"),
        "there is no server",
    ) | dict.fromkeys(("confuse", "publish_damaged"), "it holds objects, which cannot be damaged")
    lease = 10.0
    delay = 10.0
    quiet = 0.02

    #: Made in their place by the self-test of the contract.
    backend = MemoryBackend
    server = MemoryBroker

    def __init__(self) -> None:
        super().__init__()
        self.clock = SkippingClock()
        self.memory = self.server(self.clock)

    def new_client(self, **address: Any) -> MemoryBackend:
        return self.backend(Address("memory", **address), self.memory)

    def cut(self, client: QueueBackend) -> None:
        assert isinstance(client, MemoryBackend)
        client._open = False  # close() would give back

    def publish_raw(self, queue: str, body: bytes) -> None:
        with self.memory.changed:
            self.memory.queue(queue).put(_Entry(Message(body, submitted_at=None, schema=0)))
            self.memory.changed.notify_all()

    def pass_time(self, seconds: float) -> None:
        with self.memory.changed:
            self.clock.skipped += seconds
            self.memory.changed.notify_all()

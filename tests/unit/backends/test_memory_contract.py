"""The memory backend keeps the contract."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings

from synmanager.backends import Address, QueueBackend
from synmanager.backends.memory import MemoryBackend, MemoryBroker, _Entry
from synmanager.clock import Clock
from synmanager.message import Message
from synmanager.testing import BackendContract, BrokerUnderTest
from synmanager.testing.model import ContractMachine


class SkippingClock(Clock):
    """Real time, plus what a test skips: threads wait as they would, and hours pass at once."""

    skipped = 0.0

    def now(self) -> float:
        return super().now() + self.skipped


class MemoryUnderTest(BrokerUnderTest):
    lease = 10.0
    delay = 10.0
    quiet = 0.02

    def __init__(self) -> None:
        super().__init__()
        self.clock = SkippingClock()
        self.memory = MemoryBroker(self.clock)

    def new_client(self, **address: Any) -> MemoryBackend:
        return MemoryBackend(Address("memory", **address), self.memory)

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


class TestMemory(BackendContract):
    @pytest.fixture
    def broker(self) -> MemoryUnderTest:
        return MemoryUnderTest()


class MemoryMachine(ContractMachine):
    def make_broker(self) -> MemoryUnderTest:
        return MemoryUnderTest()


TestMemoryModel = MemoryMachine.TestCase
TestMemoryModel.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, database=None
)

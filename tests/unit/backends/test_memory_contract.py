"""The memory backend keeps the contract."""

from __future__ import annotations

import pytest
from hypothesis import settings
from memory_broker import MemoryUnderTest

from synmanager.testing import BackendContract
from synmanager.testing.model import ContractMachine


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

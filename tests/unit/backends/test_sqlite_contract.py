"""The SQLite backend keeps the contract, on a real file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from sqlite_broker import SQLiteUnderTest
from sqlite_file import FAST

from synmanager.testing import BackendContract
from synmanager.testing.model import ContractMachine


class TestSQLite(BackendContract):
    @pytest.fixture
    def broker(self) -> Iterator[SQLiteUnderTest]:
        with tempfile.TemporaryDirectory(dir=FAST) as directory:
            yield SQLiteUnderTest(Path(directory))


class SQLiteMachine(ContractMachine):
    def make_broker(self) -> SQLiteUnderTest:
        self.directory = tempfile.TemporaryDirectory(dir=FAST)
        return SQLiteUnderTest(Path(self.directory.name))

    def teardown(self) -> None:
        super().teardown()
        if hasattr(self, "directory"):
            self.directory.cleanup()


TestSQLiteModel = SQLiteMachine.TestCase
TestSQLiteModel.settings = settings(
    max_examples=20, stateful_step_count=30, deadline=None, database=None
)

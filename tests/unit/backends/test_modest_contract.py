"""A driver that can do no more than it must keeps the contract as well."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn

import pytest
from memory_broker import MemoryUnderTest

from synmanager.backends import Counts
from synmanager.backends.memory import MemoryBackend
from synmanager.errors import Unsupported
from synmanager.testing import BackendContract


def refuse(*_: Any, **__: Any) -> NoReturn:
    raise Unsupported("this broker cannot do that")


class ModestBackend(MemoryBackend):
    """The broker in memory, without all that ``Features`` lets a driver deny, but what loses."""

    features = replace(
        MemoryBackend.features,
        deletes=False,
        counts_leased=False,
        counts_delayed=False,
        shows_dead_letters=False,
        mends_letters=False,
        shows_delayed=False,
        journal=False,
        undeclares=False,
    )
    delete = dead_letters = redrive_letters = purge_letters = edit_letter = add_letters = refuse
    delayed = record = replay = undeclare = refuse

    def count(self, queue: str) -> Counts:
        return replace(super().count(queue), leased=None, delayed=None)


class TestModest(BackendContract):
    @pytest.fixture
    def broker(self, monkeypatch: pytest.MonkeyPatch) -> MemoryUnderTest:
        monkeypatch.setattr(MemoryUnderTest, "backend", ModestBackend)
        return MemoryUnderTest()

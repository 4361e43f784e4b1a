"""The kombu backend keeps the contract on the transports that need no server.

All of them lose a job with its consumer, and ``Features`` says so. What differs between them is how
messages are put, taken and looked at; the whole contract on each is run by ``scripts/kombu-table``.
"""

from __future__ import annotations

import gc
from pathlib import Path
from uuid import uuid4

import pytest

pytest.importorskip("kombu", reason="kombu is not installed")

from conftest import needs
from kombu_brokers import Contract, KombuUnderTest
from kombu_kill import killed_holder

from synmanager.backends import QueueSpec
from synmanager.testing.dead_letters import DeadLetters
from synmanager.testing.leases import Leases

# kombu 5.7's own, with SQLAlchemy 2.1.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


class TestMemory(Contract):
    @pytest.fixture
    def broker(self) -> KombuUnderTest:
        return KombuUnderTest("kombu+memory://?allow_loss=true")


class Parts(Leases, DeadLetters):
    pass


class TestFilesystem(Parts):
    @pytest.fixture
    def broker(self, tmp_path: Path) -> KombuUnderTest:
        return KombuUnderTest(f"kombu+filesystem://{tmp_path}?allow_loss=true")


class TestSqlite(Parts):
    @pytest.fixture
    def broker(self, tmp_path: Path) -> KombuUnderTest:
        needs("sqlalchemy")
        return KombuUnderTest(f"kombu+sqla+sqlite:///{tmp_path}/jobs.db?allow_loss=true")

    def test_who_is_closed_gives_his_connection_back(
        self, broker: KombuUnderTest, spec: QueueSpec
    ) -> None:
        gc.disable()
        try:
            for _ in range(20):  # more than the pool has
                client = broker.connect()
                client.count(spec.name)
                client.close()
        finally:
            gc.enable()


@pytest.mark.parametrize(
    "url",
    ["kombu+filesystem://{}?allow_loss=true", "kombu+sqla+sqlite:///{}/jobs.db?allow_loss=true"],
    ids=["filesystem", "sqlite"],
)
def test_a_killed_consumer_takes_its_job_with_it(url: str, tmp_path: Path) -> None:
    assert killed_holder(url.format(tmp_path), f"kill-{uuid4().hex}") == "lost"

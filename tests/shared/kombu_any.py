"""The contract on the transport at ``SYNMANAGER_KOMBU_URL``, for ``scripts/kombu-table``."""

from __future__ import annotations

import os

import pytest
from kombu_brokers import KombuUnderTest, Parts, WholeContract

from synmanager.testing.topology import Topology

# kombu 5.7's own, with SQLAlchemy 2.1.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


URL = os.environ.get("SYNMANAGER_KOMBU_URL", "")


class Few(Parts, Topology):
    """What can be waited for where a question takes tens of milliseconds."""


class TestAny(Few if "+sqs:" in URL else WholeContract):  # type: ignore[misc]
    @pytest.fixture
    def broker(self) -> KombuUnderTest:
        return KombuUnderTest(URL)

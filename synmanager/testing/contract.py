"""The whole contract in one class."""

from __future__ import annotations

from synmanager.testing.chains import Chains
from synmanager.testing.concurrency import Concurrency
from synmanager.testing.counting import Counting
from synmanager.testing.dead_letters import DeadLetters
from synmanager.testing.delays import Delays
from synmanager.testing.durability import Durability
from synmanager.testing.interruptions import Interruptions
from synmanager.testing.journal import Journal
from synmanager.testing.leases import Leases
from synmanager.testing.lifecycle import Lifecycle
from synmanager.testing.mending import Mending
from synmanager.testing.publishing import Publishing
from synmanager.testing.ranking import Ranking
from synmanager.testing.receiving import Receiving
from synmanager.testing.refusals import Refusals
from synmanager.testing.removal import Removal
from synmanager.testing.settling import Settling
from synmanager.testing.silence import Silence
from synmanager.testing.topology import Topology

__all__ = ["BackendContract"]


class BackendContract(
    Publishing,
    Receiving,
    Settling,
    Chains,
    Leases,
    Ranking,
    Delays,
    DeadLetters,
    Mending,
    Topology,
    Removal,
    Counting,
    Lifecycle,
    Concurrency,
    Journal,
    Refusals,
    Silence,
    Interruptions,
    Durability,
):
    """What a backend must do. Subclass it with a fixture ``broker``; see the package."""

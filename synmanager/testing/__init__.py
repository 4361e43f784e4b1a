"""The contract suite: what a :class:`~synmanager.backends.QueueBackend` must do, as tests.

A backend is whatever passes it. To test one, subclass :class:`BrokerUnderTest` with what only you
know about your broker, and :class:`BackendContract` with one fixture::

    import pytest
    from synmanager.backends import Address
    from synmanager.testing import BackendContract, BrokerUnderTest

    class NatsUnderTest(BrokerUnderTest):
        def new_client(self, **address):
            return NatsBackend(Address("nats", host="localhost", **address))

        def cut(self, client):
            client._socket.close()                  # as if the process had died

        def publish_raw(self, queue, body):
            plain_nats_publish(queue, body)         # with the client library alone

    class TestNats(BackendContract):
        @pytest.fixture
        def broker(self):
            return NatsUnderTest()

Everything else in ``BrokerUnderTest`` has a default. Run with ``pytest``; a test that needs what
``Features`` denies asserts that it is refused, so that nothing is ever skipped.

One file per topic, each a class that can also be run alone (``class TestNatsLeases(Leases)``):

=================  =================================================================
``publishing``     acceptance, routing, batches, what a message keeps on its way
``receiving``      order, waiting and waking up, no hoarding, bodies of strangers
``settling``       ack, nack and bury, once and twice
``chains``         receive that acknowledges the job before
``leases``         crashes, lost and renewed leases, attempts
``ranking``        ranks within a queue, order of queues
``delays``         delayed messages and delayed retries
``dead_letters``   list, redrive, purge
``topology``       declare, exchanges, what is missing or mismatched
``counting``       count, purge, delete, deduplicate
``lifecycle``      open, close, use at the wrong time, forks
``concurrency``    many threads, many clients
=================  =================================================================

``synmanager.testing.model`` adds a random walk through all of it, checked against a model; it
needs ``hypothesis``, the rest only ``pytest``.
"""

from __future__ import annotations

import pytest

_TOPICS = (
    "chains",
    "concurrency",
    "counting",
    "dead_letters",
    "delays",
    "leases",
    "lifecycle",
    "publishing",
    "ranking",
    "receiving",
    "settling",
    "topology",
)

# So that a failing assertion in these modules shows its values, as it would in a test module.
pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in (*_TOPICS, "model", "steps")))

from synmanager.testing.broker import BrokerUnderTest  # noqa: E402
from synmanager.testing.contract import BackendContract  # noqa: E402

__all__ = ["BackendContract", "BrokerUnderTest"]

"""The contract suite: what a :class:`~synmanager.backends.QueueBackend` must do, as tests.

It is for those who write one. What users test their own code with is ``synmanager.testkit``.

A backend is whatever passes it. To test one, subclass :class:`BrokerUnderTest` with what only you
know about your broker, and :class:`BackendContract` with one fixture::

    import pytest
    from synmanager.backends import Address
    from synmanager.testing import BackendContract
    from synmanager.testing.network import NetworkBrokerUnderTest

    class NatsUnderTest(NetworkBrokerUnderTest):
        def new_client(self, **address):
            return NatsBackend(Address("nats", **{"host": "localhost", "port": 4222, **address}))

        def cut(self, client):
            client._socket.close()                  # as if the process had died

        def publish_raw(self, queue, body):
            plain_nats_publish(queue, body)         # with the client library alone

        def refused(self, password):
            return {"username": "nobody", "password": password}

    class TestNats(BackendContract):
        @pytest.fixture
        def broker(self):
            return NatsUnderTest("localhost", 4222)

Everything else in ``BrokerUnderTest`` has a default, or is reported: what its owner cannot do to a
broker (freeze it, restart it, lose a reply), and what is therefore not tested, stands in the
reasons of the skipped tests, and in the last lines of the run. A driver that talks to a host and a
port gets most of it from ``synmanager.testing.network.NetworkBrokerUnderTest``. Run with
``pytest``; a test that needs what ``Features`` denies asserts that it is refused.

A step that blocks fails with its name, after ``BrokerUnderTest.patience`` seconds.

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
``mending``        single letters, delayed messages, what a broker tells of itself
``topology``       declare, exchanges, what is missing or mismatched
``removal``        undeclare: a queue is gone, and no other
``counting``       count, purge, delete, deduplicate
``lifecycle``      open, close, use at the wrong time, forks
``concurrency``    many threads, many clients
``journal``        logs: order, exactness, waiting, retention
``refusals``       refused, unavailable, misconfigured; no password is told
``silence``        a frozen broker, bounded calls, waiting that costs nothing
``interruptions``  connections cut at every round trip of every operation
``durability``     what outlives the broker
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
    "journal",
    "durability",
    "interruptions",
    "leases",
    "lifecycle",
    "mending",
    "publishing",
    "ranking",
    "receiving",
    "refusals",
    "removal",
    "settling",
    "silence",
    "topology",
)

# So that a failing assertion in these modules shows its values, as it would in a test module.
pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in (*_TOPICS, "model", "steps")))

from synmanager.testing.broker import BrokerUnderTest  # noqa: E402
from synmanager.testing.contract import BackendContract  # noqa: E402

__all__ = ["BackendContract", "BrokerUnderTest"]

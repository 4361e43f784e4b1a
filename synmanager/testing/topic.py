"""What the tests of every topic share: a broker, a client, a queue."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from synmanager.backends.base import ExchangeSpec, QueueBackend, QueueSpec
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.steps import make_spec
from synmanager.testing.watchdog import bounded, watched

__all__ = ["UNHURRIED", "Topic"]

#: So many times as long are leases and delays of which a part is to pass, and no more, on a machine
#: that may stand still for a moment.
UNHURRIED = 3

#: Makes and declares one more queue; takes the arguments of :func:`make_spec`.
Declare = Callable[..., QueueSpec]


class Topic:
    """Base of the topics. The fixture ``broker`` comes from the backend's own test module."""

    @pytest.fixture(autouse=True)
    def _is_watched(self, broker: BrokerUnderTest, request: pytest.FixtureRequest) -> None:
        request.node.obj = watched(request.node.obj, broker.patience)

    @pytest.fixture(autouse=True)
    def _clients_are_closed(self, broker: BrokerUnderTest) -> Iterator[None]:
        yield
        broker.thaw()
        broker.close_clients()

    @pytest.fixture
    def client(self, broker: BrokerUnderTest) -> QueueBackend:
        """A connected client with the default lease."""
        return broker.connect()

    @pytest.fixture
    def other(self, broker: BrokerUnderTest) -> QueueBackend:
        """A second client, such as another worker."""
        return broker.connect()

    @pytest.fixture
    def worker(self, broker: BrokerUnderTest) -> QueueBackend:
        """A client whose lease can be waited out."""
        return broker.connect(lease=broker.lease)

    @pytest.fixture
    def unhurried(self, broker: BrokerUnderTest) -> QueueBackend:
        """A client whose lease can be waited out, and a part of which is more than a moment."""
        return broker.connect(lease=UNHURRIED * broker.lease)

    @pytest.fixture
    def declare(self, broker: BrokerUnderTest, client: QueueBackend) -> Iterator[Declare]:
        declared: list[ExchangeSpec | QueueSpec] = []

        def declare_one(type: str = "topic", *, exchange: ExchangeSpec | None = None) -> QueueSpec:
            spec = make_spec(type, exchange=exchange)
            bounded(broker.patience, client.declare, spec)
            declared.extend((spec, spec.exchange))
            return spec

        yield declare_one
        broker.thaw()
        broker.discard(*declared)

    @pytest.fixture
    def spec(self, declare: Declare) -> QueueSpec:
        """A queue on a topic exchange, both of this test's own."""
        return declare()

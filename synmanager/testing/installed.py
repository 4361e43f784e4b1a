"""The contract for a backend known by its URL: ``pytest --synmanager-backend URL``."""

from __future__ import annotations

import gc
import warnings
from dataclasses import replace
from typing import Any

import pytest

from synmanager.backends.base import Address, QueueBackend
from synmanager.backends.registry import create_backend
from synmanager.testing.contract import BackendContract
from synmanager.testing.network import NetworkBrokerUnderTest

__all__ = ["BrokerAtURL", "TestBackend", "use"]

#: What needs a proxy, and so one host and its port.
_BY_PROXY = ("freeze", "requests", "cut_round_trip", "dead")


_ADDRESS = pytest.StashKey[Address]()


def use(config: pytest.Config, address: Address) -> None:
    """Let :class:`TestBackend` test the backend at this address.

    Raises:
        ConfigurationError: no backend can be made for it.
    """
    create_backend(address)
    config.stash[_ADDRESS] = address


class BrokerAtURL(NetworkBrokerUnderTest):
    """What can be done to a broker about which a URL says everything."""

    lease = 2.0

    def __init__(self, address: Address) -> None:
        self._address = address
        self._by_proxy = bool(address.host and address.port and not address.others)
        super().__init__(address.host or "", address.port or 0)

    def new_client(self, **address: Any) -> QueueBackend:
        return create_backend(replace(self._address, **address))

    def make(self, *, wired: bool = False, **address: Any) -> QueueBackend:
        # All that can: it is by its proxy that a client is cut.
        return super().make(wired=self._by_proxy, **address)

    def lacks(self, ability: str) -> str:
        if ability in _BY_PROXY and not self._by_proxy:
            return "the URL names no one host and port"
        if ability == "cut" and not self._by_proxy:
            features = self.new_client().features
            if not (features.shared and features.timed_lease):
                return "there is no connection that could be cut"
        if ability == "refused" and not self._address.password:
            return "the URL names no password"
        return super().lacks(ability) and "only its owner knows how; write a class for it"

    def cut(self, client: QueueBackend) -> None:
        if self.lacks("cut"):
            self.miss("cut")
        if client in self._proxies:
            self._proxies[client].reset()
        else:
            client.abandon()  # and its leases run out
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                gc.collect()  # what it has left open, as a process that dies does

    def freeze(self) -> None:
        if self.lacks("freeze"):
            self.miss("freeze")
        super().freeze()

    def new_wired_client(self, **address: Any) -> QueueBackend:
        if self.lacks("requests"):
            return self.new_client(**address)
        return super().new_wired_client(**address)

    def refused(self, password: str) -> dict[str, Any]:
        if self.lacks("refused"):
            self.miss("refused")
        return {"password": password}

    def dead(self, password: str) -> dict[str, Any]:
        if self.lacks("dead"):
            self.miss("dead")
        return super().dead(password)

    def requests(self, client: QueueBackend) -> int:
        if self.lacks("requests"):
            self.miss("requests")
        return super().requests(client)


class TestBackend(BackendContract):
    @pytest.fixture
    def broker(self, request: pytest.FixtureRequest) -> BrokerAtURL:
        return BrokerAtURL(request.config.stash[_ADDRESS])

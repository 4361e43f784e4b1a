"""What a proxy does for a broker that is reached by a host and a port."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from synmanager.backends.base import QueueBackend
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.proxy import Proxy

__all__ = ["NetworkBrokerUnderTest"]


class NetworkBrokerUnderTest(BrokerUnderTest):
    """A broker at a host and a port, and a proxy before it for each wired client.

    ``new_client`` must heed the fields ``host`` and ``port``. Left to the owner are ``restart``,
    ``freeze_server``, ``refused``, and what needs the broker's own language; ``freeze`` may be
    done better.
    """

    def __init__(self, host: str, port: int) -> None:
        super().__init__()
        self._host = host
        self._port = port
        self._proxies: dict[QueueBackend, Proxy] = {}

    def new_wired_client(self, **address: Any) -> QueueBackend:
        proxy = Proxy(self._port, self._host)
        try:
            client = self.new_client(**{"host": "127.0.0.1", "port": proxy.port, **address})
        except BaseException:
            proxy.close()
            raise
        self._proxies[client] = proxy
        return client

    def close_clients(self) -> None:
        try:
            super().close_clients()
        finally:
            while self._proxies:
                self._proxies.popitem()[1].close()

    def freeze(self) -> None:
        for proxy in self._proxies.values():
            proxy.freeze()

    def thaw(self) -> None:
        for proxy in self._proxies.values():
            proxy.thaw()

    def dead(self, password: str) -> dict[str, Any]:
        with socket.socket() as nobody:
            nobody.bind(("127.0.0.1", 0))
            port = nobody.getsockname()[1]
        return {"host": "127.0.0.1", "port": port, "username": "someone", "password": password}

    def requests(self, client: QueueBackend) -> int:
        return self._proxies[client].requests

    def cut_round_trip(
        self, client: QueueBackend, number: int, *, acted: bool
    ) -> Callable[[], bool]:
        return self._proxies[client].cut_round_trip(number, acted=acted)

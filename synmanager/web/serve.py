"""A server around the dashboard, for as long as its process lives."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from synmanager.checks import is_loopback
from synmanager.errors import ConfigurationError
from synmanager.web.gate import Guards
from synmanager.web.observer import Observer

__all__ = ["Server", "check_reach", "listen"]


#: Seconds within which a request has to be there in whole. Connections are counted, and one that
#: says nothing counts as well.
_WHOLE = 30.0


class _Connection(H11Protocol):
    """One that ends if it takes too long over a request: uvicorn waits for the first for ever."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._wait_or_not()

    def handle_events(self) -> None:
        super().handle_events()
        self._wait_or_not()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _wait_or_not(self) -> None:
        """A byte now and then puts nothing off; the end of a request does."""
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            if self._deadline is not None:
                self._deadline.cancel()
            self._deadline = None
        elif self._deadline is None:
            self._deadline = self.loop.call_later(_WHOLE, self.transport.abort)


class Server(uvicorn.Server):
    """One whose streams end when it is told to."""

    def __init__(self, app: ASGIApp, observer: Observer) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Connection,
                lifespan="off",
                log_config=None,
                access_log=False,  # paths name jobs
                server_header=False,
                proxy_headers=False,  # anybody can write those
                timeout_graceful_shutdown=2,
                limit_concurrency=500,
                h11_max_incomplete_event_size=64 * 1024,
            )
        )
        self._observer = observer

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._observer.end_streams()
        await super().shutdown(sockets)


def check_reach(host: str, guards: Guards) -> None:
    """Refuse to serve strangers who need not say who they are.

    Raises:
        ConfigurationError: others than this machine reach the address, and there is no token.
    """
    if guards.token is None and not is_loopback(host):
        raise ConfigurationError(
            f"{host} may be reached by others: give a token, by --token-file or "
            "SYNMANAGER_DASHBOARD_TOKEN, or serve 127.0.0.1 alone"
        )


def listen(host: str, port: int) -> socket.socket:
    """A socket that others can connect to from now on.

    Raises:
        OSError: the port is taken, or there is no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(128)
    except BaseException:
        made.close()
        raise
    return made

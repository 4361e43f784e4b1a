"""A server around the dashboard, for as long as its process lives."""

from __future__ import annotations

import socket

import uvicorn
from starlette.types import ASGIApp

from synmanager.checks import is_loopback
from synmanager.errors import ConfigurationError
from synmanager.web.gate import Guards
from synmanager.web.observer import Observer

__all__ = ["Server", "check_reach", "listen"]


class Server(uvicorn.Server):
    """One whose streams end when it is told to."""

    def __init__(self, app: ASGIApp, observer: Observer) -> None:
        super().__init__(
            uvicorn.Config(
                app,
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

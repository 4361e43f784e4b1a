"""fakeredis as the backend's server, and what it lacks of one.

It has no INFO, no CONFIG and no script flags; its sockets cannot be shut down by another thread.
What differs beyond that is found out by ``tests/integration``, on real servers.
"""

from __future__ import annotations

import re
from typing import Any

import fakeredis
import pytest
import redis

from synmanager.backends.redis import scripts
from synmanager.backends.redis.scripts import Script

__all__ = ["FakeConnection", "new_server"]

# Skips whoever imports this.
pytest.importorskip("lupa", reason="Redis, as lupa is not there: it has no wheel for Python 3.15")

# It waits within the call that sends, where nobody can be asked whether to go on.
_BLOCK = re.compile(rb"\$5\r\nBLOCK\r\n\$[0-9]+\r\n[0-9]{4,}\r\n")
_BLOCK_BRIEFLY = b"$5\r\nBLOCK\r\n$3\r\n500\r\n"

INFO = b"# Server\r\nredis_version:7.0.0\r\nloading:0\r\nmaxmemory_policy:noeviction\r\n"


def new_server() -> fakeredis.FakeServer:
    """A server of its own, which knows the scripts without the line that holds their flags."""
    server = fakeredis.FakeServer(version=(7, 0))
    for script in vars(scripts).values():
        if isinstance(script, Script):
            _, _, code = script.source.partition("\n")
            server.script_cache[script.sha.encode()] = code.encode()
    return server


class FakeConnection(fakeredis.FakeRedisConnection):
    """A connection to a ``server``, with a socket that close() can shut down.

    Attributes:
        info: what INFO answers.
    """

    info = INFO
    _canned: bytes | None = None

    def _connect(self) -> Any:
        return _Socket(super()._connect())

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if command == [b"*1\r\n$4\r\nINFO\r\n"]:
            self._canned = self.info
        else:
            command = [_BLOCK.sub(_BLOCK_BRIEFLY, part) for part in command]
            super().send_packed_command(command, check_health)  # type: ignore[no-untyped-call]

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        canned, self._canned = self._canned, None
        return super().read_response(**kwargs) if canned is None else canned


class _Socket:
    """What fakeredis calls a socket, which ends a blocking command when it is shut down.

    There, a command runs in the thread that sends it; shutting down closes the generator that
    runs it, which Python refuses while it runs.
    """

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._is_down = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def sendall(self, data: bytes) -> None:
        if not self._is_down:
            self._socket.sendall(data)
        if self._is_down:
            raise redis.ConnectionError("shut down")

    def shutdown(self, _: Any) -> None:
        self._is_down = True
        server = self._socket._server
        if server is None:
            return
        with server.lock:
            self._socket._unblock_reason = b"timeout"
            for db in server.dbs.values():
                db.condition.notify_all()

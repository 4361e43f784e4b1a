"""Ports for servers that a test starts."""

from __future__ import annotations

import os
import random
import socket

__all__ = ["free_port"]

#: None of those that the kernel gives to clients, and to servers that do not care.
_PORTS = range(10_000, 32_000)

#: Among how many processes of pytest-xdist they are shared out.
_SHARES = 16

_given: set[int] = set()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses.

    Nor will while its server is down, or has yet to start: each is given once, and other processes
    of a run are given others.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    ours = _PORTS[worker % _SHARES :: _SHARES]
    while True:
        port = random.choice(ours)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port

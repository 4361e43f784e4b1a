"""No socket has a number that programs print to."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: What a daemon does, and then this project.
_MOVED = """
import os, socket
for number in range(3):
    os.close(number)
from synmanager.sockets import above_stdio
pairs = [socket.socketpair() for _ in range(2)]
for sock in pairs[0]:
    sock.settimeout(7)
low = [sock.fileno() for sock in (*pairs[0], *pairs[1])]
moved = [above_stdio(sock) for sock in (*pairs[0], *pairs[1])]
free = [os.open(os.devnull, os.O_RDWR) for _ in range(3)]
moved[0].sendall(b"as before")
answer = moved[1].recv(100)
os._exit(
    42 * (
        low == [0, 1, 2, 3]
        and free == [0, 1, 2]
        and min(sock.fileno() for sock in moved) >= 3
        and moved[3] is pairs[1][1]
        and moved[0].gettimeout() == 7
        and not os.get_inheritable(moved[0].fileno())
        and answer == b"as before"
    )
)
"""

_TAKEN = """
import os, socket
os.close(0)
os.close(2)
from synmanager.sockets import stdio_taken
with stdio_taken():
    one, other = socket.socketpair()
low = [os.open(os.devnull, os.O_RDWR) for _ in range(2)]
os._exit(42 * (one.fileno() > 2 and other.fileno() > 2 and low == [0, 2]))
"""


@pytest.mark.parametrize("program", [_MOVED, _TAKEN], ids=["moved", "taken"])
def test_after_a_daemon_has_closed_them(program: str) -> None:
    assert subprocess.run([sys.executable, "-c", program], timeout=30).returncode == 42

"""The Lua scripts, each of which is one atomic step on the server."""

from __future__ import annotations

import hashlib
from importlib import resources

__all__ = ["Script"]

# With this flag a script runs on a server that is over its memory limit: acks, renewals and
# moves must go on there, for they are what makes room. Only new messages are refused.
_RUNS_WHEN_FULL = "#!lua flags=allow-oom\n"
_NEEDS_ROOM = "#!lua\n"


def _read(name: str) -> str:
    return resources.files(__package__).joinpath("lua", f"{name}.lua").read_text("utf-8")


class Script:
    """A script and the hash under which the server caches it.

    Args:
        name: of the file, without its ending.
        adds: whether it adds messages, and must fail on a server without room.
    """

    def __init__(self, name: str, *, adds: bool = False) -> None:
        self.name = name
        head = _NEEDS_ROOM if adds else _RUNS_WHEN_FULL
        self.source = head + _read("common") + _read(name)
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


PUBLISH = Script("publish", adds=True)
RECEIVE = Script("receive")
ACK = Script("ack")
NACK = Script("nack")
BURY = Script("bury")
RENEW = Script("renew")
RELEASE = Script("release")
COUNT = Script("count")
PURGE = Script("purge")
DELETE = Script("delete")
REDRIVE = Script("redrive")
BIND = Script("bind")
MEND = Script("mend")

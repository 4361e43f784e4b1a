"""The Lua scripts, each of which is one atomic step on the server."""

from __future__ import annotations

import hashlib
from importlib import resources

__all__ = ["Script"]

# With the flag allow-oom a script runs on a server that is over its memory limit: acks, renewals
# and moves must go on there, for they are what makes room. Only new messages are refused. With
# no-writes it runs even where nothing can be written.
_RUNS_WHEN_FULL = "#!lua flags=allow-oom\n"
_NEEDS_ROOM = "#!lua\n"
_READS = "#!lua flags=no-writes,allow-oom\n"


def _read(name: str) -> str:
    return resources.files(__package__).joinpath("lua", f"{name}.lua").read_text("utf-8")


class Script:
    """A script and the hash under which the server caches it.

    Args:
        name: of the file, without its ending.
        head: its first line, with its flags.
    """

    def __init__(self, name: str, head: str = _RUNS_WHEN_FULL) -> None:
        self.name = name
        self.source = head + _read("common") + _read(name)
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


PUBLISH = Script("publish", _NEEDS_ROOM)
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
DECLARED = Script("declared", _READS)
BIND = Script("bind")
MEND = Script("mend")

"""The Lua scripts, each of which is one atomic step on the server."""

from __future__ import annotations

import hashlib
from importlib import resources

from synmanager.backends.redis.shapes import Fits, each, many, or_none, taken, text, whole

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
        fits: tells what an answer of its looks like.
        head: its first line, with its flags.
        lasts: what it has done must not be undone by a failover.
    """

    def __init__(
        self, name: str, fits: Fits, head: str = _RUNS_WHEN_FULL, *, lasts: bool = False
    ) -> None:
        self.name = name
        self.lasts = lasts
        self.fits = fits
        self.source = head + _read("common") + _read(name)
        self.sha = hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()


PUBLISH = Script("publish", each(whole, whole), _NEEDS_ROOM, lasts=True)
RECEIVE = Script("receive", taken, lasts=True)
ACK = Script("ack", whole, lasts=True)
NACK = Script("nack", whole, lasts=True)
BURY = Script("bury", whole, lasts=True)
# A primary that is cut off would renew what its successor gives to another worker.
RENEW = Script("renew", whole, lasts=True)
RELEASE = Script("release", whole)
COUNT = Script("count", each(whole, whole, whole, whole, whole))
PURGE = Script("purge", whole)
DELETE = Script("delete", whole)
REDRIVE = Script("redrive", each(whole, text), lasts=True)
EDIT = Script("edit", whole, lasts=True)
ADD = Script("add", whole, _NEEDS_ROOM, lasts=True)
DELAYED = Script("delayed", many(each(whole, text, many(text))), _READS)
DECLARED = Script("declared", whole, _READS)
BIND = Script("bind", text, lasts=True)
UNDECLARE = Script("undeclare", whole, lasts=True)
MEND = Script("mend", or_none(many(text)), lasts=True)
RECORD = Script("record", whole, _NEEDS_ROOM)
MISFITS = Script("misfits", many(text), _READS)

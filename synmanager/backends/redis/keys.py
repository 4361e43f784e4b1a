"""The names of this project's keys."""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote

__all__ = ["Keys", "kinds_of_queue"]


class Keys:
    """Every key of one installation.

    All share one hash tag, so that on a cluster they live on one node and a script may use
    several of them. ``lua/common.lua`` says what stands behind a queue's base.
    """

    def __init__(self, prefix: str) -> None:
        root = f"{{{prefix}}}"
        #: A hash: the type of each exchange by its name.
        self.exchanges = f"{root}:exchanges"
        #: A set: the names of the declared queues.
        self.queues = f"{root}:queues"
        #: What the base of each queue begins with.
        self.queue_base = f"{root}:queue:"
        self._routes = f"{root}:route:"
        self._logs = f"{root}:journal:"

    def base(self, queue: str) -> str:
        return self.queue_base + queue

    def route(self, exchange: str, routing_key: str | None) -> str:
        """A set: the queues bound to an exchange by this key; None for those of a fanout."""
        # Quoted, so that a colon in a name cannot make two routes one.
        name = self._routes + _quoted(exchange)
        return name if routing_key is None else f"{name}:{routing_key}"

    def log(self, name: str) -> str:
        """A stream: a log of the journal."""
        return self._logs + name


@lru_cache(64)
def _quoted(name: str) -> str:
    return quote(name, safe="")


def kinds_of_queue(base: str) -> dict[str, str]:
    """The type of each key that stands behind a queue's base."""
    streams = ("high", "normal", "low", "delayed", "dead", "bell")
    kinds = dict.fromkeys((f"{base}:{name}" for name in streams), "stream")
    return kinds | {f"{base}:due": "zset", f"{base}:leases": "zset", f"{base}:ids": "hash"}

"""Whether a server is one that can be trusted with jobs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from redis import exceptions as redis_errors

from synmanager.errors import BrokerUnavailable, TopologyError

__all__ = ["check_server"]

logger = logging.getLogger("synmanager.backends.redis")

#: Scripts with flags, and pending lists that forget what was deleted from the stream.
_OLDEST = (7, 0)

_warned: set[str] = set()


def check_server(call: Callable[..., Any], where: str) -> None:
    """Ask a server about itself; warn once of one that may lose jobs when it restarts.

    Args:
        call: sends one command.
        where: the server, as ``host:port``.

    Raises:
        TopologyError: it is too old, or evicts keys when it is full.
        BrokerUnavailable: it is still loading its data.
    """
    info = _parse(call("INFO"))
    version = info.get("redis_version", "")
    if _numbers(version) < _OLDEST:
        raise TopologyError(
            f"Redis at {where} is version {version or 'unknown'}; 7.0 or later is needed"
        )
    if info.get("loading", "0") != "0":
        raise BrokerUnavailable(f"Redis at {where} is not ready: it is still loading its data")
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        raise TopologyError(
            f"Redis at {where} would throw jobs away when it is full: its maxmemory-policy is "
            f"{policy!r}, and must be 'noeviction'"
        )
    if where not in _warned:
        doubt = _doubt(call, info)
        if doubt:
            _warned.add(where)
            logger.warning(
                "Redis at %s confirms jobs before they are on its disk (%s); a crash can lose "
                "the last of them. Set appendonly yes and appendfsync always.",
                where,
                doubt,
            )
        elif _drops_scripts(call):
            _warned.add(where)
            logger.warning(
                "Redis at %s may drop confirmed jobs when it restarts: it replays the scripts in "
                "its append-only file as the user 'default', who may not do what they did. Keep "
                "that user from logging in without taking its rights: "
                "ACL SETUSER default off ~* &* +@all",
                where,
            )


def _doubt(call: Callable[..., Any], info: dict[str, str]) -> str:
    """Why what is confirmed may not be on the disk; "" if it is, or nobody can tell."""
    if info.get("aof_enabled") == "0":
        return "appendonly no"
    try:
        answer = call("CONFIG", "GET", "appendfsync")
    except redis_errors.ResponseError:
        return ""  # hosted servers do not let everyone see their configuration
    setting = answer[1].decode() if answer else "always"
    return "" if setting == "always" else f"appendfsync {setting}"


def _drops_scripts(call: Callable[..., Any]) -> bool:
    """Whether the append-only file would not be replayed; False if nobody can tell.

    A script's writes are a transaction there, and the rights of a transaction are looked at again
    when it is replayed: redis/redis 14541, valkey-io/valkey 3983.
    """
    try:
        answer = call("ACL", "DRYRUN", "default", "XADD", "{synmanager}:", "*", "a", "b")
    except redis_errors.ResponseError:
        return False  # we may not ask
    return bytes(answer) != b"OK"


def _parse(info: bytes) -> dict[str, str]:
    lines = info.decode("utf-8", "replace").splitlines()
    return {name: value for name, _, value in (line.partition(":") for line in lines)}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())

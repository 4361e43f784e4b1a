"""Whether a server is one that can be trusted with jobs."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Any

from synmanager.backends.base import Facts
from synmanager.backends.redis.faults import Failed
from synmanager.backends.redis.shapes import many, text
from synmanager.errors import AccessRefused, BrokerUnavailable, TopologyError
from synmanager.interrupts import is_from_handler

__all__ = ["check_server", "facts_of", "who_is_there"]

logger = logging.getLogger("synmanager.backends.redis")

#: Scripts with flags, and pending lists that forget what was deleted from the stream.
_OLDEST = (7, 0)

_warned: set[str] = set()


def check_server(call: Callable[..., Any], where: str) -> None:
    """Ask a server about itself; warn once of one that may lose jobs when it restarts.

    Args:
        call: sends one command, see ``Connections.call``.
        where: the server, as ``host:port``.

    Raises:
        TopologyError: it is too old, or may evict our keys when it is full.
        AccessRefused: it is a Sentinel.
        BrokerUnavailable: it is still loading its data, or is a replica.
        Failed: there is no answer.
    """
    try:
        info = _parse(call("INFO", fits=text))
    except Failed as failure:
        if failure.code != "NOPERM":
            raise
        if where not in _warned:
            _warned.add(where)
            logger.warning(
                "Redis at %s does not let us see what it is (INFO): whether it is version 7.0 or "
                "later, keeps what it confirms and evicts nothing is for you to know",
                where,
            )
        return
    if info.get("redis_mode") == "sentinel":
        raise AccessRefused(
            f"{where} is a Sentinel, which knows where the primary is and keeps no jobs; ask it "
            "(SENTINEL GET-MASTER-ADDR-BY-NAME) and use that address"
        )
    if "redis_version" not in info:
        raise BrokerUnavailable(f"what is at {where} gave an answer to INFO that is not known")
    version = info["redis_version"]
    if _numbers(version) < _OLDEST:
        raise TopologyError(
            f"Redis at {where} is version {version or 'unknown'}; 7.0 or later is needed"
        )
    if info.get("loading", "0") != "0":
        raise BrokerUnavailable(f"Redis at {where} is not ready: it is still loading its data")
    if info.get("role", "master") != "master":
        raise BrokerUnavailable(f"Redis at {where} is a replica; the primary is needed")
    policy = info.get("maxmemory_policy", "noeviction")
    # Those named volatile-* evict keys that expire, and no key of ours does.
    if policy.startswith("allkeys"):
        raise TopologyError(
            f"Redis at {where} would throw jobs away when it is full: its maxmemory-policy is "
            f"{policy!r}, and must be 'noeviction', or a 'volatile' one"
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


#: What decides whether a job that was accepted stays.
_SETTINGS = ("appendfsync", "appendonly", "maxmemory", "maxmemory-policy", "save")

#: What a primary says of who copies it.
_FIGURES = ("connected_slaves",)


def facts_of(call: Callable[..., Any]) -> Facts:
    """What a server is, its version, and those of its settings that it lets be seen.

    Raises:
        Failed: there is no answer, or one that is not about rights.
    """
    info: dict[str, str] = {}
    settings: dict[str, str] = {}
    try:
        info = _parse(call("INFO", fits=text))
        if info.get("role") == "master":
            settings.update({name: info[name] for name in _FIGURES if name in info})
        for name in _SETTINGS:
            answer = call("CONFIG", "GET", name, fits=many(text))
            if len(answer) > 1:
                settings[name] = answer[1].decode("utf-8", "replace")
    except Failed as failure:
        if not failure.code:
            raise
    product, name = ("Valkey", "valkey") if "valkey_version" in info else ("Redis", "redis")
    return Facts(product, info.get(f"{name}_version", ""), settings=settings, room=_room(info))


def _room(info: dict[str, str]) -> dict[str, tuple[int, int]]:
    """The memory that is used, of what the server allows itself, or else of what there is."""
    used, *limits = (
        int(info.get(name, "")) if info.get(name, "").isdecimal() else 0
        for name in ("used_memory", "maxmemory", "total_system_memory")
    )
    most = limits[0] or limits[1]
    return {"memory": (used, most)} if used and most else {}


#: What a server of another kind begins with when it is spoken to in Redis's protocol.
_OTHERS = {
    b"AMQP": "AMQP, as RabbitMQ does; use amqp://, or the port of Redis",
    b"HTTP/": "HTTP; use the port of Redis",
    b"<": "HTTP; use the port of Redis",
}

#: Seconds within which such a server has said something.
_FIRST_WORDS = 2.0


def who_is_there(host: str, port: int) -> str:
    """What a server speaks that is known not to be Redis, and what to do; "" if it is not known.

    redis-py gives up without telling what it read.
    """
    try:
        with socket.create_connection((host, port), _FIRST_WORDS) as sock:
            sock.settimeout(_FIRST_WORDS)
            sock.sendall(b"*1\r\n$4\r\nPING\r\n")
            words = sock.recv(16)
    except OSError as error:
        if is_from_handler(error):
            raise
        return ""
    return next((name for mark, name in _OTHERS.items() if words.startswith(mark)), "")


def _doubt(call: Callable[..., Any], info: dict[str, str]) -> str:
    """Why what is confirmed may not be on the disk; "" if it is, or nobody can tell."""
    if info.get("aof_enabled") == "0":
        return "appendonly no"
    try:
        answer = call("CONFIG", "GET", "appendfsync", fits=many(text))
    except Failed:
        return ""  # hosted servers do not let everyone see their configuration
    setting = answer[1].decode() if answer else "always"
    return "" if setting == "always" else f"appendfsync {setting}"


def _drops_scripts(call: Callable[..., Any]) -> bool:
    """Whether the append-only file would not be replayed; False if nobody can tell.

    A script's writes are a transaction there, and the rights of a transaction are looked at again
    when it is replayed: redis/redis 14541, valkey-io/valkey 3983.
    """
    try:
        answer = call("ACL", "DRYRUN", "default", "XADD", "{synmanager}:", "*", "a", "b", fits=text)
    except Failed:
        return False  # we may not ask
    return bytes(answer) != b"OK"


def _parse(info: bytes) -> dict[str, str]:
    lines = info.decode("utf-8", "replace").splitlines()
    return {name: value for name, _, value in (line.partition(":") for line in lines)}


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())

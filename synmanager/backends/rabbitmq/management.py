"""What only RabbitMQ's management API tells: https://www.rabbitmq.com/docs/management#http-api."""

from __future__ import annotations

import json
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import quote

from synmanager.backends.base import Address
from synmanager.backends.rabbitmq import parameters
from synmanager.backends.tls import tls_context

__all__ = ["Node", "copies", "nodes"]

_Found = TypeVar("_Found")

#: The ports that it has by default; a password that travels encrypted does so here, too.
_PORTS = {"amqp": ("http", 15672), "amqps": ("https", 15671)}


def copies(address: Address, seconds: float) -> Mapping[str, tuple[int, int]]:
    """On how many nodes each replicated queue lies, and how many of those are running.

    Empty where nobody tells: the plug-in is off, its port is closed, or this user lacks the tag
    ``monitoring``.

    Args:
        seconds: until each host's silence means that it does not tell.
    """
    vhost = quote(address.path or "/", safe="")
    found = _ask(address, seconds, f"queues/{vhost}?columns=name,members,online", _copies)
    return {} if found is None else found


@dataclass(frozen=True)
class Node:
    """A node that runs, and how near it is to accepting nothing more.

    Attributes:
        alarms: which have gone off: ``memory``, ``disk``.
        memory, memory_limit: bytes; what it uses, and where its alarm goes off.
        disk_free, disk_limit: bytes; what is left, and where its alarm goes off.
    """

    name: str
    alarms: tuple[str, ...]
    memory: int
    memory_limit: int
    disk_free: int
    disk_limit: int


def nodes(address: Address, seconds: float) -> list[Node]:
    """The nodes that run; none where nobody tells. As for :func:`copies`."""
    columns = "name,running,mem_alarm,mem_used,mem_limit,disk_free_alarm,disk_free,disk_free_limit"
    return _ask(address, seconds, f"nodes?columns={columns}", _nodes) or []


def _ask(
    address: Address, seconds: float, what: str, read: Callable[[Any], _Found]
) -> _Found | None:
    """The first answer that can be read, of whatever host."""
    scheme, port = _PORTS[address.scheme]
    context = tls_context(address.options) if scheme == "https" else None
    login = ":".join(parameters.login(address))
    # No proxy of the environment: the broker is asked, or nobody.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    for host, _ in address.hosts or (("localhost", None),):
        where = f"[{host}]" if ":" in host else host
        request = urllib.request.Request(
            f"{scheme}://{where}:{port}/api/{what}",
            headers={"Authorization": "Basic " + b64encode(login.encode()).decode()},
        )
        try:
            with opener.open(request, timeout=seconds) as answer:
                return read(json.load(answer))
        except HTTPError as refused:
            refused.close()
        except (OSError, ValueError, TypeError, KeyError):
            continue  # one of another program, or of none
    return None


def _copies(queues: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    return {
        str(queue["name"]): (len(queue["members"]), len(queue.get("online", ())))
        for queue in queues
        if "members" in queue and "name" in queue
    }


def _nodes(found: list[dict[str, Any]]) -> list[Node]:
    return [
        Node(
            str(node["name"]),
            tuple(
                what
                for what, alarm in (("memory", "mem_alarm"), ("disk", "disk_free_alarm"))
                if node[alarm]
            ),
            *(int(node[n]) for n in ("mem_used", "mem_limit", "disk_free", "disk_free_limit")),
        )
        for node in found
        if node["running"]
    ]

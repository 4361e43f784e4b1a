"""What only RabbitMQ's management API tells: https://www.rabbitmq.com/docs/management#http-api."""

from __future__ import annotations

import json
import urllib.request
from base64 import b64encode
from collections.abc import Mapping
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote

from synmanager.backends.base import Address
from synmanager.backends.tls import tls_context

__all__ = ["copies"]

#: The ports that it has by default; a password that travels encrypted does so here, too.
_PORTS = {"amqp": ("http", 15672), "amqps": ("https", 15671)}


def copies(address: Address, seconds: float) -> Mapping[str, tuple[int, int]]:
    """On how many nodes each replicated queue lies, and how many of those are running.

    Empty where nobody tells: the plug-in is off, its port is closed, or this user lacks the tag
    ``monitoring``.

    Args:
        seconds: until each host's silence means that it does not tell.
    """
    scheme, port = _PORTS[address.scheme]
    context = tls_context(address.options) if scheme == "https" else None
    vhost = quote(address.path or "/", safe="")
    user = f"{address.username or 'guest'}:{address.password or 'guest'}"
    # No proxy of the environment: the broker is asked, or nobody.
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    for host, _ in address.hosts or (("localhost", None),):
        where = f"[{host}]" if ":" in host else host
        request = urllib.request.Request(
            f"{scheme}://{where}:{port}/api/queues/{vhost}?columns=name,members,online",
            headers={"Authorization": "Basic " + b64encode(user.encode()).decode()},
        )
        try:
            with opener.open(request, timeout=seconds) as answer:
                return _read(json.load(answer))
        except HTTPError as refused:
            refused.close()
        except (OSError, ValueError, TypeError):
            continue  # one of another program, or of none
    return {}


def _read(queues: list[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    return {
        str(queue["name"]): (len(queue["members"]), len(queue.get("online", ())))
        for queue in queues
        if "members" in queue and "name" in queue
    }

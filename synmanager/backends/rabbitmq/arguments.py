"""The arguments of a queue that exists, out of the broker's own mouth.

RabbitMQ tells nobody with what arguments a queue was created. But it refuses a declaration with
others, and then says which one differs, and how.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["Arguments", "corrected", "unfit", "wasteful"]

#: What a declaration says: the queue's arguments, and its flags, which have no ``x-``.
Arguments = dict[str, Any]

_DIFFERENT = re.compile(
    r"inequivalent arg '(?P<name>[^']+)' for queue .*"
    r"but current is (?:none|(?:the value )?'(?P<value>[^']*)'(?: of type '(?P<type>[^']*)')?)$",
    re.DOTALL,
)
_INVALID = re.compile(r"invalid arg '(?P<name>[^']+)' for queue ", re.DOTALL)


def corrected(arguments: Arguments, refusal: str) -> Arguments | None:
    """The arguments of a declaration that was refused, more like what is there.

    Returns:
        None if the refusal does not say how.
    """
    invalid = _INVALID.search(refusal)
    if invalid and invalid["name"] in arguments:  # of that kind of queue, no matter which value
        return _without(arguments, invalid["name"])
    different = _DIFFERENT.search(refusal)
    if different is None:
        return None
    name, value = different["name"], different["value"]
    if value is None:
        return _without(arguments, name) if name in arguments else None
    return {**arguments, name: _parse(value, different["type"])}


def unfit(found: Arguments) -> str:
    """Why a queue with these arguments cannot carry jobs; "" if it can."""
    if found.get("x-queue-type") == "stream":
        return "it is a stream, from which nothing is ever taken"
    if found.get("x-single-active-consumer"):
        return (
            "it has a single active consumer (x-single-active-consumer): one worker would be given "
            "jobs, and all others none"
        )
    if found.get("auto_delete"):
        return "it is deleted with its jobs when a consumer leaves (auto-delete)"
    return ""


def wasteful(found: Arguments) -> list[str]:
    """What of a queue's arguments may cost it confirmed jobs."""
    names: list[str] = [name for name in ("x-expires", "x-message-ttl") if name in found]
    if not str(found.get("x-overflow", "drop-head")).startswith("reject-publish"):
        names += [name for name in ("x-max-length", "x-max-length-bytes") if name in found]
    return names


def _without(arguments: Arguments, name: str) -> Arguments:
    return {each: value for each, value in arguments.items() if each != name}


def _parse(value: str, kind: str | None) -> Any:
    if value in ("true", "false"):
        return value == "true"
    if kind != "longstr" and re.fullmatch(r"-?\d+", value):
        return int(value)
    return value

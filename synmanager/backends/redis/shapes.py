"""What the answers to commands and scripts look like.

Whoever gets one of another shape has got somebody else's answer, or no answer of Redis's at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Fits", "each", "found", "many", "or_none", "taken", "text", "whole"]

#: Tells whether an answer is of the shape that it should be.
Fits = Callable[[Any], bool]


def whole(reply: Any) -> bool:
    """A whole number."""
    return type(reply) is int


def text(reply: Any) -> bool:
    """A string of bytes."""
    return type(reply) is bytes


def each(*parts: Fits) -> Fits:
    """A list of exactly these."""

    def fits(reply: Any) -> bool:
        if type(reply) is not list or len(reply) != len(parts):
            return False
        return all(part(value) for part, value in zip(parts, reply, strict=True))

    return fits


def many(part: Fits) -> Fits:
    """A list of any number of these."""
    return lambda reply: type(reply) is list and all(map(part, reply))


def or_none(part: Fits) -> Fits:
    return lambda reply: reply is None or part(reply)


#: A stream's entries: the id of each, and its fields.
found = many(each(text, many(text)))

_delivery = each(whole, text, text, whole, many(text), whole)


def taken(reply: Any) -> bool:
    """What ``receive.lua`` returns."""
    if type(reply) is not list or not reply or type(reply[0]) is not int:
        return False
    if reply[0] > 0:
        return _delivery(reply)
    if reply[0] < 0:
        return len(reply) == 1
    return len(reply) == 4 and all(map(whole, reply[1:]))

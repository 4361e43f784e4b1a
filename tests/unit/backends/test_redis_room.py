"""How much memory a Redis has left."""

from __future__ import annotations

from typing import Any

import pytest

from synmanager.backends.redis.checks import facts_of


@pytest.mark.parametrize(
    ("info", "room"),
    [
        ({"used_memory": "5", "maxmemory": "9", "total_system_memory": "99"}, {"memory": (5, 9)}),
        ({"used_memory": "5", "maxmemory": "0", "total_system_memory": "99"}, {"memory": (5, 99)}),
        ({"used_memory": "5", "maxmemory": "0"}, {}),
        ({"used_memory": "?", "maxmemory": "9"}, {}),
        ({}, {}),
    ],
)
def test_what_it_takes_and_may_take(info: dict[str, str], room: dict[str, tuple[int, int]]) -> None:
    lines = {"redis_version": "8.0.6", "role": "master", **info}

    def call(*command: str, fits: Any) -> Any:
        told = "\r\n".join(f"{name}:{value}" for name, value in lines.items())
        return told.encode() if command == ("INFO",) else []

    facts = facts_of(call)
    assert (facts.product, facts.version, facts.room) == ("Redis", "8.0.6", room)

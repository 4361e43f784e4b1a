"""The queues that stand for one: for its ranks, its delayed messages and its dead letters.

==================  ===============================================================================
``QUEUE``           normal rank, and what foreign programs send
``QUEUE.high``      high rank
``QUEUE.low``       low rank
``QUEUE.delayed-K`` waits for a given time, level by level
``QUEUE.dead``      dead letters
==================  ===============================================================================

A message waits in the level whose time is the longest that does not exceed what is left, and goes
on from there. All that wait in one level wait equally long, so that the head is always the next.
"""

from __future__ import annotations

from typing import NamedTuple

from synmanager.message import Rank

__all__ = ["DEAD", "DELAYED", "LEVELS", "RANKED", "Wait", "ranked", "wait_for"]

DEAD = ".dead"

#: In the order in which they are asked.
RANKED = {Rank.HIGH: ".high", Rank.NORMAL: "", Rank.LOW: ".low"}

#: Seconds that a message stays in each level. The first also takes what waits for less, the last
#: whatever waits for longer, again and again.
_TIMES = [0.25, 1.0, 4.0, 16.0, 64.0, 256.0, 1024.0, 4096.0]


#: By suffix, the seconds after which an empty one must be looked into again.
LEVELS = {f".delayed-{number}": seconds for number, seconds in enumerate(_TIMES)}
LEVELS[".delayed-0"] = 0.1

#: The one queue of a broker that holds a message back itself, for this many seconds at most.
DELAYED = {".delayed": 0.25}
_LONGEST_HOLD = 900.0


class Wait(NamedTuple):
    """Where a delayed message waits, and until when (seconds since the epoch)."""

    suffix: str
    until: float


def ranked(rank: Rank) -> str:
    return RANKED[rank]


def wait_for(due: float, now: float, levels: dict[str, float]) -> Wait | None:
    """Where a message waits that is due at a time; None if it need not wait any longer.

    Args:
        levels: :data:`LEVELS` or :data:`DELAYED`.
    """
    left = due - now
    if left <= 0:
        return None
    if levels is DELAYED:
        return Wait(".delayed", now + min(left, _LONGEST_HOLD))
    number = max(sum(seconds <= left for seconds in _TIMES) - 1, 0)
    return Wait(f".delayed-{number}", now + min(_TIMES[number], left))

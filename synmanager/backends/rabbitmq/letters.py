"""Dead letters as they lie in a queue: looked at, and taken out, without wearing them out.

A classic queue takes back what was only looked at, as often as one likes. A quorum queue counts
that, and throws a message away when it has been given back too often: from RabbitMQ 4.0 on after 20
times, or as a policy says. What bears such a count is replaced by copies, in the same order, before
it is handed out once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from pika.exceptions import ChannelClosedByBroker

from synmanager.backends.rabbitmq import properties
from synmanager.backends.rabbitmq.faults import NOT_FOUND
from synmanager.backends.rabbitmq.lane import ALL, Arrival, Lane
from synmanager.backends.rabbitmq.link import Link
from synmanager.backends.rabbitmq.publishing import publish

__all__ = ["change", "count", "give_back", "look", "purge", "take"]

T = TypeVar("T")

#: Letters that are replaced at a time.
_AT_ONCE = 500

#: Seconds within which what is given back is there, and between two looks.
_PATIENCE = 1.0
_PAUSE = 0.01


def look(link: Link, name: str, limit: int) -> list[Arrival]:
    """The oldest letters, which are back where they were when this returns."""
    lane = Lane(link)  # one of its own: when it closes, all goes back to where it was
    try:
        arrivals = take(lane, name, limit)
    except BaseException:
        lane.close()
        raise
    give_back(lane, name)
    return arrivals


def change(link: Link, name: str, what: Callable[[Lane, list[Arrival]], Sequence[Arrival]]) -> int:
    """Hold all letters, and let go of them again but for some, which are removed.

    Args:
        what: takes care of some, and tells which.

    Returns:
        how many were removed.
    """
    lane = Lane(link)
    done: Sequence[Arrival] = ()
    try:
        done = what(lane, take(lane, name))
        lane.ack_all(name, [each.tag for each in done])
    except BaseException:
        lane.close()
        raise
    give_back(lane, name)
    return len(done)


def give_back(lane: Lane, name: str) -> None:
    """Close a lane, and wait until what was held on it is back for whoever asks next.

    A classic queue says how much it has before it does what it was told earlier (its process puts
    such questions first), so it is asked until all is there; not for long, as somebody else may
    have taken some.
    """
    held = lane.held
    lane.close()
    lane.link.wait(lambda: lane.is_lost)
    if not held:
        return
    deadline = time.monotonic() + _PATIENCE
    with lane.link.lane() as other:
        while count(other, name) < held and not other.is_lost and time.monotonic() < deadline:
            lane.link.wait(lambda: other.is_lost, _PAUSE)


def purge(lane: Lane, name: str) -> int:
    """Remove all, but for those that are held; returns how many, 0 from a queue not there."""
    return _try(lambda: int(lane.call("queue_purge", name).message_count), 0)


def take(lane: Lane, name: str, limit: int = ALL) -> list[Arrival]:
    """Hold the oldest letters, to be settled; if the lane closes before, they go back.

    None are in a queue that is not there, after which the lane is lost.
    """

    def hold() -> list[Arrival]:
        held = lane.take(name, limit)
        if any(properties.is_worn(each.properties) for each in held):
            _replace(lane, name, held)
            held = lane.take(name, limit)
        return held

    return _try(hold, [])


def count(lane: Lane, name: str) -> int:
    """How many there are, but for those that are held; 0 in a queue that is not there."""
    return _try(lambda: int(lane.call("queue_declare", name, passive=True).message_count), 0)


def _try(what: Callable[[], T], otherwise: T) -> T:
    """What it returns, or something else where the queue is not there; the lane is lost then."""
    try:
        return what()
    except ChannelClosedByBroker as error:
        if error.reply_code != NOT_FOUND:
            raise
        return otherwise


def _replace(lane: Lane, name: str, held: list[Arrival]) -> None:
    """Put copies in the place of all letters: those of some would come after the others."""
    left = count(lane, name)
    while held:
        letters = [properties.dead_letter("", each.properties, each.body) for each in held]
        copies = [
            properties.kept(each.properties, letter)
            for each, letter in zip(held, letters, strict=True)
        ]
        publish(lane, "", name, copies, [letter.message for letter in letters])
        lane.ack(held[-1].tag, multiple=True)
        held = lane.take(name, min(_AT_ONCE, left))
        left -= len(held)

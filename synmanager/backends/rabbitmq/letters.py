"""Dead letters as they lie in a queue: looked at, and taken out, without wearing them out.

A classic queue takes back what was only looked at, as often as one likes. A quorum queue counts
that, and throws a message away when it has been given back too often: from RabbitMQ 4.0 on after 20
times, or as a policy says. What bears such a count is replaced by copies, in the same order, before
it is handed out once more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pika.exceptions import ChannelClosedByBroker

from synmanager.backends.rabbitmq import properties
from synmanager.backends.rabbitmq.faults import NOT_FOUND
from synmanager.backends.rabbitmq.lane import Arrival, Lane
from synmanager.backends.rabbitmq.link import Link
from synmanager.backends.rabbitmq.publishing import publish

__all__ = ["change", "count", "give_back", "look", "take"]

#: Letters that are replaced at a time.
_AT_ONCE = 500


def look(link: Link, name: str, limit: int) -> list[Arrival]:
    """The oldest letters, which are back where they were when this returns."""
    lane = Lane(link)  # one of its own: when it closes, all goes back to where it was
    try:
        arrivals = take(lane, name, limit)
    except BaseException:
        lane.close()
        raise
    give_back(lane)
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
        held = take(lane, name, most) if (most := count(lane, name)) else []
        done = what(lane, held)
        for each in done:
            lane.ack(each.tag)
    except BaseException:
        lane.close()
        raise
    give_back(lane)
    return len(done)


def give_back(lane: Lane) -> None:
    """Close a lane, and wait until what was held on it is back for whoever asks next."""
    lane.close()
    lane.link.wait(lambda: lane.is_lost)


def take(lane: Lane, name: str, limit: int) -> list[Arrival]:
    """Hold the oldest letters, to be settled; if the lane closes before, they go back.

    None are in a queue that is not there, after which the lane is lost.
    """
    try:
        held = lane.take(name, limit)
        if any(properties.is_worn(each.properties) for each in held):
            _replace(lane, name, held)
            held = lane.take(name, limit)
    except ChannelClosedByBroker as error:
        if error.reply_code != NOT_FOUND:
            raise
        return []
    return held


def count(lane: Lane, name: str) -> int:
    """How many there are, but for those that are held; 0 in a queue that is not there."""
    try:
        return int(lane.call("queue_declare", name, passive=True).message_count)
    except ChannelClosedByBroker as error:
        if error.reply_code != NOT_FOUND:
            raise
        return 0


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

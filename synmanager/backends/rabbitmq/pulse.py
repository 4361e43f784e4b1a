"""Whether the node that a worker talks to is cut off from the others, while the worker runs a job.

Such a node goes on to talk to its clients, while the others hand out what these run. But it can
confirm nothing that a majority must have. So who runs a job has something confirmed now and then,
by a quorum queue that keeps no more than the last.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from pika.spec import BasicProperties

from synmanager.backends.rabbitmq.frames import Content
from synmanager.backends.rabbitmq.lane import Lane
from synmanager.backends.rabbitmq.link import Link

__all__ = ["Pulse"]

QUEUE = "synmanager.pulse"

#: Seconds from one beat to the next, by which it must be confirmed. A queue that has lost its
#: leader, killed or frozen, has a new one after ten at most; the jobs of a node that is cut off are
#: handed out after 45 at the earliest, where RabbitMQ's defaults stand.
_EVERY = 20.0

#: Seconds for an answer that is here already, but that nobody has read: this process stood still.
_DOUBT = 1.0

#: Asked for only once a beat was not taken: to declare a queue that has lost its leader can end the
#: connection. Members on all nodes that there are, or it would tell of others than the majority.
_ARGUMENTS: dict[str, Any] = {
    "x-queue-type": "quorum",
    "x-max-length": 1,
    "x-quorum-initial-group-size": 99,
}

_BEAT = Content(b"".join(BasicProperties(delivery_mode=2).encode()), b"")


class Pulse:
    """Felt by one link, whose lock is held.

    Args:
        find: makes a queue with these arguments, or finds one of that name.
    """

    def __init__(self, link: Link, find: Callable[[str, dict[str, Any]], object]) -> None:
        self._link = link
        self._find = find
        self._lane: Lane | None = None
        self._due = self._sent = 0.0
        self._was_felt = False
        self._is_in_doubt = False

    def is_lost(self) -> bool:
        """Whether there was one, and there is none any more. Sends the next one if it is due.

        Where none was ever felt nothing is known: nobody would run a job to its end if what stands
        in the way of this one does not stand in the way of jobs.

        Raises:
            pika.exceptions.ChannelClosedByBroker: this user may not make the queue.
        """
        now = time.monotonic()
        if self._link.wire.blocked is not None:  # and so reads nothing
            self._due = now + _EVERY
        if now < self._due:
            return False
        lane = self._lane
        if lane is not None and lane.is_confirming and not lane.is_lost:
            was_in_doubt, self._is_in_doubt = self._is_in_doubt, True
            self._due = now + (_DOUBT if not was_in_doubt else _EVERY)
            wire = self._link.wire
            # One that is frozen says nothing at all, and is given up by its heartbeats.
            is_heard = wire.heard > self._sent + _EVERY / 4 and not wire.has_unsent
            return was_in_doubt and self._was_felt and is_heard
        self._due = now + _EVERY
        self._is_in_doubt = False
        if lane is not None and lane.is_reusable and lane.is_accepted:
            self._was_felt = True
        else:
            if lane is not None:  # it was not taken: there is no such queue, as a rule
                lane.close()
                self._find(QUEUE, _ARGUMENTS)
            self._lane = lane = Lane(self._link, is_aside=True)
        self._sent = now
        lane.begin_publish("", QUEUE, [_BEAT])
        return False

"""Messages that wait in the broker, on a binary cascade of queues.

Level *k* is a queue that holds each message for 2\\ :sup:`k` tenths of a second and hands it on to
the level below. A delay is a binary number of tenths, written into the headers: where its digit
is set the message goes through the level's queue, where not, past it. So messages leave each queue
in the order in which they came, as RabbitMQ's expiry needs it, whatever their delays are.

::

    delay ──▶ level 25 ──▶ level 24 ──▶ … ──▶ level 0 ──▶ due ──▶ their queues
              queue 25 ──▲  queue 24 ──▲          queue 0 ──▲

The arrows are bindings of headers exchanges. The queues are quorum queues that dead-letter at least
once: a broker that crashes in between loses nothing. What is due when its queue is gone is stranded
in a queue of its own, where it stands in nobody's way, until its own is made anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from synmanager.backends.base import QueueSpec
from synmanager.backends.rabbitmq.lane import Lane
from synmanager.backends.rabbitmq.properties import onward
from synmanager.errors import InvalidJob

__all__ = ["ENTRY", "TOP", "Cascade", "way"]

#: Where delayed messages are published; unroutable there is who has no route at its end.
ENTRY = "synmanager.delay"

#: RabbitMQ's timers end at 2**32 milliseconds, which the next level would exceed. All levels
#: together hold a message for 77 days.
_LEVELS = 26

#: Where those are published whose queue is known to exist.
TOP = f"synmanager.delay.level-{_LEVELS - 1}"
_DUE = "synmanager.delay.due"
_STRANDED = "synmanager.delay.stranded"

_EXCHANGE = "synmanager-exchange"
_KEY = "synmanager-key"
_QUEUE = "synmanager-queue"


def way(
    seconds: float, *, exchange: str = "", routing_key: str = "", queue: str = ""
) -> dict[str, Any]:
    """The headers that lead a message through its delay, to an exchange or to a queue.

    Raises:
        InvalidJob: it would take longer than the cascade can hold it.
    """
    tenths = math.ceil(seconds * 10 - 1e-6)  # never early, but for the error of a binary fraction
    if tenths >= 1 << _LEVELS:
        raise InvalidJob(f"RabbitMQ delays messages by {(1 << _LEVELS) // 10:,} s at most")
    headers: dict[str, Any] = {_digit(k): bool(tenths >> k & 1) for k in range(_LEVELS)}
    if queue:
        headers[_QUEUE] = queue
    else:
        headers[_EXCHANGE], headers[_KEY] = exchange, routing_key
    return headers


class Cascade:
    """The cascade of one broker, as far as this connection has made sure of it."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def announce(self, lane: Lane, spec: QueueSpec) -> None:
        """Let delayed messages for a queue's route in, and lead them to the queue."""
        self._build_ends(lane)
        route = {_EXCHANGE: spec.exchange.name}
        if spec.exchange.type != "fanout":
            route[_KEY] = spec.routing_key
        lane.call("exchange_bind", TOP, ENTRY, arguments=_only(route))
        lane.call("queue_bind", spec.name, _DUE, arguments=_only(route))
        self.lead_to_queue(lane, spec.name)

    def lead_to_queue(self, lane: Lane, queue: str) -> None:
        """Make sure that what is put back into a queue, with a delay, gets there."""
        if f"queue {queue}" not in self._known:
            self._build_ends(lane)
            lane.call("queue_bind", queue, _DUE, arguments=_only({_QUEUE: queue}))
            self._known.add(f"queue {queue}")

    def build(self, lane: Lane) -> None:
        """Make sure that the levels are there; they are not before somebody delays something."""
        if "levels" in self._known:
            return
        self._build_ends(lane)
        below = _DUE
        for k in range(_LEVELS):
            level = f"synmanager.delay.level-{k}"
            lane.call("exchange_declare", level, "headers", durable=True)
            arguments = {
                "x-queue-type": "quorum",
                "x-message-ttl": 100 << k,
                "x-dead-letter-exchange": below,
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",  # without it, the strategy is ignored
            }
            lane.call("queue_declare", level, durable=True, arguments=arguments)
            lane.call("queue_bind", level, level, arguments=_only({_digit(k): True}))
            lane.call("exchange_bind", below, level, arguments=_only({_digit(k): False}))
            below = level
        self._known.add("levels")

    def _build_ends(self, lane: Lane) -> None:
        if "ends" in self._known:
            return
        for name in (ENTRY, TOP):
            lane.call("exchange_declare", name, "headers", durable=True)
        lane.call("exchange_declare", _STRANDED, "fanout", durable=True)
        lane.call("queue_declare", _STRANDED, durable=True)
        lane.call("queue_bind", _STRANDED, _STRANDED)
        otherwise = {"alternate-exchange": _STRANDED}
        lane.call("exchange_declare", _DUE, "headers", durable=True, arguments=otherwise)
        self._known.add("ends")

    def count_stranded(self, lane: Lane) -> int:
        """How many messages were due when their queue was gone."""
        self._build_ends(lane)
        return int(lane.call("queue_declare", _STRANDED, passive=True).message_count)

    def send_on(self, lane: Lane) -> None:
        """Send on what is stranded, once: the queue that some of it was for is back."""
        for _ in range(self.count_stranded(lane)):
            arrival = lane.get(_STRANDED)
            if arrival is None:
                break
            lane.publish(_DUE, "", [onward(arrival.properties, arrival.body)])
            lane.ack(arrival.tag)


def _digit(k: int) -> str:
    return f"synmanager-delay-{k}"


def _only(headers: Mapping[str, Any]) -> dict[str, Any]:
    return {"x-match": "all", **headers}

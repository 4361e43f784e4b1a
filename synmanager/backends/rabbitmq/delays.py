"""Messages that wait in the broker, on a binary cascade of queues.

Level *k* is a queue that holds each message for 2\\ :sup:`k` tenths of a second and hands it on to
the level below. A delay is a binary number of tenths, written into the headers: where its digit
is set the message goes through the level's queue, where not, past it. So messages leave each queue
in the order in which they came, as RabbitMQ's expiry needs it, whatever their delays are.

::

    delay ──▶ level 25 ──▶ level 24 ──▶ … ──▶ level 0 ──▶ due ──▶ ~train.due ──▶ train
              queue 25 ──▲  queue 24 ──▲          queue 0 ──▲  └─▶ ~evaluate.due ──▶ evaluate

The arrows are bindings of headers exchanges. The queues are quorum queues that dead-letter at least
once: a broker that crashes in between loses nothing. Such a queue keeps what its target refuses,
tries again every three minutes, and stands still after 32 of that. So each target has a queue of
its own before it, which holds nothing for longer than its target refuses it: a full queue keeps
back its own messages and no others. What is due when its queue is gone is stranded in yet another
one, where it stands in nobody's way, until its own is made anew.

All of it but the stranded has a name that begins with ``~``, so that it comes last in lists.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from synmanager.backends.base import QueueSpec
from synmanager.backends.rabbitmq import letters
from synmanager.backends.rabbitmq.lane import ALL, Lane
from synmanager.backends.rabbitmq.properties import onward, read
from synmanager.backends.rabbitmq.publishing import publish

__all__ = ["ENTRY", "LONGEST", "TOP", "Cascade", "due_queue", "way"]

#: Where delayed messages are published; unroutable there is who has no route at its end.
ENTRY = "~synmanager.delay"

#: RabbitMQ's timers end at 2**32 milliseconds, which the next level would exceed. All levels
#: together hold a message for 77 days.
_LEVELS = 26

#: Seconds: every digit is set.
LONGEST = ((1 << _LEVELS) - 1) / 10

#: Where those are published whose queue is known to exist.
TOP = f"~synmanager.delay.level-{_LEVELS - 1}"
_DUE = "~synmanager.delay.due"

#: Of the name that it had when full queues stood in the way: what lies there since then goes on.
_STRANDED = "synmanager.delay.stranded"

_EXCHANGE = "synmanager-exchange"
_KEY = "synmanager-key"
_QUEUE = "synmanager-queue"


def way(
    seconds: float, *, exchange: str = "", routing_key: str = "", queue: str = ""
) -> dict[str, Any]:
    """The headers that lead a message through its delay, to an exchange or to a queue.

    Args:
        seconds: :data:`LONGEST` at most.
    """
    tenths = math.ceil(seconds * 10 - 1e-6)  # never early, but for the error of a binary fraction
    assert tenths < 1 << _LEVELS, f"{seconds} s are more than Features.longest_delay"
    headers: dict[str, Any] = {_digit(k): bool(tenths >> k & 1) for k in range(_LEVELS)}
    if queue:
        headers[_QUEUE] = queue
    else:
        headers[_EXCHANGE], headers[_KEY] = exchange, routing_key
    return headers


def due_queue(queue: str) -> str:
    """Through which delayed messages come to a queue; and the exchange between the two."""
    return f"~{queue}.due"


class Cascade:
    """The cascade of one broker, as far as this connection has made sure of it.

    Args:
        make_queue: makes the queue of that name that is no part of a cascade, or takes it as it is.
    """

    def __init__(self, make_queue: Callable[[str], object]) -> None:
        self._make_queue = make_queue
        self._known: set[str] = set()

    def announce(self, lane: Lane, spec: QueueSpec) -> None:
        """Let delayed messages for a queue's route in, and lead them to the queue."""
        self._build_ends(lane)
        route = {_EXCHANGE: spec.exchange.name}
        if spec.exchange.type != "fanout":
            route[_KEY] = spec.routing_key
        lane.call("exchange_bind", TOP, ENTRY, arguments=_only(route))
        self.lead_to_queue(lane, spec.name)
        lane.call("queue_bind", due_queue(spec.name), _DUE, arguments=_only(route))

    def lead_to_queue(self, lane: Lane, queue: str) -> None:
        """Make sure that what is put back into a queue, with a delay, gets there."""
        if f"queue {queue}" in self._known:
            return
        self._build_ends(lane)
        due = due_queue(queue)
        lane.call("exchange_declare", due, "fanout", durable=True, arguments=_OTHERWISE)
        lane.call("queue_bind", queue, due)
        lane.call("queue_declare", due, durable=True, arguments=_holding(0, due))
        lane.call("queue_bind", due, _DUE, arguments=_only({_QUEUE: queue}))
        self._known.add(f"queue {queue}")

    def forget(self) -> None:
        """Look at the broker again, whatever was there before."""
        self._known.clear()

    def build(self, lane: Lane) -> None:
        """Make sure that the levels are there; they are not before somebody delays something."""
        if "levels" in self._known:
            return
        self._build_ends(lane)
        below = _DUE
        for k in range(_LEVELS):
            level = f"~synmanager.delay.level-{k:02}"
            lane.call("exchange_declare", level, "headers", durable=True)
            lane.call("queue_declare", level, durable=True, arguments=_holding(100 << k, below))
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
        self._make_queue(_STRANDED)
        lane.call("queue_bind", _STRANDED, _STRANDED)
        lane.call("exchange_declare", _DUE, "headers", durable=True, arguments=_OTHERWISE)
        self._known.add("ends")

    def has_stranded(self, lane: Lane) -> bool:
        """Whether there are messages that were due when their queue was gone.

        A count alone may leave out what somebody else has just given back.
        """
        self._build_ends(lane)
        if letters.count(lane, _STRANDED):
            return True
        if lane.get(_STRANDED) is None:
            return False
        letters.give_back(lane, _STRANDED)
        return True

    def send_on(self, lane: Lane, spec: QueueSpec) -> None:
        """Send on what is stranded, to a queue that is back, and to no other that shares its route.

        What was for other queues goes back to where it was when the lane is closed.
        """
        there = lane.take(_STRANDED, ALL)
        found = [each for each in there if _is_for(spec, each.properties.headers or {})]
        to_it = {_QUEUE: spec.name}
        copies = [onward(each.properties, each.body, to_it) for each in found]
        messages = [read(each.properties, each.body).message for each in found]
        publish(lane, _DUE, "", copies, messages)
        lane.ack_all(_STRANDED, [each.tag for each in found])


def _is_for(spec: QueueSpec, headers: Mapping[Any, Any]) -> bool:
    """Whether a stranded message was on its way to a queue."""
    deaths = headers.get("x-death")
    for death in deaths if isinstance(deaths, list) else ():
        last = death.get("queue") if isinstance(death, dict) else None
        if isinstance(last, str) and last.endswith(".due"):
            return last == due_queue(spec.name)  # one of several of its route, perhaps
    if _QUEUE in headers:
        return bool(headers[_QUEUE] == spec.name)
    is_its_key = spec.exchange.type == "fanout" or headers.get(_KEY) == spec.routing_key
    return is_its_key and headers.get(_EXCHANGE) == spec.exchange.name


#: What an exchange does with messages that no queue is bound for.
_OTHERWISE = {"alternate-exchange": _STRANDED}


def _holding(milliseconds: int, then: str) -> dict[str, Any]:
    """The arguments of a queue that holds each message for so long, and hands it to an exchange."""
    return {
        "x-queue-type": "quorum",
        "x-message-ttl": milliseconds,
        "x-dead-letter-exchange": then,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",  # without it, the strategy is ignored
    }


def _digit(k: int) -> str:
    return f"synmanager-delay-{k}"


def _only(headers: Mapping[str, Any]) -> dict[str, Any]:
    return {"x-match": "all", **headers}

"""Messages that wait in the broker, on a binary cascade of queues.

Level *k* is a queue that holds each message for 2\\ :sup:`k` tenths of a second and hands it on to
the level below. A delay is a binary number of tenths, written into the headers: where its digit
is set the message goes through the level's queue, where not, past it. So messages leave each queue
in the order in which they came, as RabbitMQ's expiry needs it, whatever their delays are.

::

    delay ──▶ level 25 ──▶ level 24 ──▶ … ──▶ level 0 ──▶ due ──▶ their exchange, or their queue
              queue 25 ──▲  queue 24 ──▲          queue 0 ──▲

The arrows are bindings of headers exchanges; the routing key stays what it was. The queues are
quorum queues that dead-letter at least once: a broker that crashes in between loses nothing, and
a message whose queue is gone by the time it is due waits in the last level for it to come back.
"""

from __future__ import annotations

import math
from typing import Any

from synmanager.backends.base import ExchangeSpec
from synmanager.backends.rabbitmq.lane import Lane
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

    def announce(self, lane: Lane, exchange: ExchangeSpec, routing_key: str) -> None:
        """Let delayed messages for a route in."""
        if "entry" not in self._known:
            for name in (ENTRY, TOP):
                lane.call("exchange_declare", name, "headers", durable=True)
            self._known.add("entry")
        arguments = {"x-match": "all", _EXCHANGE: exchange.name}
        if exchange.type != "fanout":
            arguments[_KEY] = routing_key
        lane.call("exchange_bind", TOP, ENTRY, arguments=arguments)

    def lead_to_exchange(self, lane: Lane, exchange: str) -> None:
        """Make sure that what is due gets to an exchange.

        Raises:
            pika.exceptions.ChannelClosedByBroker: 404, there is no such exchange.
        """
        self._build(lane)
        if f"exchange {exchange}" not in self._known:
            lane.call("exchange_bind", exchange, _DUE, arguments=_only(_EXCHANGE, exchange))
            self._known.add(f"exchange {exchange}")

    def lead_to_queue(self, lane: Lane, queue: str) -> None:
        """Make sure that what is due gets to a queue."""
        self._build(lane)
        if f"queue {queue}" not in self._known:
            lane.call("queue_bind", queue, _DUE, arguments=_only(_QUEUE, queue))
            self._known.add(f"queue {queue}")

    def _build(self, lane: Lane) -> None:
        if "cascade" in self._known:
            return
        lane.call("exchange_declare", _DUE, "headers", durable=True)
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
            lane.call("queue_bind", level, level, arguments=_only(_digit(k), True))
            lane.call("exchange_bind", below, level, arguments=_only(_digit(k), False))
            below = level
        self._known.add("cascade")


def _digit(k: int) -> str:
    return f"synmanager-delay-{k}"


def _only(header: str, value: Any) -> dict[str, Any]:
    return {"x-match": "all", header: value}

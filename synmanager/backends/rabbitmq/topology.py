"""Exchanges, queues and bindings: found as they are, or made as this project wants them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any, TypeVar

from pika.exceptions import ChannelClosedByBroker

from synmanager.backends.base import ExchangeSpec, QueueSpec
from synmanager.backends.rabbitmq.delays import Cascade
from synmanager.backends.rabbitmq.faults import ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED
from synmanager.backends.rabbitmq.lane import Lane
from synmanager.backends.rabbitmq.link import Link
from synmanager.backends.rabbitmq.properties import MAX_PRIORITY
from synmanager.errors import TopologyError

__all__ = ["Topology", "dead_queue"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: For how long a delivery may stay unacknowledged, 7 days in milliseconds: a job may take a day.
_PATIENCE = 7 * 24 * 3600 * 1000

_RANKING = {"x-max-priority": MAX_PRIORITY}


def dead_queue(queue: str) -> str:
    """Where the dead letters of a queue lie."""
    return f"{queue}.dead"


class Topology:
    """What this connection has declared. Its methods are called with the link's lock held."""

    def __init__(self, link: Link, warned: set[str]) -> None:
        self._link = link
        self._warned = warned  # of queues that cannot rank; outlives the connection
        self._declared: set[ExchangeSpec | QueueSpec] = set()
        self.delays = Cascade()
        version = str((link.wire.server_properties or {}).get("version", ""))
        numbers = re.match(r"(\d+)\.(\d+)", version)
        release = tuple(map(int, numbers.groups())) if numbers else (0, 0)
        # Before 3.12 only the broker's configuration has such a timeout. From 4.3 on it is
        # unknown to classic queues, which need it no longer.
        self._arguments: dict[str, Any] = dict(_RANKING)
        if (3, 12) <= release < (4, 3):
            self._arguments["x-consumer-timeout"] = _PATIENCE

    def declare(self, *specs: ExchangeSpec | QueueSpec) -> None:
        """See ``QueueBackend.declare``."""
        for spec in specs:
            if spec in self._declared:
                continue
            if isinstance(spec, QueueSpec):
                self.declare(spec.exchange)
                self._declare_queue(spec)
            else:
                self._declare_exchange(spec)
            self._declared.add(spec)

    def declare_dead_queue(self, queue: str) -> None:
        name = dead_queue(queue)
        self._make_or_take(
            lambda lane: lane.call("queue_declare", name, durable=True),
            lambda lane: lane.call("queue_declare", name, passive=True),
        )

    def _declare_exchange(self, spec: ExchangeSpec) -> None:
        refusal = self._make_or_take(
            lambda lane: lane.call("exchange_declare", spec.name, spec.type, durable=spec.durable),
            lambda lane: lane.call("exchange_declare", spec.name, passive=True),
        )
        if "'type'" in refusal:
            raise TopologyError(f"exchange {spec.name!r} is not of type {spec.type!r}: {refusal}")

    def _declare_queue(self, spec: QueueSpec) -> None:
        def declare(arguments: dict[str, Any]) -> str:
            return self._make_or_take(
                lambda lane: lane.call(
                    "queue_declare", spec.name, durable=spec.durable, arguments=arguments
                ),
                lambda lane: lane.call("queue_declare", spec.name, passive=True),
            )

        is_back = self._is_back(spec.name)
        # A broker tells nobody the arguments of a queue, but whether they are these.
        if declare(self._arguments):
            refusal = declare(_RANKING)
            if "x-max-priority" in refusal or "x-queue-type" in refusal:
                self._warn(spec.name)
        self._try(
            lambda lane: lane.call("queue_bind", spec.name, spec.exchange.name, spec.routing_key)
        )
        self.declare_dead_queue(spec.name)
        try:
            self._try(lambda lane: self.delays.announce(lane, spec))
            if is_back:
                self._try(self.delays.send_on)
        except ChannelClosedByBroker as error:
            if error.reply_code != ACCESS_REFUSED:
                raise
            logger.info("queue %s: no delayed jobs, %s", spec.name, error.reply_text)

    def _is_back(self, queue: str) -> bool:
        """Whether a queue is not there, while delayed messages lie about that may be for it."""
        try:
            if not self._try(self.delays.count_stranded):
                return False
            self._try(lambda lane: lane.call("queue_declare", queue, passive=True))
        except ChannelClosedByBroker as error:
            return bool(error.reply_code == NOT_FOUND)
        return False

    def _warn(self, queue: str) -> None:
        if queue not in self._warned:
            self._warned.add(queue)
            logger.warning(
                "queue %r cannot rank its jobs: it was created without x-max-priority, as by "
                "0.1.0. Jobs of every priority run in the order of their submission. To change "
                "that, delete the queue while it is empty, and reconnect",
                queue,
            )

    def _make_or_take(
        self, make: Callable[[Lane], Any], look: Callable[[Lane], Any] | None = None
    ) -> str:
        """Declare what may exist already; a declaration changes nothing about what exists.

        Returns:
            why the broker refuses, if it does because what exists is not the same; else "".

        Raises:
            pika.exceptions.ChannelClosedByBroker: it refuses for another reason. Who may not
                declare anything can still use what ``look`` finds.
        """
        try:
            self._try(make)
        except ChannelClosedByBroker as error:
            if error.reply_code == ACCESS_REFUSED and look is not None:
                try:
                    self._try(look)
                except ChannelClosedByBroker as other:
                    # It is not there, for want of the rights to make it.
                    raise (error if other.reply_code == NOT_FOUND else other) from None
                return ""
            if error.reply_code != PRECONDITION_FAILED:
                raise
            return str(error.reply_text)
        return ""

    def _try(self, call: Callable[[Lane], T]) -> T:
        """Do something on a channel that the broker may close for it."""
        with self._link.lane() as lane:
            return call(lane)

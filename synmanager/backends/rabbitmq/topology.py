"""Exchanges, queues and bindings: found as they are, or made as this project wants them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

from pika.exceptions import ChannelClosedByBroker

from synmanager.backends.base import ExchangeSpec, QueueSpec
from synmanager.backends.rabbitmq.arguments import Arguments, corrected, unfit, wasteful
from synmanager.backends.rabbitmq.delays import Cascade, due_queue
from synmanager.backends.rabbitmq.faults import ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED
from synmanager.backends.rabbitmq.lane import Lane
from synmanager.backends.rabbitmq.link import Link
from synmanager.backends.rabbitmq.properties import MAX_PRIORITY
from synmanager.backends.rabbitmq.pulse import Pulse
from synmanager.backends.rabbitmq.ranks import Ranks, Sister, sister_name, sisters
from synmanager.errors import TopologyError
from synmanager.message import Rank

__all__ = ["Standing", "Topology", "dead_queue"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: For how long a delivery may stay unacknowledged, 7 days in milliseconds: a job may take a day.
_PATIENCE = 7 * 24 * 3600 * 1000

#: Said expressly: a virtual host may make a queue of another kind of what has none.
_CLASSIC: Arguments = {"x-queue-type": "classic"}

#: Of the broker's own limits none ends a job: it would be gone.
_NO_LIMIT = -1

#: Before 4.3 that, or none, has the broker put at the end what is given back, and before 4.0 it
#: loses it. No message comes so often as this: a copy takes its place before.
_NEVER = 2**31 - 1

#: From here on quorum queues rank strictly.
_RANKING_QUORUM = (4, 3)

#: What no kind of queue knows both of. So the refusal tells the kind, and nothing is made.
_NOBODYS: Arguments = {"x-max-priority": MAX_PRIORITY, "x-quorum-initial-group-size": 3}
_ASKED = "~synmanager.kind"
_OF_KIND = re.compile(r"of queue type rabbit_(\w+)_queue")

#: What was told so, by cluster and virtual host: a process asks once.
_kinds: dict[tuple[str, str], str] = {}

_FLAGS = ("durable", "auto_delete", "exclusive")

#: A queue has fewer arguments than that.
_MOST_TRIES = 20

#: The arguments and flags of queues that stood complete, with all that belongs to them.
Standing: TypeAlias = dict[QueueSpec, Arguments]


def dead_queue(queue: str) -> str:
    """Where the dead letters of a queue lie."""
    return f"{queue}.dead"


class Topology:
    """What this connection has declared. Its methods are called with the link's lock held.

    Args:
        standing: what connections before this one have seen. It outlives this one.
        kind: ``classic`` or ``quorum``, of queues that are made; None leaves it to the virtual
            host.
    """

    def __init__(
        self, link: Link, warned: set[object], standing: Standing, kind: str | None = None
    ) -> None:
        self._link = link
        self._warned = warned  # of what; outlives the connection
        self._standing = standing
        self._declared: set[ExchangeSpec | QueueSpec] = set()
        self.ranks = Ranks()
        self.delays = Cascade(lambda name: self._make_or_find(name, self._bare()))
        self.pulse = Pulse(link, self._make_or_find)
        version = str((link.wire.server_properties or {}).get("version", ""))
        numbers = re.match(r"(\d+)\.(\d+)", version)
        self._release = tuple(map(int, numbers.groups())) if numbers else (0, 0)
        self._kind = kind

    @property
    def _can_rank_quorum(self) -> bool:
        return self._release >= _RANKING_QUORUM

    @property
    def counts_crossings(self) -> bool:
        """Whether quorum queues count what goes back because its consumer had ended before."""
        return not self._can_rank_quorum

    @property
    def refuses_without_leader(self) -> bool:
        """Whether a quorum queue that has no leader for now refuses, as if it were full."""
        return self._release < (4, 0)

    @property
    def makes_sisters(self) -> bool:
        """Whether queues that are made need a sister for each rank; asks once, before 4.3."""
        return not self._can_rank_quorum and self._is_quorum()

    def _is_quorum(self) -> bool:
        """Whether queues are made as quorum queues."""
        if self._kind is None:
            host = self._link.virtual_host
            if host not in _kinds:
                _kinds[host] = self._ask_for_kind()
            self._kind = _kinds[host]
        return self._kind == "quorum"

    def _ask_for_kind(self) -> str:
        """Of which kind the virtual host makes queues of which none is said."""
        try:
            self._try(
                lambda lane: lane.call(
                    "queue_declare", _ASKED, durable=True, arguments=dict(_NOBODYS)
                )
            )
        except ChannelClosedByBroker as error:
            kind = _OF_KIND.search(str(error.reply_text))
            if kind is not None and kind[1] == "quorum":
                return "quorum"
        return "classic"

    def _bare(self) -> Arguments:
        """With what a queue is made that nobody ranks."""
        return self._quorum() if self._is_quorum() else dict(_CLASSIC)

    def _quorum(self) -> Arguments:
        limit = _NO_LIMIT if self._can_rank_quorum else _NEVER
        return {"x-queue-type": "quorum", "x-delivery-limit": limit}

    def _ranking(self, *, is_sister: bool = False) -> Arguments:
        """With what a queue for jobs is made.

        Before 3.12 only the broker's configuration has a timeout for deliveries. From 4.3 on it
        is unknown to classic queues, which need it no longer.
        """
        is_quorum = is_sister or self._is_quorum()
        ranking = self._quorum() if is_quorum else {**_CLASSIC, "x-max-priority": MAX_PRIORITY}
        if self._release >= (3, 12) and (is_quorum or self._release < (4, 3)):
            ranking["x-consumer-timeout"] = _PATIENCE
        return ranking

    def declare(self, *specs: ExchangeSpec | QueueSpec) -> None:
        """See ``QueueBackend.declare``."""
        for spec in specs:
            if spec in self._declared:
                continue
            if not isinstance(spec, QueueSpec):
                self._declare_exchange(spec)
            else:
                if not self._still_stands(spec):
                    self.declare(spec.exchange)
                    self._declare_queue(spec)
                self._declare_sisters(spec)
            self._declared.add(spec)

    def undeclare(self, spec: QueueSpec) -> None:
        """See ``QueueBackend.undeclare``: what is delayed is stranded when it is due."""
        family = self.family(spec.name)
        self.forget()
        with self._link.lane() as lane:
            lane.call("queue_delete", dead_queue(spec.name))
        for queue in family:  # by the last of which they are all found, if this is cut off
            with self._link.lane() as lane:
                lane.call("queue_delete", due_queue(queue))
                lane.call("exchange_delete", due_queue(queue))
                lane.call("queue_delete", queue)
            self._link.apart.discard(queue)

    def forget(self) -> None:
        """Look at the broker at the next declaration, whatever was there before."""
        self._declared.clear()
        self._standing.clear()
        self.delays.forget()
        self.ranks.forget()

    def family(self, queue: str) -> list[str]:
        """All queues behind a name, highest rank first.

        Who has declared it knows them. Who has not looks: they stand after an upgrade, too.
        """
        if queue not in self.ranks.queues:
            has_sisters = all(
                self._is_there("queue_declare", sister_name(queue, rank))
                for rank in (Rank.LOW, Rank.HIGH)  # low is made last
            )
            self.ranks.note(queue, has_sisters=has_sisters)
            self._link.apart.update(self.ranks.family(queue))
        return self.ranks.family(queue)

    def families(self, queues: Sequence[str]) -> Sequence[str]:
        """The queues behind several names, in the order in which a job is looked for."""
        found = [self.family(queue) for queue in queues]
        return [queue for family in found for queue in family]

    def is_split(self, exchange: str) -> bool:
        """Whether a job of an exchange goes to another for its rank; looks as :meth:`family`."""
        exchanges = self.ranks.exchanges
        if exchange not in exchanges and self.makes_sisters:
            low = sister_name(exchange, Rank.LOW)  # made last
            exchanges[exchange] = self._is_there("exchange_declare", low)
        return exchanges.get(exchange, False)

    def _is_there(self, method: str, name: str) -> bool:
        try:
            self._try(lambda lane: lane.call(method, name, passive=True))
        except ChannelClosedByBroker as error:
            if error.reply_code != NOT_FOUND:
                raise
            return False
        return True

    def declare_dead_queue(self, queue: str) -> None:
        self._make_or_find(dead_queue(queue), self._bare())

    def look_at(self, queue: str) -> tuple[int, Arguments] | None:
        """How many consume a queue, and with what arguments it was made; None if there is none."""
        try:
            answer = self._try(lambda lane: lane.call("queue_declare", queue, passive=True))
        except ChannelClosedByBroker as error:
            if error.reply_code != NOT_FOUND:
                raise
            return None
        return int(answer.consumer_count), self._find(queue, self._ranking())

    def _declare_exchange(self, spec: ExchangeSpec, arguments: Arguments | None = None) -> None:
        refusal = self._make_or_take(
            lambda lane: lane.call(
                "exchange_declare", spec.name, spec.type, durable=spec.durable, arguments=arguments
            ),
            lambda lane: lane.call("exchange_declare", spec.name, passive=True),
        )
        if "'type'" in refusal:
            raise TopologyError(f"exchange {spec.name!r} is not of type {spec.type!r}: {refusal}")

    def _still_stands(self, spec: QueueSpec) -> bool:
        """Whether what an earlier connection saw complete is there, as it was.

        Each worker asks that when a broker is back, so it has to cost little. Bindings, of which
        there are most, cannot be asked for, and to bind anew costs the broker most of all; but
        they go only with one of their ends, and otherwise when somebody unbinds them. Who then
        publishes finds it out.
        """
        before = self._standing.pop(spec, None)
        if before is None:
            return False

        def look(lane: Lane) -> None:
            lane.call("exchange_declare", spec.exchange.name, passive=True)
            for queue in (spec.name, due_queue(spec.name)):
                lane.call("queue_declare", queue, passive=True)
            if not isinstance(spec, Sister):
                lane.call("queue_declare", dead_queue(spec.name), passive=True)

        try:
            self._try(look)
        except ChannelClosedByBroker:
            return False
        found = self._find(spec.name, before, durable=before["durable"])
        if found != before:
            return False
        self._note_kind(spec.name, found)
        self._standing[spec] = found
        return True

    def _note_kind(self, queue: str, found: Arguments) -> bool:
        """Whether it is a quorum queue, of which the link then knows."""
        is_quorum = bool(found["x-queue-type"] == "quorum")
        if is_quorum:
            self._link.apart.add(queue)
        else:
            self._link.apart.discard(queue)
        return is_quorum

    def _declare_sisters(self, spec: QueueSpec) -> None:
        """Declare a queue for each other rank where one queue cannot rank, or they stand already.

        They may do so where the broker was an older one when they were made.
        """
        ranks, exchange = self.ranks, spec.exchange.name
        if spec.exchange.type == "fanout":
            ranks.flat.add(spec.name)
        is_split = spec.name not in ranks.flat and spec.name in self._link.apart
        beside = sisters(spec) if is_split else []
        if is_split and self._can_rank_quorum:
            if exchange not in ranks.exchanges:
                there = self._is_there("exchange_declare", beside[0].exchange.name)
                ranks.exchanges[exchange] = there
            is_split = ranks.exchanges[exchange] and self._is_there("queue_declare", beside[0].name)
        try:
            for sister in beside if is_split else ():
                if not self._still_stands(sister):
                    if sister.exchange not in self._declared:
                        self._declare_exchange(sister.exchange, {"alternate-exchange": exchange})
                        self._declared.add(sister.exchange)
                    self._declare_queue(sister)
        except ChannelClosedByBroker as error:
            if error.reply_code != ACCESS_REFUSED:
                raise
            is_split = False
            self._warn(
                spec.name,
                "cannot rank its jobs: it is a quorum queue, RabbitMQ is older than 4.3, and this "
                "user may not declare a queue for each rank beside it. Jobs of every priority run "
                "in the order of their submission, or nearly so",
            )
        ranks.note(spec.name, has_sisters=is_split)
        ranks.exchanges[exchange] = is_split or ranks.exchanges.get(exchange, False)

    def _declare_queue(self, spec: QueueSpec) -> None:
        is_back = self._is_back(spec.name)
        is_sister = isinstance(spec, Sister)
        ranking = self._ranking(is_sister=is_sister)
        found = self._make_or_find(spec.name, ranking, durable=spec.durable)
        is_quorum = self._note_kind(spec.name, found)
        # A quorum queue is asked about priorities and says nothing.
        if not (is_quorum or is_sister) and found.get("x-max-priority", 0) < MAX_PRIORITY:
            self._warn(
                spec.name,
                "cannot rank its jobs: it was created without x-max-priority, as by 0.1.0. Jobs of "
                "every priority run in the order of their submission. To change that, delete the "
                "queue while it is empty, and reconnect",
            )
        if self._kind == "quorum" and not is_quorum:
            self._warn(
                spec.name,
                "is a classic queue that was there before, on one node alone: its jobs are gone "
                "while that node is. docs/clusters.md says how to replace it",
            )
        costly = wasteful(found)
        if spec.durable and not found["durable"]:
            costly.append("want of durability")
        if costly:
            self._warn(spec.name, f"may lose confirmed jobs, by its {' and '.join(costly)}")
        self._try(
            lambda lane: lane.call("queue_bind", spec.name, spec.exchange.name, spec.routing_key)
        )
        if not is_sister:
            self.declare_dead_queue(spec.name)
        try:
            self._try(lambda lane: self.delays.announce(lane, spec))
            if is_back:
                lane = Lane(self._link)
                try:
                    self.delays.send_on(lane, spec)
                finally:
                    lane.close()
            self._standing[spec] = found
        except ChannelClosedByBroker as error:
            if error.reply_code != ACCESS_REFUSED:
                raise
            logger.info("queue %s: no delayed jobs, %s", spec.name, error.reply_text)

    def _is_back(self, queue: str) -> bool:
        """Whether a queue is not there, while delayed messages lie about that may be for it."""
        try:
            self._try(lambda lane: lane.call("queue_declare", queue, passive=True))
        except ChannelClosedByBroker as error:
            return error.reply_code == NOT_FOUND and self._has_stranded()
        return False

    def _has_stranded(self) -> bool:
        try:
            return self._try(self.delays.has_stranded)
        except ChannelClosedByBroker:  # this user may delay nothing
            return False

    def _warn(self, queue: str, what: str) -> None:
        if (queue, what) not in self._warned:
            self._warned.add((queue, what))
            logger.warning("queue %r %s", queue, what)

    def _make_or_find(self, queue: str, wanted: Arguments, *, durable: bool = True) -> Arguments:
        """Make a queue, or take the one that is there.

        Returns:
            its arguments and flags, as far as the broker lets them be known.

        Raises:
            TopologyError: it is there, and can carry no jobs; or it cannot be made.
        """
        found = self._find(queue, wanted, durable=durable)
        if reason := unfit(found):
            raise TopologyError(
                f"queue {queue!r} cannot carry jobs: {reason}. Delete it, and it is made anew as a "
                "classic queue; or create a quorum queue of that name"
            )
        return found

    def _find(self, queue: str, wanted: Arguments, *, durable: bool = True) -> Arguments:
        """What :meth:`_make_or_find` does, whatever a queue that is there is like."""
        found: Arguments = {**wanted, "durable": durable}

        def make(lane: Lane) -> None:
            flags = {name: found[name] for name in _FLAGS if name in found}
            arguments = {name: value for name, value in found.items() if name not in _FLAGS}
            lane.call("queue_declare", queue, **flags, arguments=arguments)

        def look(lane: Lane) -> None:
            lane.call("queue_declare", queue, passive=True)

        for _ in range(_MOST_TRIES):
            refusal = self._make_or_take(make, look)
            if not refusal:
                break
            try:
                self._try(look)  # what comes nearer and nearer to it must not make another one
            except ChannelClosedByBroker as error:
                if error.reply_code != NOT_FOUND:
                    raise
                raise TopologyError(f"queue {queue!r} cannot be made: {refusal}") from error
            nearer = corrected(found, refusal)
            if nearer is None:
                found.pop("x-max-priority", None)  # nobody knows
                break
            found = nearer
        return found

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

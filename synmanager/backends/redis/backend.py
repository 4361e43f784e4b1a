"""The backend: which script runs when, and what its answer means."""

from __future__ import annotations

import itertools
import logging
import math
import re
import secrets
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from redis import RedisError

from synmanager.backends.base import (
    Address,
    Counts,
    DeadLetter,
    Delayed,
    Delivery,
    Entry,
    ExchangeSpec,
    Facts,
    Features,
    QueueBackend,
    QueueSpec,
    check_place,
)
from synmanager.backends.redis import scripts
from synmanager.backends.redis.checks import check_server, facts_of, who_is_there
from synmanager.backends.redis.connections import CalledOff, Connections
from synmanager.backends.redis.dialling import FollowedPlain, FollowedTls, Local, Plain, Tls
from synmanager.backends.redis.entries import (
    dead_letter,
    delayed,
    log_entry,
    parse,
    write,
    write_letter,
)
from synmanager.backends.redis.faults import (
    Failed,
    callers_own,
    code_of,
    takes_no_writes,
    translate,
)
from synmanager.backends.redis.guides import Guides, Nodes, Sentinels
from synmanager.backends.redis.keys import Keys, kinds_of_queue
from synmanager.backends.redis.options import (
    CLUSTER_SCHEMES,
    SENTINEL_SCHEMES,
    connection_options,
    guide_options,
    has_tls,
    patience,
    place,
    prefix_of,
    primary_name,
    replicas_of,
    silence,
)
from synmanager.backends.redis.replicas import replicas_at
from synmanager.backends.redis.rivals import PATIENCE, Rivals
from synmanager.backends.redis.scripts import Script
from synmanager.backends.redis.shapes import Fits, each, found, many, or_none, text, whole
from synmanager.errors import (
    AccessRefused,
    BrokerUnavailable,
    ConfigurationError,
    InvalidJob,
    LeaseLost,
    PublishInterrupted,
    PublishRefused,
    SynmanagerError,
    TopologyError,
    Unroutable,
)
from synmanager.message import Message
from synmanager.text import shown
from synmanager.trust import ClockTrust

__all__ = ["RedisBackend"]

logger = logging.getLogger("synmanager.backends.redis")

#: The most that one script takes: the server does nothing else while it runs.
_CHUNK_MESSAGES = 500
_CHUNK_BYTES = 1024 * 1024

#: How many messages one script removes or moves, for the same reason.
_PAGE = 1000
_PAGE_OF_LETTERS = 100

#: Seconds until a server that does not answer is left without having been told goodbye.
_FAREWELL = 2.0

#: Seconds. Who waits for less may not come again, and is kept until it is known whether a lease
#: has run out; who waits for longer at a time does, and would be deaf to a stop meanwhile.
_COMES_AGAIN = 1.0

#: Seconds that replicas have to take over what was written.
_REPLICATION = 5.0

#: Seconds between two looks at whether another thread has connected.
_TICK = 0.01

#: Of those who read a stream, each entry one of them; ``lua/common.lua`` has it too.
_GROUP = "synmanager"

#: Seconds between two looks at queues that stay silent: programs that know of no bell ring none.
_LOOK_AT_LEAST = 5.0

#: Seconds between two looks at a lease that may have run out, at least.
_LOOK_AGAIN = 0.05

#: The least that a server may be set to take as one string (proto-max-bulk-len).
_SURELY_TAKEN = 1024 * 1024


#: A position in a log.
_POSITION = re.compile("[0-9]{1,18}-[0-9]{1,18}")


class _Receipt:
    """What this backend must know of a delivery.

    Attributes:
        lease: the name of the lease in the queue's ``:leases``.
        deliveries: how often this entry was delivered; the message may have had earlier ones.
        in_doubt: whether a settlement was sent whose answer never came.
    """

    __slots__ = ("deliveries", "in_doubt", "lease", "token")

    def __init__(self, token: str, lease: str, deliveries: int) -> None:
        self.token = token
        self.lease = lease
        self.deliveries = deliveries
        self.in_doubt = False


class _Attempt:
    """An attempt to connect, of one thread; the others have part in how it ends."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.error: SynmanagerError | None = None
        self.done = False


class RedisBackend(QueueBackend):
    """A client of a Redis or Valkey server.

    Args:
        address: its path is the database's number; its options are ``prefix`` and, for
            ``rediss``, ``cafile``, ``certfile`` and ``keyfile``.
        connection_class: makes the connections, with the arguments of ``redis.Connection``.
    """

    features = Features(
        durable=True,
        shared=True,
        timed_lease=True,
        deduplicates=True,
        deletes=True,
        counts_leased=True,
        counts_delayed=True,
        ranks_foreign=True,
        journal=True,
        undeclares=True,
        mends_letters=True,
        shows_delayed=True,
        requeues_at_head=True,
    )

    clustered = (*SENTINEL_SCHEMES, *CLUSTER_SCHEMES)

    def __init__(
        self, address: Address, connection_class: Callable[..., Any] | None = None
    ) -> None:
        if address.others and address.scheme not in self.clustered:
            raise ConfigurationError(
                f"{address.scheme}:// is one server; for several, ask the Sentinels that watch "
                "them, redis+sentinel://, or use a cluster, redis+cluster://"
            )
        super().__init__(address)
        self._keys = Keys(prefix_of(address))
        self._options = connection_options(address)
        self._sentinels: Sentinels | None = None
        self._connection_class = connection_class or self._fitting()
        self._where = place(address)
        self._replicas = replicas_of(address)
        self._lease = math.ceil(address.lease * 1000)
        # Two looks within the silence that ends trust in the clock; two within what a socket
        # waits for an answer; and one per heartbeat, so that a dead server is found out.
        self._known = False  # to be a Redis
        self._longest_wait = min(
            address.heartbeat, patience(address) / 2, address.lease / 4, _LOOK_AT_LEAST
        )
        self._start_over()

    def _fitting(self) -> Callable[..., Any]:
        """The class of connections that an address asks for."""
        tls = has_tls(self.address)
        if self.address.scheme == "unix":
            return Local
        if self.address.scheme not in self.clustered:
            return Tls if tls else Plain
        ask = partial(Tls if tls else Plain, **guide_options(self.address))
        hosts = self.address.hosts or (("localhost", self.address.port),)

        def connect(host: str, port: int) -> Any:
            return ask(host=host, port=port)

        guides: Guides
        if self.address.scheme in SENTINEL_SCHEMES:
            guides = self._sentinels = Sentinels(connect, hosts, primary_name(self.address))
        else:
            guides = Nodes(connect, hosts, self._keys.queues)
        followed = FollowedTls if tls else FollowedPlain
        return partial(followed, guides=guides, silence=silence(self.address))

    def _start_over(self) -> None:
        self._opening: dict[str, _Attempt] = {}  # the one that is under way
        self._connections: Connections | None = None
        self._trust = ClockTrust(self.address.lease)
        # A delivery's token, which nobody else has, and which no other delivery has.
        self._name = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._held: dict[str, str] = {}  # token: the queue's base
        self._taking: dict[str, list[str]] = {}  # token: the bases of a receive under way
        # What the server must be told to take back: by token, where it may be leased, and
        # whether that was an attempt. It was not, if nobody ever got the delivery.
        self._owed: dict[str, tuple[list[str], bool]] = {}

    # Life cycle

    def open(self) -> None:
        while not self.is_open:
            mine = _Attempt()
            running = self._opening.setdefault("", mine)
            if running is mine:
                self._attempt(mine)
            elif running.thread == mine.thread:  # a signal handler interrupted it
                self._open()
            else:
                # Who waited for a lock instead would wait for all that came before, each of
                # which tries the same.
                while not running.done:
                    time.sleep(_TICK)
                if running.error is not None:
                    raise type(running.error)(*running.error.args) from running.error

    def _attempt(self, attempt: _Attempt) -> None:
        try:
            self._open()
        except SynmanagerError as error:
            attempt.error = error
            raise
        finally:
            self._opening.clear()
            attempt.done = True

    def _open(self) -> None:
        connections = self._connections
        if connections is None:
            connections = self._connections = self._connect()
        try:
            check_server(connections.call, self._where)
            if self._replicas:
                seconds = min(_REPLICATION, patience(self.address) / 2)
                connections.replicas = replicas_at(connections.call, self._replicas, seconds)
                connections.rivals = self._rivals(connections.rivals)
            if self.address.scheme in self.clustered:
                # Another server's clock is another one, and may not have heard of all renewals.
                self._trust = ClockTrust(self.address.lease)
            sent = time.monotonic()
            now, micros = connections.call("TIME", fits=each(text, text))
            self._trust.saw(sent, int(now) * 1000 + int(micros) // 1000)
            # Whether it holds our keys, or knows which node of a cluster does.
            connections.run(scripts.MISFITS, [self._keys.queues], ("set",))
            self._give_back(connections)
        except BrokerUnavailable:
            connections.forget_idle()
            raise
        except Failed as failed:
            ours = self._failure(connections, failed)
            if not (failed.code or self._known):
                other = self._other_server()
                if other:
                    ours = AccessRefused(f"{self._where} is no Redis: it speaks {other}")
            raise ours from failed.error
        self._known = connections.ready = True

    def _rivals(self, before: Rivals | None) -> Rivals | None:
        """Who may be promoted behind the back of the primary; a cluster's nodes agree with it."""
        if self._sentinels is None:
            return None
        limits = {"socket_timeout": PATIENCE, "socket_connect_timeout": PATIENCE}
        options: dict[str, Any] = {**self._options, **limits}
        ask = partial(Tls if has_tls(self.address) else Plain, **options)

        def connect(host: str, port: int) -> Any:
            return ask(host=host, port=port)

        try:
            told = self._sentinels.replicas()
        except (RedisError, OSError) as error:
            if callers_own(error, None):
                raise
            told = []  # we may not ask for them: those that are connected are known from now on
        return Rivals(connect, told, before)

    def _other_server(self) -> str:
        """What a server speaks that gave no answer of Redis's, if that can be found out."""
        if self.address.scheme not in ("redis", "valkey"):  # within TLS nobody can tell
            return ""
        return who_is_there(self._options["host"], self._options["port"])

    def close(self) -> None:
        connections, self._connections = self._connections, None
        if connections is None:
            return
        connections.close()
        self._owe(self._taking, counts=False)
        self._owe({token: [base] for token, base in self._held.copy().items()}, counts=True)
        self._held.clear()
        if self._owed:
            # On a new connection: what was sent on the others has arrived before.
            farewell = self._connect(socket_timeout=_FAREWELL, socket_connect_timeout=_FAREWELL)
            try:
                # What cannot be given back ends with its lease, or when this client comes back.
                with suppress(Failed, SynmanagerError):
                    self._give_back(farewell)
            finally:
                farewell.close()

    @property
    def is_open(self) -> bool:
        connections = self._connections
        return connections is not None and connections.ready

    def abandon(self) -> None:
        self._start_over()

    def _connect(self, **limits: float) -> Connections:
        for name in limits:
            limits[name] = min(limits[name], self._options[name])
        connect = partial(self._connection_class, **{**self._options, **limits})
        return Connections(connect, self._where)

    def _owe(self, tokens: dict[str, list[str]], *, counts: bool) -> None:
        self._owed.update((token, (bases, counts)) for token, bases in tokens.copy().items())

    def _give_back(self, connections: Connections) -> None:
        for counts in (True, False):
            owed = {
                token: bases
                for token, (bases, counted) in self._owed.copy().items()
                if counted is counts
            }
            if owed:
                bases = sorted(set(itertools.chain.from_iterable(owed.values())))
                try:
                    connections.run(scripts.RELEASE, bases, (int(counts), *owed))
                except Failed as failed:
                    if failed.code != "WRONGTYPE":  # then there are no leases to end
                        raise
                for token in owed:
                    self._owed.pop(token, None)

    # Calls

    def _current(self) -> Connections:
        connections = self._connections
        if connections is None or not connections.ready:
            raise BrokerUnavailable(f"not connected to Redis at {self._where}")
        return connections

    def _call(self, *command: Any, fits: Fits, **more: Any) -> Any:
        connections = self._current()
        try:
            return connections.call(*command, fits=fits, **more)
        except Failed as failed:
            raise self._failure(connections, failed) from failed.error

    def _call_on(self, queue: str, *command: Any, fits: Fits) -> Any:
        try:
            return self._call(*command, fits=fits)
        except TopologyError as error:
            raise self._about([queue], error) from error.__cause__

    def _run(self, script: Script, keys: list[str], *args: Any) -> Any:
        connections = self._current()
        try:
            return connections.run(script, keys, args)
        except Failed as failed:
            raise self._failure(connections, failed) from failed.error

    def _run_on(self, queue: str, script: Script, *args: Any) -> Any:
        """Run a script on a queue; if somebody deleted parts of it, mend it first."""
        keys = [self._keys.base(queue)]
        try:
            return self._run(script, keys, *args)
        except TopologyError as error:
            if not _is_broken(error):
                raise self._about([queue], error) from error.__cause__
        self._mend(queue)
        return self._run(script, keys, *args)

    def _mend(self, queue: str) -> None:
        try:
            removed = self._run(scripts.MEND, [self._keys.queues, self._keys.base(queue)], queue)
        except TopologyError as error:
            raise self._about([queue], error) from error.__cause__
        if removed is None:
            raise TopologyError(f"queue {queue!r} does not exist; declare it first")
        if removed:
            logger.warning(
                "removed from the keys of queue %r what is nothing of this project's: %s",
                queue,
                shown(", ".join(f"{what!r} from {key!r}" for key, what in _pairs(removed))),
            )

    def _about(self, queues: Sequence[str], error: TopologyError) -> TopologyError:
        kinds: dict[str, str] = {}
        for queue in queues:
            kinds |= kinds_of_queue(self._keys.base(queue))
        return self._explained(error, kinds, f"queue {', '.join(map(repr, queues))}")

    def _explained(self, error: TopologyError, kinds: dict[str, str], where: str) -> TopologyError:
        """An error that names the keys which are not what they should be, if that is the reason.

        Args:
            kinds: the types of the keys that may be meant.
            where: what was being done, or to what.
        """
        if not isinstance(error.__cause__, Exception):
            return error  # one of our own words
        misfits = self._run(scripts.MISFITS, list(kinds), *kinds.values())
        what = [f"the key {key!r} {wrong}; rename or remove it" for key, wrong in _pairs(misfits)]
        return TopologyError(f"{where}: {'; '.join(what) or error}")

    def _failure(
        self, connections: Connections, failed: Failed, *, publishing: bool = False
    ) -> SynmanagerError:
        """Our error for a call that failed; after it the connections may have to be opened."""
        if connections.closed:
            return BrokerUnavailable(f"the connection to Redis at {self._where} was closed")
        ours = translate(failed.error, self._where, publishing=publishing)
        # A server that takes no writes for now is there all the same.
        if isinstance(ours, BrokerUnavailable) and not takes_no_writes(failed.error):
            connections.ready = False
            connections.forget_idle()
        return ours

    # Topology

    def declare(self, *specs: ExchangeSpec | QueueSpec) -> None:
        for spec in specs:
            exchange, keys = spec, [self._keys.exchanges, self._keys.queues]
            kinds = dict(zip(keys, ("hash", "set"), strict=True))
            try:
                if isinstance(exchange, ExchangeSpec):
                    self._bind(exchange, keys)
                    continue
                assert isinstance(spec, QueueSpec)
                exchange = spec.exchange
                fanout = exchange.type == "fanout"
                route = self._keys.route(exchange.name, None if fanout else spec.routing_key)
                base = self._keys.base(spec.name)
                kinds |= {route: "set"} | kinds_of_queue(base)
                names = (exchange.name, exchange.type, spec.name)
                if not self._run(scripts.DECLARED, [*keys, route, base], *names):
                    self._bind(exchange, [*keys, route], spec.name)
                    self._mend(spec.name)
            except TopologyError as error:
                raise self._explained(error, kinds, f"declaring {spec.name!r}") from error.__cause__

    def undeclare(self, spec: QueueSpec) -> None:
        fanout = spec.exchange.type == "fanout"
        route = self._keys.route(spec.exchange.name, None if fanout else spec.routing_key)
        own = kinds_of_queue(self._keys.base(spec.name))
        kinds = {self._keys.queues: "set", route: "set"} | own
        try:
            self._run(scripts.UNDECLARE, [self._keys.queues, route, *own], spec.name)
        except TopologyError as error:
            where = f"removing {spec.name!r}"
            raise self._explained(error, kinds, where) from error.__cause__

    def _bind(self, exchange: ExchangeSpec, keys: list[str], *queue: str) -> None:
        answer = self._run(scripts.BIND, keys, exchange.name, exchange.type, *queue)
        kind = answer.decode("utf-8", "backslashreplace")
        if kind != exchange.type:
            raise TopologyError(
                f"exchange {exchange.name!r} is of type {kind!r}, not {exchange.type!r}"
            )

    # Publishing

    def publish(
        self,
        exchange: str,
        routing_key: str,
        messages: Sequence[Message],
        *,
        delay: float = 0.0,
    ) -> int:
        connections = self._current()
        keys = [
            self._keys.exchanges,
            self._keys.queues,
            self._keys.route(exchange, None),
            self._keys.route(exchange, routing_key),
        ]
        head = (exchange, self._keys.queue_base, math.ceil(delay * 1000))
        repeats = 0
        for confirmed, args in _chunks(messages, head):
            rest = messages[confirmed:]
            try:
                bound, known = connections.run(scripts.PUBLISH, keys, args)
            except Failed as failed:
                ours = self._not_published(connections, failed, rest, all=not confirmed)
                ours.__cause__ = failed.error
                if isinstance(ours, TopologyError):
                    ours = self._explained(ours, self._kinds(keys), f"publishing to {exchange!r}")
                raise ours from failed.error
            if not bound:
                raise Unroutable(
                    f"no queue is bound to exchange {exchange!r} with routing key {routing_key!r}",
                    rest,
                )
            repeats += known
        return repeats

    def _not_published(
        self,
        connections: Connections,
        failed: Failed,
        rest: Sequence[Message],
        *,
        all: bool,
    ) -> SynmanagerError:
        """Our error for a script that did not publish the first of ``rest``."""
        in_doubt = failed.sent
        if in_doubt and len(rest[0].body) > _SURELY_TAKEN:
            limit = self._longest_string(connections)
            if len(rest[0].body) > limit:
                return InvalidJob(
                    f"the job is {len(rest[0].body):,} bytes, and Redis at {self._where} takes no "
                    f"more than {limit:,} (proto-max-bulk-len)"
                )
        ours = self._failure(connections, failed, publishing=True)
        if isinstance(ours, PublishRefused):
            return PublishRefused(str(ours), rest)
        # Neither sent nor carried out: nothing of it was accepted. But what came before was.
        if isinstance(ours, BrokerUnavailable) and (in_doubt or not all):
            return PublishInterrupted(str(ours), rest)
        return ours

    def _longest_string(self, connections: Connections) -> float:
        """How many bytes the server takes at once; without end if it does not tell."""
        try:
            answer = connections.call("CONFIG", "GET", "proto-max-bulk-len", fits=many(text))
        except Failed:
            return math.inf
        return int(answer[1]) if answer else math.inf

    def _kinds(self, keys: list[str]) -> dict[str, str]:
        """The type of each key that has to do with a publish; ``keys`` are those of its script."""
        kinds = dict(zip(keys, ("hash", "set", "set", "set"), strict=True))
        for route in keys[2:]:
            with suppress(TopologyError):
                for queue in self._call("SMEMBERS", route, fits=many(text)):
                    name = queue.decode("utf-8", "backslashreplace")
                    kinds |= kinds_of_queue(self._keys.base(name))
        return kinds

    # Receiving

    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        return self.await_job(queues, wait, done, called_off=_never)

    def await_job(
        self,
        queues: Sequence[str],
        wait: float,
        done: Delivery | None = None,
        *,
        called_off: Callable[[], bool],
    ) -> Delivery | None:
        if self._owed:
            self._settle_debts()
        deadline = time.monotonic() + wait
        prolonged: float | None = None
        bases = [self._keys.base(queue) for queue in queues]
        woken_by = ""
        while True:
            token = f"{self._name}-{next(self._numbers)}"
            sent = time.monotonic()
            args = (token, self._lease, *self._trust.question(), woken_by)
            delivery, reply = self._look(queues, bases, token, args, done)
            if delivery is not None:
                self._trust.saw(sent, reply[5])
                return delivery
            done = None
            now, wake, enough = reply[1:]
            self._trust.saw(sent, now)
            pause, end = self._longest_wait, deadline
            doubt = enough >= 0
            if doubt:
                # A lease has run out, if the clock can be believed; in so many seconds it can.
                rest = max(enough + 1 - max(self._trust.question().trusted, 0), 1) / 1000
                # Its holder may renew it meanwhile, which rings no bell.
                pause = min(pause, rest, max(rest / 8, _LOOK_AGAIN))
                if wait < _COMES_AGAIN:
                    prolonged = prolonged or time.monotonic() + 1.5 * rest
                    end = max(deadline, prolonged)
            left = end - time.monotonic()
            if left <= 0:
                return None
            pause = min(pause, left)
            due = wake >= 0 and (wake - now) / 1000 <= pause
            if due:
                pause = (wake - now) / 1000
            woken_by = self._listen(bases, pause, called_off)
            rung = "1" in woken_by  # nobody else was: even who is called off has to look
            if called_off() and not rung:
                return None
            if not (rung or due or doubt) and time.monotonic() >= deadline:
                return None

    def _settle_debts(self) -> None:
        connections = self._current()
        try:
            self._give_back(connections)
        except Failed as failed:
            raise self._failure(connections, failed) from failed.error

    def _look(
        self, queues: Sequence[str], bases: list[str], token: str, args: Any, done: Delivery | None
    ) -> tuple[Delivery | None, list[Any]]:
        delivery = None
        self._taking[token] = bases
        try:
            reply = None if done is None else self._finish_and_look(bases, args, done)
            if reply is None:
                reply = self._only_look(queues, bases, args)
            if reply[0]:
                delivery = self._deliver(queues[reply[0] - 1], token, reply)
                self._held[token] = bases[reply[0] - 1]
        except BaseException:
            # It may have been leased; then nobody knows of it but the server.
            self._owed[token] = (bases, False)
            raise
        finally:
            del self._taking[token]
        return delivery, reply

    def _only_look(self, queues: Sequence[str], bases: list[str], args: Any) -> Any:
        try:
            return self._run(scripts.RECEIVE, bases, *args)
        except TopologyError as error:
            if not _is_broken(error):
                raise self._about(queues, error) from error.__cause__
        for queue in queues:
            self._mend(queue)
        return self._run(scripts.RECEIVE, bases, *args)

    def _finish_and_look(self, bases: list[str], args: Any, done: Delivery) -> Any:
        """Acknowledge and look in one; None if it has come to nothing but the acknowledgement."""
        receipt = self._receipt(done)
        if not (done.settled or receipt.in_doubt):
            keys = [*bases, self._keys.base(done.queue)]
            receipt.in_doubt = True  # until there is an answer, whatever ends the call
            try:
                reply = self._run(scripts.RECEIVE, keys, *args, receipt.lease, done.message.id)
            except TopologyError:
                pass  # of whichever queue; a script that stops has done what it did before
            else:
                receipt.in_doubt = False
                if reply[0] < 0:
                    raise self._lost(done, gone=False)
                self._set_settled(done)
                return reply
        self.ack(done)
        return None

    def _listen(self, bases: list[str], seconds: float, called_off: Callable[[], bool]) -> str:
        """Wait until a bell rings; which ones did: 1 or 0 for each queue."""
        block = max(1, math.ceil(seconds * 1000))  # 0 would be for ever
        keys = [f"{base}:bell" for base in bases]
        reader = ("GROUP", _GROUP, "waiting", "COUNT", 1, "BLOCK", block, "NOACK")
        try:
            reply = self._call(
                *("XREADGROUP", *reader, "STREAMS", *keys, *(">" for _ in keys)),
                fits=or_none(many(each(text, found))),
                called_off=called_off,
            )
        except CalledOff:
            return "0" * len(keys)
        except TopologyError:
            return "1" * len(keys)  # it is no bell any more; the next look sees to that
        rung = {key for key, _ in reply or ()}
        return "".join("1" if key.encode() in rung else "0" for key in keys)

    def _deliver(self, queue: str, token: str, reply: list[Any]) -> Delivery:
        _, rank, entry, deliveries, fields, _ = reply
        message, attempts, defect = parse(queue, rank, entry, fields)
        lease = f"{rank.decode()}/{entry.decode()}/{self._lease}/{token}"
        receipt = _Receipt(token, lease, deliveries)
        return Delivery(message, queue, attempts + deliveries, receipt, defect)

    # Settling

    def ack(self, delivery: Delivery) -> None:
        self._settle(scripts.ACK, delivery)

    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        less = 0 if count else 1
        self._settle(
            scripts.NACK,
            delivery,
            math.ceil(delay * 1000),
            delivery.receipt.deliveries - less,
            delivery.attempt - less,
        )

    def bury(self, delivery: Delivery, reason: str, traceback: str = "") -> None:
        texts = (part.encode("utf-8", "backslashreplace") for part in (reason, traceback))
        self._settle(scripts.BURY, delivery, delivery.attempt, *texts)

    def renew(self, delivery: Delivery) -> None:
        if delivery.settled:
            return
        receipt = self._receipt(delivery)
        sent = time.monotonic()
        now = self._run_on(delivery.queue, scripts.RENEW, receipt.lease, self._lease)
        if now <= 0:
            raise self._lost(delivery, gone=now < 0)
        self._trust.saw(sent, now)

    def _settle(self, script: Script, delivery: Delivery, *args: Any) -> None:
        if delivery.settled:
            return
        receipt = self._receipt(delivery)
        # An earlier try may have done it, and its answer never came; so may this one, whatever
        # ends the call.
        doubted, receipt.in_doubt = receipt.in_doubt, True
        try:
            answer = self._run_on(delivery.queue, script, receipt.lease, delivery.message.id, *args)
        except TopologyError:
            receipt.in_doubt = doubted
            raise
        receipt.in_doubt = doubted
        # What it leaves then is no entry, or after a nack one that is not ours.
        done_before = doubted and (answer < 0 or script is scripts.NACK)
        if answer <= 0 and not done_before:
            raise self._lost(delivery, gone=answer < 0)
        self._set_settled(delivery)

    def _receipt(self, delivery: Delivery) -> _Receipt:
        receipt: _Receipt = delivery.receipt
        if not (delivery.settled or receipt.token.startswith(f"{self._name}-")):
            raise LeaseLost(
                f"job {shown(delivery.message.id)} was not taken by this client of this process; "
                "only who took it can settle it"
            )
        return receipt

    def _set_settled(self, delivery: Delivery) -> None:
        delivery.settled = True
        self._held.pop(delivery.receipt.token, None)

    def _lost(self, delivery: Delivery, *, gone: bool) -> LeaseLost:
        self._held.pop(delivery.receipt.token, None)
        since = (
            "it has been settled since, by another worker or by a call whose answer was lost"
            if gone
            else "another worker may hold it now"
        )
        return LeaseLost(
            f"job {shown(delivery.message.id)} was taken back, because its lease ran out or its "
            f"connection was closed; {since}"
        )

    # Operations

    def count(self, queue: str) -> Counts:
        sent = time.monotonic()
        ready, leased, delayed, dead, now = self._run_on(
            queue, scripts.COUNT, *self._trust.question()
        )
        self._trust.saw(sent, now)
        return Counts(ready, leased, delayed, dead)

    def purge(self, queue: str) -> int:
        removed = 0
        while True:
            page: int = self._run_on(queue, scripts.PURGE, _PAGE)
            removed += page
            if page < _PAGE:
                return removed

    def delete(self, queue: str, message_id: str) -> bool:
        name = message_id.encode("utf-8", "surrogatepass")  # such an id no message can have
        return bool(self._run_on(queue, scripts.DELETE, name))

    def dead_letters(self, queue: str, limit: int) -> list[DeadLetter]:
        return [letter for _, letter in itertools.islice(self._letters(queue, limit), limit)]

    def _letters(self, queue: str, page: int) -> Iterator[tuple[bytes, DeadLetter]]:
        """A queue's dead letters with their entries, oldest first, some at a time."""
        key = f"{self._keys.base(queue)}:dead"
        start: str | bytes = "-"
        page = min(page, _PAGE_OF_LETTERS)
        while page > 0:
            command = ("XRANGE", key, start, "+", "COUNT", page)
            entries = self._call_on(queue, *command, fits=found)
            yield from ((entry, dead_letter(queue, entry, fields)) for entry, fields in entries)
            if len(entries) < page:
                break
            start = b"(" + entries[-1][0]

    def redrive(self, queue: str, limit: int) -> int:
        moved, start = 0, b"-"
        while moved < limit:
            page = min(limit - moved, _PAGE_OF_LETTERS)
            number, last = self._run_on(queue, scripts.REDRIVE, start, page)
            moved += number
            if not last:
                break
            start = b"(" + last
        return moved

    def redrive_letters(self, queue: str, ids: Collection[str]) -> int:
        moved, start = 0, b"-"
        meant = [each.encode("utf-8", "surrogatepass") for each in set(ids)]
        while meant and start:
            number, last = self._run_on(queue, scripts.REDRIVE, start, _PAGE_OF_LETTERS, *meant)
            moved += number
            start = b"(" + last if last else b""
        return moved

    def purge_letters(self, queue: str, ids: Collection[str]) -> int:
        removed = 0
        key = f"{self._keys.base(queue)}:dead"
        meant = (entry for entry, each in self._letters(queue, _PAGE) if each.message.id in ids)
        while page := list(itertools.islice(meant, _PAGE_OF_LETTERS)):
            removed += self._call_on(queue, "XDEL", key, *page, fits=whole)
        return removed

    def edit_letter(self, queue: str, message_id: str, body: bytes) -> bool:
        for entry, letter in self._letters(queue, _PAGE):
            if letter.message.id == message_id:
                return bool(self._run_on(queue, scripts.EDIT, entry, body))
        return False

    def add_letters(self, queue: str, letters: Sequence[DeadLetter]) -> None:
        for letter in letters:
            self._run_on(queue, scripts.ADD, *write_letter(letter))

    def purge_dead_letters(self, queue: str) -> int:
        command = ("XTRIM", f"{self._keys.base(queue)}:dead", "MAXLEN", 0)
        removed: int = self._call_on(queue, *command, fits=whole)
        return removed

    # The journal

    def record(self, log: str, entries: Sequence[bytes]) -> None:
        connections = self._current()
        key = self._keys.log(log)
        limits = (math.ceil(self.address.journal_age * 1000), self.address.journal_bytes)
        for part in _cut([len(data) for data in entries]):
            try:
                connections.run(scripts.RECORD, [key], (*limits, *entries[part]))
            except Failed as failed:
                ours = self._failure(connections, failed, publishing=True)
                ours.__cause__ = failed.error
                if isinstance(ours, TopologyError):
                    ours = self._explained(ours, {key: "stream"}, f"the log {log!r}")
                raise ours from failed.error

    def replay(
        self, log: str, after: str | float = 0.0, *, wait: float = 0.0, limit: int = 1000
    ) -> list[Entry]:
        check_place(after, _POSITION)
        deadline = time.monotonic() + wait
        key = self._keys.log(log)
        begin = after if isinstance(after, str) else _just_before(after)
        while True:
            left = deadline - time.monotonic()
            pause = math.ceil(min(left, self._longest_wait) * 1000)
            block = ("BLOCK", pause) if pause > 0 else ()  # 0 would be for ever
            command = ("XREAD", "COUNT", limit, *block, "STREAMS", key, begin)
            try:
                reply = self._call(*command, fits=or_none(many(each(text, found))))
            except TopologyError as error:
                kinds = {key: "stream"}
                raise self._explained(error, kinds, f"the log {log!r}") from error.__cause__
            if reply:
                return [log_entry(position, fields) for position, fields in reply[0][1]]
            if not block:
                return []

    def delayed(self, queue: str, limit: int) -> list[Delayed]:
        shown = self._run_on(queue, scripts.DELAYED, limit)
        return [delayed(queue, *each) for each in shown]

    def facts(self, queues: Sequence[str] = ()) -> Facts:
        names = self._call("SMEMBERS", self._keys.queues, fits=many(text))
        connections = self._current()
        try:
            facts = facts_of(connections.call)
        except Failed as failed:
            raise self._failure(connections, failed) from failed.error
        known = sorted(name.decode("utf-8", "backslashreplace") for name in names)
        return replace(facts, queues=tuple(known))


def _never() -> bool:
    return False


def _pairs(flat: list[bytes]) -> Iterator[tuple[str, str]]:
    words = [word.decode("utf-8", "backslashreplace") for word in flat]
    return zip(words[::2], words[1::2], strict=True)


def _is_broken(error: TopologyError) -> bool:
    """Whether a stream or its group is missing, which ``mend.lua`` can make again."""
    return error.__cause__ is not None and code_of(error.__cause__) == "NOGROUP"


def _just_before(seconds: float) -> str:
    """The last id that an entry can have before a time since the epoch."""
    milliseconds = math.floor(seconds * 1000)
    return f"{milliseconds - 1}-{2**64 - 1}" if milliseconds > 0 else "0-0"


def _cut(sizes: Sequence[int]) -> Iterator[slice]:
    """Cut a batch, of which each part is so many bytes, into what one script takes."""
    start = size = 0
    for number, length in enumerate(sizes):
        if number > start and (number - start >= _CHUNK_MESSAGES or size + length > _CHUNK_BYTES):
            yield slice(start, number)
            start, size = number, 0
        size += length
    if start < len(sizes):
        yield slice(start, len(sizes))


def _chunks(
    messages: Sequence[Message], head: tuple[Any, ...]
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Cut a batch: the arguments of each script, and how many messages came before."""
    for part in _cut([len(message.body) for message in messages]):
        yield part.start, (*head, *write(messages[part]))

"""The backend: which script runs when, and what its answer means."""

from __future__ import annotations

import itertools
import math
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import redis
from redis import exceptions as redis_errors

from synmanager.backends.base import (
    Address,
    Counts,
    DeadLetter,
    Delivery,
    ExchangeSpec,
    Features,
    QueueBackend,
    QueueSpec,
)
from synmanager.backends.redis import scripts
from synmanager.backends.redis.checks import check_server
from synmanager.backends.redis.connections import Connections
from synmanager.backends.redis.entries import dead_letter, parse, write
from synmanager.backends.redis.faults import code_of, translate
from synmanager.backends.redis.keys import Keys
from synmanager.backends.redis.options import connection_options, patience, prefix_of
from synmanager.backends.redis.scripts import Script
from synmanager.backends.redis.trust import ClockTrust
from synmanager.errors import (
    BrokerUnavailable,
    LeaseLost,
    PublishInterrupted,
    SynmanagerError,
    TopologyError,
    Unroutable,
)
from synmanager.message import Message

__all__ = ["RedisBackend"]

#: The most that one script takes: the server does nothing else while it runs.
_CHUNK_MESSAGES = 500
_CHUNK_BYTES = 1024 * 1024

#: How many messages one script removes or moves, for the same reason.
_PAGE = 1000
_PAGE_OF_LETTERS = 100

#: Seconds until a server that does not answer is left without having been told goodbye.
_FAREWELL = 2.0

#: Seconds until the second look of a client that does not trust the server's clock yet.
_FIRST_LOOK = 0.05


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
    )

    def __init__(
        self, address: Address, connection_class: Callable[..., Any] | None = None
    ) -> None:
        super().__init__(address)
        self._keys = Keys(prefix_of(address))
        self._options = connection_options(address)
        if connection_class is None:
            tls = address.scheme == "rediss"
            connection_class = redis.SSLConnection if tls else redis.Connection
        self._connection_class = connection_class
        self._where = f"{self._options['host']}:{self._options['port']}"
        self._lease = math.ceil(address.lease * 1000)
        # Two looks within the silence that ends trust in the clock; two within what a socket
        # waits for an answer; and one per heartbeat, so that a dead server is found out.
        self._longest_wait = min(address.heartbeat, patience(address) / 2, address.lease / 4)
        self._start_over()

    def _start_over(self) -> None:
        self._opening = threading.Lock()
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
        with self._opening:
            if self.is_open:
                return
            connections = self._connections
            if connections is None:
                connections = self._connections = self._connect()
            try:
                check_server(connections.call, self._where)
                sent = time.monotonic()
                seconds, micros = connections.call("TIME")
                self._trust.saw(sent, int(seconds) * 1000 + int(micros) // 1000)
                self._give_back(connections)
            except SynmanagerError:
                raise
            except (redis_errors.RedisError, OSError) as error:
                raise self._failure(connections, error) from error
            connections.ready = True

    def close(self) -> None:
        connections, self._connections = self._connections, None
        if connections is None:
            return
        connections.close()
        self._owe(self._taking, counts=False)
        self._owe({token: [base] for token, base in self._held.items()}, counts=True)
        self._held.clear()
        if self._owed:
            # On a new connection: what was sent on the others has arrived before.
            farewell = self._connect(socket_timeout=_FAREWELL, socket_connect_timeout=_FAREWELL)
            # What cannot be given back ends with its lease, or when this client comes back.
            with suppress(redis_errors.RedisError, OSError, SynmanagerError):
                self._give_back(farewell)
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
                connections.run(scripts.RELEASE, bases, (int(counts), *owed))
                for token in owed:
                    self._owed.pop(token, None)

    # Calls

    def _current(self) -> Connections:
        connections = self._connections
        if connections is None or not connections.ready:
            raise BrokerUnavailable(f"not connected to Redis at {self._where}")
        return connections

    def _call(self, *command: Any) -> Any:
        connections = self._current()
        try:
            return connections.call(*command)
        except (redis_errors.RedisError, OSError) as error:
            raise self._failure(connections, error) from error

    def _run(self, script: Script, keys: list[str], *args: Any) -> Any:
        connections = self._current()
        try:
            return connections.run(script, keys, args)
        except (redis_errors.RedisError, OSError) as error:
            raise self._failure(connections, error) from error

    def _run_on(self, queue: str, script: Script, *args: Any) -> Any:
        """Run a script on a queue; if somebody deleted parts of it, mend it first."""
        keys = [self._keys.base(queue)]
        try:
            return self._run(script, keys, *args)
        except TopologyError as error:
            if not _is_broken(error):
                raise _about([queue], error) from error.__cause__
        self._mend(queue)
        return self._run(script, keys, *args)

    def _mend(self, queue: str) -> None:
        try:
            known = self._run(scripts.MEND, [self._keys.queues, self._keys.base(queue)], queue)
        except TopologyError as error:
            raise _about([queue], error) from error.__cause__
        if not known:
            raise TopologyError(f"queue {queue!r} does not exist; declare it first")

    def _failure(
        self, connections: Connections, error: Exception, *, publishing: bool = False
    ) -> SynmanagerError:
        """Our error for one that a call raised; after it the connections may have to be opened."""
        if isinstance(error, SynmanagerError):
            ours: SynmanagerError = error
        elif connections.closed:
            ours = BrokerUnavailable(f"the connection to Redis at {self._where} was closed")
        else:
            ours = translate(error, self._where, publishing=publishing)
        if isinstance(ours, BrokerUnavailable):
            connections.ready = False
            connections.forget_idle()
        return ours

    # Topology

    def declare(self, *specs: ExchangeSpec | QueueSpec) -> None:
        for spec in specs:
            keys = [self._keys.exchanges, self._keys.queues]
            if isinstance(spec, ExchangeSpec):
                self._bind(spec, keys)
                continue
            fanout = spec.exchange.type == "fanout"
            keys.append(self._keys.route(spec.exchange.name, None if fanout else spec.routing_key))
            base = self._keys.base(spec.name)
            exchange = spec.exchange
            if not self._run(
                scripts.DECLARED, [*keys, base], exchange.name, exchange.type, spec.name
            ):
                self._bind(exchange, keys, spec.name)
                self._mend(spec.name)

    def _bind(self, exchange: ExchangeSpec, keys: list[str], *queue: str) -> None:
        kind = self._run(scripts.BIND, keys, exchange.name, exchange.type, *queue).decode()
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
    ) -> None:
        connections = self._current()
        keys = [
            self._keys.exchanges,
            self._keys.route(exchange, None),
            self._keys.route(exchange, routing_key),
        ]
        head = (exchange, self._keys.queue_base, math.ceil(delay * 1000))
        for confirmed, args in _chunks(messages, head):
            try:
                bound = connections.run(scripts.PUBLISH, keys, args)
            except (redis_errors.RedisError, OSError) as error:
                raise self._not_published(connections, error, exchange, messages, confirmed) from (
                    error
                )
            if not bound:
                raise Unroutable(
                    f"no queue is bound to exchange {exchange!r} with routing key {routing_key!r}"
                )

    def _not_published(
        self,
        connections: Connections,
        error: Exception,
        exchange: str,
        messages: Sequence[Message],
        confirmed: int,
    ) -> SynmanagerError:
        ours = self._failure(connections, error, publishing=True)
        if isinstance(ours, BrokerUnavailable):
            # Neither sent nor answered: nothing of it was accepted. But what came before was.
            refused = isinstance(error, SynmanagerError) or code_of(error)
            if not refused or confirmed:
                return PublishInterrupted(str(ours), messages[confirmed:])
        elif isinstance(ours, TopologyError):
            return TopologyError(f"publishing to exchange {exchange!r}: {ours}")
        return ours

    # Receiving

    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        deadline = time.monotonic() + wait
        bases = [self._keys.base(queue) for queue in queues]
        while True:
            token = f"{self._name}-{next(self._numbers)}"
            question = self._trust.question()
            sent = time.monotonic()
            args = (token, self._lease, *question)
            reply = self._look(queues, bases, token, args, done)
            done = None
            if reply[0]:
                self._trust.saw(sent, reply[5])
                return self._deliver(queues[reply[0] - 1], token, reply)
            now, wake, *bells = reply[1:]
            self._trust.saw(sent, now)
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            # The answer does not tell of leases that have run out and are not believed to: they
            # are looked at again when the clock has been watched for twice as long.
            pause = min(left, self._longest_wait, max(_FIRST_LOOK, question.trusted / 1000))
            due = wake >= 0 and (wake - now) / 1000 <= pause
            if due:
                pause = (wake - now) / 1000
            rung = self._listen(bases, bells, pause)
            if not rung and not due and time.monotonic() >= deadline:
                return None

    def _look(
        self, queues: Sequence[str], bases: list[str], token: str, args: Any, done: Delivery | None
    ) -> Any:
        self._taking[token] = bases
        try:
            reply = None if done is None else self._finish_and_look(bases, args, done)
            if reply is None:
                reply = self._only_look(queues, bases, args)
        except BaseException:
            # It may have been leased; then nobody knows of it but the server.
            self._owed[token] = (bases, False)
            del self._taking[token]
            raise
        if reply[0]:
            self._held[token] = bases[reply[0] - 1]
        del self._taking[token]
        return reply

    def _only_look(self, queues: Sequence[str], bases: list[str], args: Any) -> Any:
        try:
            return self._run(scripts.RECEIVE, bases, *args)
        except TopologyError as error:
            if not _is_broken(error):
                raise _about(queues, error) from error.__cause__
        for queue in queues:
            self._mend(queue)
        return self._run(scripts.RECEIVE, bases, *args)

    def _finish_and_look(self, bases: list[str], args: Any, done: Delivery) -> Any:
        """Acknowledge and look in one; None if it has come to nothing but the acknowledgement."""
        receipt: _Receipt = done.receipt
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
                    raise self._lost(done)
                self._set_settled(done)
                return reply
        self.ack(done)
        return None

    def _listen(self, bases: list[str], bells: list[bytes], seconds: float) -> bool:
        """Wait until a bell rings; whether one did."""
        block = max(1, math.ceil(seconds * 1000))  # 0 would be for ever
        keys = [f"{base}:bell" for base in bases]
        return bool(self._call("XREAD", "BLOCK", block, "STREAMS", *keys, *bells))

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

    def bury(self, delivery: Delivery, reason: str) -> None:
        text = reason.encode("utf-8", "backslashreplace")
        self._settle(scripts.BURY, delivery, delivery.attempt, text)

    def renew(self, delivery: Delivery) -> None:
        if delivery.settled:
            return
        receipt: _Receipt = delivery.receipt
        sent = time.monotonic()
        now = self._run_on(delivery.queue, scripts.RENEW, receipt.lease, self._lease)
        if now <= 0:
            raise self._lost(delivery)
        self._trust.saw(sent, now)

    def _settle(self, script: Script, delivery: Delivery, *args: Any) -> None:
        if delivery.settled:
            return
        receipt: _Receipt = delivery.receipt
        try:
            answer = self._run_on(delivery.queue, script, receipt.lease, delivery.message.id, *args)
        except BrokerUnavailable:
            receipt.in_doubt = True
            raise
        # Where an earlier try may have done it, its trace is what it leaves: no entry, or after
        # a nack one that is not ours.
        done_before = receipt.in_doubt and (answer < 0 or script is scripts.NACK)
        if answer <= 0 and not done_before:
            raise self._lost(delivery)
        self._set_settled(delivery)

    def _set_settled(self, delivery: Delivery) -> None:
        delivery.settled = True
        self._held.pop(delivery.receipt.token, None)

    def _lost(self, delivery: Delivery) -> LeaseLost:
        self._held.pop(delivery.receipt.token, None)
        return LeaseLost(
            f"job {delivery.message.id} was taken back: its lease ran out, or its connection was "
            "closed"
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
        return bool(self._run_on(queue, scripts.DELETE, message_id))

    def dead_letters(self, queue: str, limit: int) -> list[DeadLetter]:
        key = f"{self._keys.base(queue)}:dead"
        letters: list[DeadLetter] = []
        start: Any = "-"
        while len(letters) < limit:
            page = min(limit - len(letters), _PAGE_OF_LETTERS)
            found = self._call("XRANGE", key, start, "+", "COUNT", page)
            letters += (dead_letter(queue, entry, fields) for entry, fields in found)
            if len(found) < page:
                break
            start = b"(" + found[-1][0]
        return letters

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

    def purge_dead_letters(self, queue: str) -> int:
        removed: int = self._call("XTRIM", f"{self._keys.base(queue)}:dead", "MAXLEN", 0)
        return removed


def _about(queues: Sequence[str], error: TopologyError) -> TopologyError:
    return TopologyError(f"queue {', '.join(map(repr, queues))}: {error}")


def _is_broken(error: TopologyError) -> bool:
    """Whether a stream or its group is missing, which ``mend.lua`` can make again."""
    return error.__cause__ is not None and code_of(error.__cause__) == "NOGROUP"


def _chunks(
    messages: Sequence[Message], head: tuple[Any, ...]
) -> Iterator[tuple[int, tuple[Any, ...]]]:
    """Cut a batch: the arguments of each script, and how many messages came before."""
    if len(messages) == 1:
        yield 0, head + write(messages[0])
        return
    start, args, size = 0, list(head), 0
    for number, message in enumerate(messages):
        if number > start and (
            number - start >= _CHUNK_MESSAGES or size + len(message.body) > _CHUNK_BYTES
        ):
            yield start, tuple(args)
            start, args, size = number, list(head), 0
        args += write(message)
        size += len(message.body)
    if args[len(head) :]:
        yield start, tuple(args)

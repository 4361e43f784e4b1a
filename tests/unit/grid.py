"""A grid of the test's own: a memory broker that nobody else uses, and whose time a test skips."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any
from uuid import uuid4

from threads import WAIT, in_thread, until

from synmanager.backends import Address, Delivery, ExchangeSpec, QueueSpec
from synmanager.backends.memory import MemoryBackend, MemoryBroker, _brokers, _Entry
from synmanager.backends.native import NativeBackend
from synmanager.base import BaseOperator, ConsumerOperator, ProducerOperator
from synmanager.clock import ManualClock
from synmanager.engine.results import Results
from synmanager.engine.runner import Handler, Runner
from synmanager.engine.service import Service
from synmanager.engine.session import Session
from synmanager.errors import BrokerUnavailable
from synmanager.message import Message, encode
from synmanager.phases import PHASES
from synmanager.settings import Settings

__all__ = ["WAIT", "Bench", "FlakyBackend", "Grid", "SkippingClock", "in_thread", "until"]


class SkippingClock(ManualClock):
    """Real time, plus what a test skips: threads wait as they would, hours pass at once."""

    def now(self) -> float:
        return time.monotonic() + super().now()


class Grid:
    """A memory broker with the four phases' operators."""

    def __init__(self) -> None:
        name = f"grid-{uuid4().hex}"
        self.clock = SkippingClock()
        self.broker = MemoryBroker(self.clock)
        self.url = f"memory:///{name}"
        self._name = name
        self._closers: list[Callable[[], None]] = []
        _brokers[name] = self.broker

    def close(self) -> None:
        for close in reversed(self._closers):
            close()
        _brokers.pop(self._name, None)

    def producer(self, phase: str = "train", **options: Any) -> ProducerOperator:
        """A connected producer of a phase."""
        operator = self._connected(phase, "Producer", options)
        assert isinstance(operator, ProducerOperator)
        return operator

    def consumer(self, phase: str = "train", **options: Any) -> ConsumerOperator:
        """A connected consumer of a phase."""
        operator = self._connected(phase, "Consumer", options)
        assert isinstance(operator, ConsumerOperator)
        return operator

    def client(self, **address: Any) -> FlakyBackend:
        """An open connection below the operators, to look at the broker or to fail on demand."""
        client = FlakyBackend(Address("memory", **address), self.broker)
        client.open()
        client.declare(*(phase.spec for phase in PHASES.values()))
        client.calls.clear()
        self._closers.append(client.close)
        return client

    def flaky(self, owner: BaseOperator | Service, **address: Any) -> FlakyBackend:
        """Give a connected operator, Worker or Archiver a connection that fails on demand."""
        session = owner._session
        assert session is not None
        client = FlakyBackend(replace(session.backend.address, **address), self.broker)
        if session.is_open:
            client.open()
            client.calls.clear()
        session.backend = client
        self._closers.append(client.close)
        return client

    def put(self, *jobs: Any, phase: str = "train", **fields: Any) -> list[Message]:
        """Publish jobs, or bodies as they are, to a phase."""
        bodies = (job if isinstance(job, bytes) else encode(job) for job in jobs)
        messages = [Message(body, **fields) for body in bodies]
        spec = PHASES[phase].spec
        self.client().publish(spec.exchange.name, spec.routing_key, messages)
        return messages

    def count(self, queue: str = "train") -> dict[str, int]:
        """What is in a queue: ready, leased, delayed, dead; zeros left out."""
        counts = vars(self.client().count(queue))
        return {state: number for state, number in counts.items() if number}

    def dead(self, queue: str = "train") -> list[tuple[bytes, str, int]]:
        """The dead letters of a queue: body, reason, attempts."""
        letters = self.client().dead_letters(queue, 1000)
        return [(letter.message.body, letter.reason, letter.attempts) for letter in letters]

    def ready(self, queue: str) -> list[Message]:
        """What waits in a queue, by rank; looked at, not taken."""
        with self.broker.changed:
            ranks = self.broker.queue(queue).ready.values()
            return [entry.message for entries in ranks for entry in entries.values()]

    def crash_holders(self, queue: str = "train") -> None:
        """Free what is leased, as when every worker that holds something dies."""
        with self.broker.changed:
            held = self.broker.queue(queue)
            for entry in list(held.leased.values()):
                self.broker.give_back(held, entry)
            self.broker.changed.notify_all()

    def aged(self, attempt: int, job: dict[str, Any], queue: str = "train") -> None:
        """Queue a job whose next delivery is the given attempt."""
        self.client()
        with self.broker.changed:
            entry = _Entry(Message(encode(job)), deliveries=attempt - 1)
            self.broker.queue(queue).put(entry)
            self.broker.changed.notify_all()

    def _connected(self, phase: str, kind: str, options: dict[str, Any]) -> Any:
        module = import_module(f"synmanager.{phase}")
        options.setdefault("url", self.url)
        operator = getattr(module, f"{phase.capitalize()}{kind}Operator")(**options)
        operator.connect()
        self._closers.append(operator.disconnect)
        return operator


class FlakyBackend(MemoryBackend, NativeBackend):
    """A connection that breaks, or is refused, when a test says so.

    Attributes:
        calls: the methods that were called, in order.
        failures: for a method, what its next calls raise; None lets one through. A
            ``BrokerUnavailable`` also ends the connection.
    """

    def __init__(self, address: Address, broker: MemoryBroker) -> None:
        super().__init__(address, broker)
        self.calls: list[str] = []
        self.failures: dict[str, list[BaseException | None]] = {}

    def fail(self, method: str, *errors: BaseException | None) -> None:
        self.failures.setdefault(method, []).extend(errors)

    def break_connection(self) -> None:
        """Lose the connection without giving anything back."""
        self._open = False

    def open(self) -> None:
        self._enter("open")
        super().open()

    def declare(self, *specs: ExchangeSpec | QueueSpec) -> None:
        self._enter("declare")
        super().declare(*specs)

    def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Message], *, delay: float = 0.0
    ) -> int:
        self._enter("publish")
        return super().publish(exchange, routing_key, messages, delay=delay)

    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        self._enter("receive")
        return super().receive(queues, wait, done)

    def ack(self, delivery: Delivery) -> None:
        self._enter("ack")
        super().ack(delivery)

    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        self._enter("nack")
        super().nack(delivery, delay=delay, count=count)

    def bury(self, delivery: Delivery, reason: str, traceback: str = "") -> None:
        self._enter("bury")
        super().bury(delivery, reason, traceback)

    def renew(self, delivery: Delivery) -> None:
        self._enter("renew")
        super().renew(delivery)

    def native(self) -> tuple[Any, Any]:
        return self, self

    def adopt(
        self, queue: str, channel: Any, method: Any, properties: Any, body: bytes, *, settled: bool
    ) -> Delivery:
        """As where the client library has consumer callbacks: ``method`` is the delivery."""
        self._enter("adopt")
        assert isinstance(method, Delivery)
        method.queue, method.settled = queue, settled
        return method

    def _enter(self, method: str) -> None:
        self.calls.append(method)
        failures = self.failures.get(method)
        error = failures.pop(0) if failures else None
        if isinstance(error, BrokerUnavailable):
            self.break_connection()
        if error is not None:
            raise error


class Bench:
    """A runner on a connection that fails on demand, for the queue ``train``.

    Args:
        results: as for ``Runner``.
        lease: seconds.
        reconnect: as for ``Session``.
        policy: fields of ``Settings``, such as ``max_attempts=2``.
    """

    def __init__(
        self,
        grid: Grid,
        *,
        results: Results | None = None,
        lease: float = 60.0,
        reconnect: float | None = None,
        **policy: Any,
    ) -> None:
        self.grid = grid
        self.backend = FlakyBackend(Address("memory", lease=lease), grid.broker)
        self.session = Session(self.backend, reconnect)
        self.session.open(*(phase.spec for phase in PHASES.values()))
        self.backend.calls.clear()
        settings = Settings(self.backend.address, **policy)
        self.runner = Runner(self.session, settings, results)

    def run(self, handler: Callable[[dict[str, Any]], Any], **options: Any) -> int:
        """Run what is ready; with options, run as they say."""
        return self.run_all({"train": handler}, **options)

    def run_all(self, handlers: Mapping[str, Handler], **options: Any) -> int:
        """The same, for several queues."""
        with self.runner.shutdown() as shutdown:
            return self.runner.run(handlers, shutdown, **(options or {"burst": True}))

"""A random walk through the contract, checked at every step against a model of the queues.

Needs ``hypothesis``. Time need not pass, so it runs on any broker::

    class NatsMachine(ContractMachine):
        def make_broker(self):
            return NatsUnderTest()

    TestNatsModel = NatsMachine.TestCase
    TestNatsModel.settings = settings(max_examples=50, deadline=None, database=None)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from synmanager.backends.base import Delivery, QueueBackend, QueueSpec
from synmanager.errors import LeaseLost, Unsupported
from synmanager.message import Message, Rank
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.steps import assert_counts, make_spec

__all__ = ["ContractMachine"]

#: Seconds: longer than any walk.
FAR_AWAY = 3600.0

CLIENTS = st.integers(0, 1)
QUEUES = st.integers(0, 1)
RANKS = st.sampled_from(Rank)
NUMBERS = st.integers(0, 1_000)


@dataclass(eq=False)
class Job:
    """What the model knows of a message.

    ``anywhere``: it has been put back, and where in its rank is the broker's choice.
    """

    message: Message
    attempt: int = 1
    anywhere: bool = False


@dataclass
class Queue:
    """A queue as the contract has it."""

    spec: QueueSpec
    ready: list[Job] = field(default_factory=list)
    delayed: list[Job] = field(default_factory=list)
    dead: list[Job] = field(default_factory=list)

    def next(self) -> list[Job]:
        """Those that may be delivered next."""
        highest = max((job.message.rank for job in self.ready), default=None)
        candidates = [job for job in self.ready if job.message.rank is highest]
        in_place = [job for job in candidates if not job.anywhere]
        return [job for job in candidates if job.anywhere] + in_place[:1]

    def put_back(self, job: Job) -> None:
        job.anywhere = True
        self.ready.append(job)


@dataclass(eq=False)
class Held:
    """A delivery and who has it."""

    client: int
    delivery: Delivery
    job: Job
    queue: Queue


class ContractMachine(RuleBasedStateMachine):
    """Two clients and two queues. Subclass it with :meth:`make_broker`."""

    def make_broker(self) -> BrokerUnderTest:
        """Return a running broker; called once for each walk."""
        raise NotImplementedError

    @initialize()
    def connect(self) -> None:
        self.broker = self.make_broker()
        self.clients: list[QueueBackend] = [self.broker.connect() for _ in range(2)]
        self.features = self.clients[0].features
        first = make_spec()
        self.queues = [Queue(first), Queue(make_spec(exchange=first.exchange))]
        self.clients[0].declare(*(queue.spec for queue in self.queues))
        self.held: list[Held] = []
        self.spent: list[Held] = []  # settled
        self.stale: list[Held] = []  # lost

    def teardown(self) -> None:
        if not hasattr(self, "queues"):
            return
        for queue in self.queues:
            while self.receive(client=1, order=[queue]):
                self.settle_ack(index=len(self.held) - 1)
            self.broker.discard(queue.spec)
        self.broker.discard(self.queues[0].spec.exchange)
        self.broker.close_clients()

    @rule(client=CLIENTS, queue=QUEUES, ranks=st.lists(RANKS, max_size=4))
    def publish(self, client: int, queue: int, ranks: list[Rank]) -> None:
        spec = self.queues[queue].spec
        jobs = [Job(Message(str(rank).encode(), rank=rank)) for rank in ranks]
        batch = [job.message for job in jobs]
        self.clients[client].publish(spec.exchange.name, spec.routing_key, batch)
        self.queues[queue].ready.extend(jobs)

    @rule(client=CLIENTS, queue=QUEUES, rank=RANKS)
    def publish_delayed(self, client: int, queue: int, rank: Rank) -> None:
        spec = self.queues[queue].spec
        job = Job(Message(b"{}", rank=rank))
        self.clients[client].publish(
            spec.exchange.name, spec.routing_key, [job.message], delay=FAR_AWAY
        )
        self.queues[queue].delayed.append(job)

    @precondition(lambda self: self.features.deduplicates)
    @rule(client=CLIENTS, queue=QUEUES, index=NUMBERS, delay=st.sampled_from([0.0, FAR_AWAY]))
    def publish_again(self, client: int, queue: int, index: int, delay: float) -> None:
        present = list(self.present(self.queues[queue]))
        if present:
            spec = self.queues[queue].spec
            message = present[index % len(present)].message
            self.clients[client].publish(
                spec.exchange.name, spec.routing_key, [message], delay=delay
            )

    @rule(client=CLIENTS, both=st.booleans(), first=QUEUES)
    def take(self, client: int, both: bool, first: int) -> None:
        order = [self.queues[first], self.queues[1 - first]]
        self.receive(client, order if both else order[:1])

    @precondition(lambda self: self.held)
    @rule(index=NUMBERS, both=st.booleans(), first=QUEUES)
    def ack_and_take(self, index: int, both: bool, first: int) -> None:
        held = self.settle(index)
        order = [self.queues[first], self.queues[1 - first]]
        self.receive(held.client, order if both else order[:1], held.delivery)
        assert held.delivery.settled

    def receive(self, client: int, order: list[Queue], done: Delivery | None = None) -> bool:
        names = [queue.spec.name for queue in order]
        delivery = self.clients[client].receive(names, 0, done)
        queue = next((queue for queue in order if queue.ready), None)
        if queue is None:
            assert delivery is None
            return False
        assert delivery is not None
        assert delivery.queue == queue.spec.name
        jobs = [job for job in queue.next() if job.message.id == delivery.message.id]
        assert jobs, f"{delivery} is not one of {queue.next()}"
        (job,) = jobs
        assert delivery.attempt == job.attempt
        assert delivery.message.rank is job.message.rank
        assert delivery.message.body == job.message.body
        queue.ready.remove(job)
        self.held.append(Held(client, delivery, job, queue))
        return True

    @precondition(lambda self: self.held)
    @rule(index=NUMBERS)
    def settle_ack(self, index: int) -> None:
        held = self.settle(index)
        self.clients[held.client].ack(held.delivery)

    @precondition(lambda self: self.held)
    @rule(index=NUMBERS, count=st.booleans(), delayed=st.booleans())
    def settle_nack(self, index: int, count: bool, delayed: bool) -> None:
        held = self.settle(index)
        delay = FAR_AWAY if delayed else 0.0
        self.clients[held.client].nack(held.delivery, delay=delay, count=count)
        held.job.attempt += count
        if delayed:
            held.queue.delayed.append(held.job)
        else:
            held.queue.put_back(held.job)

    @precondition(lambda self: self.held)
    @rule(index=NUMBERS)
    def settle_bury(self, index: int) -> None:
        held = self.settle(index)
        self.clients[held.client].bury(held.delivery, f"reason {held.job.attempt}")
        held.queue.dead.append(held.job)

    def settle(self, index: int) -> Held:
        held = self.held.pop(index % len(self.held))
        self.spent.append(held)
        return held

    @precondition(lambda self: self.held)
    @rule(index=NUMBERS)
    def renew(self, index: int) -> None:
        held = self.held[index % len(self.held)]
        self.clients[held.client].renew(held.delivery)

    @precondition(lambda self: self.spent or self.stale)
    @rule(index=NUMBERS, use=st.sampled_from(["ack", "nack", "bury", "renew"]))
    def use_what_is_over(self, index: int, use: str) -> None:
        over = self.spent + self.stale
        held = over[index % len(over)]
        client = self.clients[held.client]
        arguments = (held.delivery, "too late") if use == "bury" else (held.delivery,)
        if held in self.spent:
            getattr(client, use)(*arguments)
        else:
            with pytest.raises(LeaseLost):
                getattr(client, use)(*arguments)

    @rule(client=CLIENTS)
    def close_and_open(self, client: int) -> None:
        self.clients[client].close()
        for held in [held for held in self.held if held.client == client]:
            self.held.remove(held)
            self.stale.append(held)
            held.job.attempt += 1
            held.queue.put_back(held.job)
        self.clients[client].open()

    @rule(client=CLIENTS, queue=QUEUES)
    def purge(self, client: int, queue: int) -> None:
        model = self.queues[queue]
        removed = self.clients[client].purge(model.spec.name)
        if self.features.counts_delayed:
            assert removed == len(model.ready) + len(model.delayed)
        else:
            assert removed >= len(model.ready)
        model.ready.clear()
        model.delayed.clear()

    @rule(client=CLIENTS, queue=QUEUES, index=NUMBERS)
    def delete(self, client: int, queue: int, index: int) -> None:
        model = self.queues[queue]
        present = list(self.present(model))
        target = present[index % len(present)] if present else Job(Message(b"{}"))
        if not self.features.deletes:
            with pytest.raises(Unsupported):
                self.clients[client].delete(model.spec.name, target.message.id)
            return
        deleted = self.clients[client].delete(model.spec.name, target.message.id)
        assert deleted == (target in model.ready or target in model.delayed)
        for jobs in (model.ready, model.delayed):
            if target in jobs:
                jobs.remove(target)

    @rule(client=CLIENTS, queue=QUEUES, limit=st.integers(1, 3))
    def look_at_dead_letters(self, client: int, queue: int, limit: int) -> None:
        model = self.queues[queue]
        if not self.features.shows_dead_letters:
            with pytest.raises(Unsupported):
                self.clients[client].dead_letters(model.spec.name, limit)
            return
        letters = self.clients[client].dead_letters(model.spec.name, limit)
        assert [(letter.message.id, letter.attempts, letter.reason) for letter in letters] == [
            (job.message.id, job.attempt, f"reason {job.attempt}") for job in model.dead[:limit]
        ]

    @rule(client=CLIENTS, queue=QUEUES, limit=st.integers(1, 3))
    def redrive(self, client: int, queue: int, limit: int) -> None:
        model = self.queues[queue]
        assert self.clients[client].redrive(model.spec.name, limit) == len(model.dead[:limit])
        for job in model.dead[:limit]:
            job.attempt = 1
            model.put_back(job)
        del model.dead[:limit]

    @rule(client=CLIENTS, queue=QUEUES)
    def purge_dead_letters(self, client: int, queue: int) -> None:
        model = self.queues[queue]
        assert self.clients[client].purge_dead_letters(model.spec.name) == len(model.dead)
        model.dead.clear()

    @invariant()
    def counts_agree(self) -> None:
        for queue in self.queues:
            assert_counts(
                self.clients[0],
                queue.spec,
                ready=len(queue.ready),
                leased=sum(held.queue is queue for held in self.held),
                delayed=len(queue.delayed),
                dead=len(queue.dead),
            )

    def present(self, queue: Queue) -> Iterator[Job]:
        """What is ready, delayed or leased."""
        yield from queue.ready
        yield from queue.delayed
        yield from (held.job for held in self.held if held.queue is queue)

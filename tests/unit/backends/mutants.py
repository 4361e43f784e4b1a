"""Drivers with a fault planted in each, such as an author of a driver really makes.

Each says which tests of the contract are to catch it; ``test_contract_catches.py`` sees to it that
one does. It is a test module for pytest only where that runs it.
"""

from __future__ import annotations

import json
import re
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from memory_broker import MemoryUnderTest
from sqlite_broker import SQLiteUnderTest
from sqlite_file import FAST

from synmanager.backends import Address, Counts, DeadLetter, Delivery, ExchangeSpec, QueueSpec
from synmanager.backends.memory import MemoryBackend, MemoryBroker, _Entry, _Queue
from synmanager.backends.sqlite import SQLiteBackend, rows, tables
from synmanager.errors import (
    AccessRefused,
    BrokerUnavailable,
    LeaseLost,
    NotPublished,
    PublishInterrupted,
    TopologyError,
    Unroutable,
)
from synmanager.message import Message, Rank
from synmanager.testing import BackendContract, steps

__all__ = ["MUTANTS", "Mutant"]


@dataclass(frozen=True)
class Mutant:
    """A planted fault.

    ``broker``: its owner; ``tests``: an expression for ``pytest -k``.
    """

    name: str
    broker: type[MemoryUnderTest | SQLiteUnderTest]
    tests: str


_WITH_WAITS = [
    module
    for name, module in sys.modules.items()
    if name.startswith("synmanager.testing.") and hasattr(module, "WAIT")
]

#: By the name of the class that tests it, here in this module.
MUTANTS: dict[str, Mutant] = {}


def plant(
    tests: str,
    of: type[MemoryUnderTest | SQLiteUnderTest] = MemoryUnderTest,
    *,
    soon: float | None = 0.3,
    **owner: Any,
) -> Any:
    """Make the decorated backend, or broker in memory, a mutant, which these tests must catch.

    Args:
        soon: seconds for the tests to wait, as what comes, comes at once here; None for as many
            as they always do.
    """

    def take(mutant: type) -> type:
        made = "server" if issubclass(mutant, MemoryBroker) else "backend"
        words = re.split(" or | and ", tests)
        # What blocks shall not block for long.
        under_test = type(mutant.__name__, (of,), {made: mutant, "patience": 2.0, **owner})

        class TestMutant(BackendContract):
            @pytest.fixture
            def broker(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
                if soon is not None:
                    for module in _WITH_WAITS:
                        monkeypatch.setattr(module, "WAIT", soon)
                    monkeypatch.setitem(steps.take.__kwdefaults__ or {}, "wait", soon)
                if of is MemoryUnderTest:
                    yield under_test()
                    return
                with tempfile.TemporaryDirectory(dir=FAST) as directory:
                    yield under_test(Path(directory))

        for test in dir(BackendContract):
            if test.startswith("test_") and not any(word in test for word in words):
                setattr(TestMutant, test, None)  # hundreds, which take long to collect
        name = f"Test{mutant.__name__}"
        TestMutant.__name__ = TestMutant.__qualname__ = name
        globals()[name] = TestMutant
        MUTANTS[name] = Mutant(mutant.__name__, under_test, tests)
        return mutant

    return take


def _put(client: SQLiteBackend, queue: str, message: Message) -> None:
    """Put a message into one queue."""

    def work(db: sqlite3.Connection) -> None:
        tables.insert(db, [tables.number_of(db, queue)], [message], None)

    client._current().write(work)


# Settling


@plant("acked_message_is_gone")
class AckRemovesNothing(MemoryBackend):
    def ack(self, delivery: Delivery) -> None:
        delivery.settled = True


@plant("nacked_message_comes_back")
class NackForgetsTheMessage(MemoryBackend):
    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        self.ack(delivery)


@plant("nacked_message_keeps_its_rank or nacked_message_comes_back")
class NackLosesTheRank(MemoryBackend):
    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        if not delivery.settled:
            entry, _ = delivery.receipt
            entry.message = replace(entry.message, rank=Rank.NORMAL)
        super().nack(delivery, delay=delay, count=count)


@plant("nacked_message_comes_back")
class NackGivesANewId(MemoryBackend):
    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        self.ack(delivery)
        with self._broker.changed:
            fresh = Message(delivery.message.body, rank=delivery.message.rank)
            self._broker.queue(delivery.queue).put(_Entry(fresh, delivery.attempt))


@plant("counted_nack or nacked_message_comes_back")
class NackIsNeverCounted(MemoryBackend):
    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        super().nack(delivery, delay=delay, count=False)


@plant("counted_nack or nacked_message_comes_back")
class NackIsAlwaysCounted(MemoryBackend):
    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        super().nack(delivery, delay=delay, count=True)


@plant("delayed_nack")
class NackIgnoresTheDelay(MemoryBackend):
    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        super().nack(delivery, count=count)


@plant("every_counted_nack")
class AttemptsHaveOneDigit(MemoryBackend):
    def _lease(self, queue: Any, entries: Any) -> Delivery:
        delivery = super()._lease(queue, entries)
        delivery.attempt = min(delivery.attempt, 9)
        return delivery


@plant("nack_comes_back")
class NackLaterUncountedBeginsAnew(MemoryBackend):
    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        if delay and not count:
            entry, _ = delivery.receipt
            entry.deliveries = 0
            delivery.receipt = entry, 1
        super().nack(delivery, delay=delay, count=count)


@plant("longest_delay_is_taken")
class OverflowsOnLongDelays(MemoryBackend):
    def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Message], *, delay: float = 0.0
    ) -> int:
        assert delay < 2**31
        return super().publish(exchange, routing_key, messages, delay=delay)


@plant("part_of_a_second")
class DelaysByWholeSeconds(MemoryBackend):
    def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Message], *, delay: float = 0.0
    ) -> int:
        return super().publish(exchange, routing_key, messages, delay=int(delay))

    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        super().nack(delivery, delay=int(delay), count=count)


@plant("schema_of_the_future")
class NackForgetsTheSchema(MemoryBackend):
    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        entry, _ = delivery.receipt
        entry.message = replace(entry.message, schema=1)
        super().nack(delivery, delay=delay, count=count)


@plant("settling_twice")
class SettlesWhatIsSettled(MemoryBackend):
    def ack(self, delivery: Delivery) -> None:
        delivery.settled = False
        super().ack(delivery)


@plant("two_threads_that_settle")
class LooksBeforeItLocks(MemoryBackend):
    """The second thread finds a delivery that is not settled, and puts it back again."""

    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        if delivery.settled:
            return
        time.sleep(0.01)
        with self._broker.changed:
            fresh = replace(delivery.message, id=delivery.message.id + " " * delivery.settled)
            self._broker.queue(delivery.queue).put(_Entry(fresh, delivery.attempt))
            self._broker.queue(delivery.queue).leased.pop(delivery.message.id, None)
            delivery.settled = True


@plant("nack_wakes_up", soon=None)
class NackWakesNobody(MemoryBackend):
    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        condition, silent = self._broker.changed, threading.Condition()
        self._broker.changed = silent
        try:
            super().nack(delivery, delay=delay, count=count)
        finally:
            self._broker.changed = condition


@plant("wherever_it_is_cut and nack", SQLiteUnderTest)
class NackInTwoSteps(SQLiteBackend):
    def nack(self, delivery: Delivery, *, delay: float = 0.0, count: bool = True) -> None:
        self.ack(delivery)
        _put(self, delivery.queue, delivery.message)


# Leases and attempts


@plant("crash")
class CrashesAreNotCounted(MemoryBroker):
    def give_back(self, queue: _Queue, entry: _Entry, *, count: bool = False) -> None:
        super().give_back(queue, entry, count=count)


@plant("added_up")
class CrashesAreCountedInOneDigit(MemoryBroker):
    def give_back(self, queue: _Queue, entry: _Entry, *, count: bool | None = None) -> None:
        super().give_back(queue, entry, count=entry.deliveries < 9 if count is None else count)


@plant("lease_ends_by_time")
class RenewalsAddUp(MemoryBackend):
    def renew(self, delivery: Delivery) -> None:
        with self._broker.changed:
            _, entry = self._held(self._usable("renew"), delivery)
            entry.expires += self.address.lease


@plant("each_client_has_its_own")
class RenewsForAsLongAsOthers(MemoryBackend):
    def renew(self, delivery: Delivery) -> None:
        with self._broker.changed:
            _, entry = self._held(self._usable("renew"), delivery)
            entry.expires = self._broker.clock.now() + MemoryUnderTest.lease


@plant("lease_that_is_renewed_lasts")
class RenewDoesNothing(MemoryBackend):
    def renew(self, delivery: Delivery) -> None:
        with self._broker.changed:
            if not delivery.settled:
                self._held(self._usable(), delivery)


@plant("who_lost_the_lease and renew")
class RenewNeverSaysNo(MemoryBackend):
    def renew(self, delivery: Delivery) -> None:
        try:
            super().renew(delivery)
        except LeaseLost:
            return


@plant("renewal_keeps_no_other")
class RenewKeepsAllOfTheClient(MemoryBackend):
    def renew(self, delivery: Delivery) -> None:
        super().renew(delivery)
        with self._broker.changed:
            for entry in self._broker.queue(delivery.queue).leased.values():
                entry.expires = self._broker.clock.now() + self.address.lease


@plant("who_lost_the_lease or old_receipt")
class LeasesHaveNoOwner(MemoryBackend):
    def _held(self, broker: MemoryBroker, delivery: Delivery) -> tuple[_Queue, _Entry]:
        queue = broker.queue(delivery.queue)
        entry = queue.leased.get(delivery.message.id)
        if entry is None:
            raise LeaseLost("gone")
        return queue, entry


@plant("lease_ends or job_of_a_crashed")
class LeasesLastForEver(MemoryBackend):
    def _lease(self, queue: Any, entries: Any) -> Delivery:
        delivery = super()._lease(queue, entries)
        delivery.receipt[0].expires += 1e9
        return delivery


@plant("lease_does_not_end_early or each_client_has_its_own")
class LeasesAreAsLongAsTheShortest(MemoryBackend):
    shortest: ClassVar[float] = 1e9

    def __init__(self, address: Address, broker: MemoryBroker | None = None) -> None:
        super().__init__(address, broker)
        type(self).shortest = min(self.shortest, address.lease)
        self.address = replace(address, lease=self.shortest)


@plant("no_two_hold or acked_message_is_gone or hold_several")
class DeliversTwice(MemoryBackend):
    def _lease(self, queue: Any, entries: Any) -> Delivery:
        kept = next(iter(entries.values()))
        delivery = super()._lease(queue, entries)
        entries[kept.message.id] = kept
        return delivery


@plant("close_gives_back")
class CloseKeepsWhatIsHeld(MemoryBackend):
    def close(self) -> None:
        self._open = False


@plant("close_gives_back")
class CloseLosesWhatIsHeld(MemoryBackend):
    def close(self) -> None:
        with self._broker.changed:
            self._open = False
            for queue in self._broker.queues.values():
                queue.leased.clear()


@plant("close_gives_back")
class CloseGivesBackUncounted(MemoryBackend):
    def close(self) -> None:
        with self._broker.changed:
            for queue in self._broker.queues.values():
                for entry in [e for e in queue.leased.values() if e.holder is self]:
                    self._broker.give_back(queue, entry, count=False)
        super().close()


# Publishing and routes


@plant("fanout")
class FanoutGoesToTheFirst(MemoryBroker):
    def routes(self, exchange: str, routing_key: str) -> list[_Queue]:
        return super().routes(exchange, routing_key)[:1]


@plant("unroutable")
class DropsWhatHasNoRoute(MemoryBackend):
    def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Message], *, delay: float = 0.0
    ) -> int:
        try:
            return super().publish(exchange, routing_key, messages, delay=delay)
        except Unroutable:
            return 0


@plant("messages_of_a_batch or batch_arrives or same_id or body_is_kept or concurrent_publishers")
class KnowsMessagesByTheirBody(MemoryBackend):
    def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Message], *, delay: float = 0.0
    ) -> int:
        named = [replace(m, id=str(hash(m.body))) for m in messages]
        return super().publish(exchange, routing_key, named, delay=delay)


@plant("body_is_kept or job_arrives")
class WritesTheBodyAnew(MemoryBackend):
    def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Message], *, delay: float = 0.0
    ) -> int:
        def anew(body: bytes) -> bytes:
            try:
                return json.dumps(json.loads(body)).encode()
            except ValueError:
                return body

        rewritten = [replace(message, body=anew(message.body)) for message in messages]
        return super().publish(exchange, routing_key, rewritten, delay=delay)


@plant("travels_beside_the_body or headers_arrive")
class KnowsOnlyAscii(MemoryBackend):
    def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Message], *, delay: float = 0.0
    ) -> int:
        plain = [
            replace(
                message,
                id=message.id.encode("ascii", "replace").decode(),
                headers={
                    name: text.encode("ascii", "replace").decode()
                    for name, text in message.headers.items()
                },
            )
            for message in messages
        ]
        return super().publish(exchange, routing_key, plain, delay=delay)


@plant("body_is_kept")
class ReadsTheBodyAsALine(MemoryBackend):
    def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Message], *, delay: float = 0.0
    ) -> int:
        lines = [replace(message, body=message.body.rstrip(b"\n")) for message in messages]
        return super().publish(exchange, routing_key, lines, delay=delay)


class _KnowsIdsByLess(MemoryBackend):
    def less(self, message_id: str) -> str:
        raise NotImplementedError

    def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Message], *, delay: float = 0.0
    ) -> int:
        first: dict[str, Message] = {}
        for message in messages:
            first.setdefault(self.less(message.id), message)
        return super().publish(exchange, routing_key, [*first.values()], delay=delay)


@plant("ids_that_differ")
class KnowsIdsInLowerCase(_KnowsIdsByLess):
    def less(self, message_id: str) -> str:
        return message_id.lower()


@plant("ids_that_differ")
class KnowsIdsByTheirBeginning(_KnowsIdsByLess):
    def less(self, message_id: str) -> str:
        return message_id[:128]


@plant("body_is_kept")
class DropsWhatIsEmpty(MemoryBackend):
    def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Message], *, delay: float = 0.0
    ) -> int:
        some = [message for message in messages if message.body]
        return super().publish(exchange, routing_key, some, delay=delay)


@plant("first_stays_as_it_is")
class RepeatsReplaceWhatWaits(MemoryBackend):
    def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Message], *, delay: float = 0.0
    ) -> int:
        with self._broker.changed:
            for queue in self._broker.routes(exchange, routing_key):
                for entries in queue.ready.values():
                    for message in messages:
                        if message.id in entries:
                            entries[message.id].message = message
        return super().publish(exchange, routing_key, messages, delay=delay)


@plant("travels_beside_the_body")
class ForgetsWhenItWasSubmitted(MemoryBackend):
    def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Message], *, delay: float = 0.0
    ) -> int:
        late = [replace(message, submitted_at=time.time()) for message in messages]
        return super().publish(exchange, routing_key, late, delay=delay)


@plant("batch_arrives_in_order")
class ReversesABatch(MemoryBackend):
    def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Message], *, delay: float = 0.0
    ) -> int:
        return super().publish(exchange, routing_key, messages[::-1], delay=delay)


@plant("delayed_message")
class PublishIgnoresTheDelay(MemoryBackend):
    def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Message], *, delay: float = 0.0
    ) -> int:
        return super().publish(exchange, routing_key, messages)


@plant("wherever_it_is_cut and publish", SQLiteUnderTest)
class AnInterruptedBatchIsNotInDoubt(SQLiteBackend):
    def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Message], *, delay: float = 0.0
    ) -> int:
        try:
            return super().publish(exchange, routing_key, messages, delay=delay)
        except BrokerUnavailable as error:
            raise PublishInterrupted(str(error), messages[-1:]) from error


@plant("wherever_it_is_cut and publish", SQLiteUnderTest)
class SaysQueuedWhereTheReplyIsLost(SQLiteBackend):
    def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Message], *, delay: float = 0.0
    ) -> int:
        try:
            return super().publish(exchange, routing_key, messages, delay=delay)
        except BrokerUnavailable:
            return 0


@plant("reply_was_lost_can_be", SQLiteUnderTest)
class KnowsNoReceiptOfBefore(SQLiteBackend):
    """After a lost connection it says that the job is another's, which it is not."""

    def ack(self, delivery: Delivery) -> None:
        if getattr(delivery, "failed", False):
            raise LeaseLost("it was taken on another connection")
        try:
            super().ack(delivery)
        except BrokerUnavailable:
            delivery.failed = True  # type: ignore[attr-defined]
            raise


@plant("wherever_it_is_cut and ack", SQLiteUnderTest)
class LetsTheLibrarysErrorsOut(SQLiteBackend):
    def ack(self, delivery: Delivery) -> None:
        try:
            super().ack(delivery)
        except BrokerUnavailable as error:
            raise sqlite3.OperationalError(str(error)) from None


# Ranks, and order


class _Fifo(_Queue):
    def put(self, entry: _Entry, *, head: bool = False) -> None:
        entries = self.ready[Rank.NORMAL]
        entries[entry.message.id] = entry
        if head:
            entries.move_to_end(entry.message.id, last=False)


class _LastInFirstOut(_Queue):
    def put(self, entry: _Entry, *, head: bool = False) -> None:
        super().put(entry, head=True)


class _MakesQueues(MemoryBackend):
    kind: ClassVar[type[_Queue]]

    def declare(self, *specs: ExchangeSpec | QueueSpec) -> None:
        super().declare(*specs)
        with self._broker.changed:
            for spec in specs:
                known = self._broker.queues.get(spec.name)
                if known is not None and type(known) is not self.kind:
                    self._broker.queues[spec.name] = self.kind(spec.name)


@plant("ranks_are_strict")
class RanksMeanNothing(_MakesQueues):
    kind = _Fifo


@plant("batch_arrives_in_order")
class LastInFirstOut(_MakesQueues):
    kind = _LastInFirstOut


class _ToTheTail(_Queue):
    def put(self, entry: _Entry, *, head: bool = False) -> None:
        super().put(entry, head=False)


@plant("comes_first_of_its_rank")
class NackGoesToTheTail(_MakesQueues):
    kind = _ToTheTail


@plant("wherever_it_is_cut and publish", SQLiteUnderTest)
class CallsABatchAtomicThatIsNot(SQLiteBackend):
    features = replace(SQLiteBackend.features, atomic_batches=True)

    def publish(
        self, exchange: str, routing_key: str, messages: Sequence[Message], *, delay: float = 0.0
    ) -> int:
        for number in range(len(messages)):
            try:
                super().publish(exchange, routing_key, messages[number : number + 1], delay=delay)
            except NotPublished as error:
                raise type(error)(str(error), messages[number:]) from error
        return 0


class _UpsideDown(_Queue):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.ready = dict(reversed(self.ready.items()))


@plant("ranks_are_strict")
class RanksAreUpsideDown(_MakesQueues):
    kind = _UpsideDown


@plant("first_queue_that_has_something or caller_decides")
class QueuesHaveAnOrderOfTheirOwn(MemoryBackend):
    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        return super().receive(sorted(queues), wait, done)


# Waiting


@plant("waiting_is_sleeping")
class LooksAllTheTime(MemoryBackend):
    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        end = time.monotonic() + wait
        found = super().receive(queues, 0, done)
        while found is None and time.monotonic() < end:
            time.sleep(0.0002)
            found = super().receive(queues, 0)
        return found


@plant("begins_during_a_wait")
class LearnsOfNoDelayWhileItWaits(MemoryBackend):
    """It hears of what is ready, and has slept until what was delayed when it began to wait."""

    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        found = super().receive(queues, 0, done)
        if any(self._broker.queue(name).delayed for name in queues):
            return super().receive(queues, wait)
        end = time.monotonic() + wait
        while found is None and time.monotonic() < end:
            time.sleep(0.005)
            if any(any(self._broker.queue(name).ready.values()) for name in queues):
                found = super().receive(queues, 0)
        return found


@plant("empty_queue_gives_none_in_time")
class WaitsForEver(MemoryBackend):
    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        return super().receive(queues, 1e6, done)


@plant("called_off", soon=3.0)
class IsNotCalledOff(MemoryBackend):
    def await_job(
        self,
        queues: Sequence[str],
        wait: float,
        done: Delivery | None = None,
        *,
        called_off: Callable[[], bool],
    ) -> Delivery | None:
        return self.receive(queues, wait, done)


@plant("message_wakes_up_a_waiting or wakes_up_for_a_message", soon=None)
class LooksEverySecondsOnly(MemoryBackend):
    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        found = super().receive(queues, 0, done)
        if found is None and wait:
            time.sleep(min(wait, 3.0))
            found = super().receive(queues, 0)
        return found


@plant("holds_nothing")
class TakesTheNextAlready(MemoryBackend):
    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        ahead: list[Delivery] = self.__dict__.setdefault("ahead", [])
        found = super().receive(queues, 0 if ahead else wait, done)
        if found is not None:
            following = super().receive(queues, 0)
            ahead += [following] if following is not None else []
        elif ahead:
            found = ahead.pop(0)
        return found


@plant("ack_holds_though", SQLiteUnderTest)
class AckAndLookInOneTransaction(SQLiteBackend):
    """Which is rolled back if there is no queue to look into."""

    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        self._current().read(lambda db: [tables.number_of(db, queue) for queue in queues])
        return super().receive(queues, wait, done)


# Dead letters

_BURY = (
    f"INSERT INTO dead (queue, {rows.COLUMNS}, reason, traceback, attempts, died_at) "
    f"VALUES ({', '.join('?' * 12)})"
)


@plant("wherever_it_is_cut and bury", SQLiteUnderTest)
class BuryInTwoSteps(SQLiteBackend):
    def bury(self, delivery: Delivery, reason: str, traceback: str = "") -> None:
        queue = self._current().read(lambda db: tables.number_of(db, delivery.queue))
        self.ack(delivery)
        letter = (queue, *rows.write(delivery.message), reason, traceback, 1, time.time())
        self._current().write(lambda db: db.execute(_BURY, letter))


@plant("kept_with_its_reason or traceback_is_kept")
class BuryForgetsWhy(MemoryBackend):
    def bury(self, delivery: Delivery, reason: str, traceback: str = "") -> None:
        super().bury(delivery, "failed")


@plant("looking_shows_the_oldest")
class LookingTakesThemOut(MemoryBackend):
    def dead_letters(self, queue: str, limit: int) -> list[DeadLetter]:
        found = super().dead_letters(queue, limit)
        with self._broker.changed:
            del self._broker.queue(queue).dead[:limit]
        return found


@plant("headers_are_kept")
class RedriveLosesTheHeaders(MemoryBackend):
    def redrive(self, queue: str, limit: int) -> int:
        with self._broker.changed:
            dead = self._broker.queue(queue).dead
            dead[:] = [replace(d, message=replace(d.message, headers={})) for d in dead]
        return super().redrive(queue, limit)


@plant("redriven_message_starts_anew")
class RedriveGoesOnCounting(MemoryBackend):
    def redrive(self, queue: str, limit: int) -> int:
        with self._broker.changed:
            attempts = {d.message.id: d.attempts for d in self._broker.queue(queue).dead}
            moved = super().redrive(queue, limit)
            for entries in self._broker.queue(queue).ready.values():
                for entry in entries.values():
                    entry.deliveries = attempts.get(entry.message.id, 0)
        return moved


@plant("none_is_doubled")
class RedriveLooksOnlyBefore(MemoryBackend):
    """Of two letters of one id, the second takes the place of the first."""

    def redrive(self, queue: str, limit: int) -> int:
        with self._broker.changed:
            found = self._broker.queue(queue)
            letters = [each for each in found.dead[:limit] if not found.holds(each.message.id)]
            for letter in letters:
                found.put(_Entry(letter.message))
                found.dead.remove(letter)
            self._broker.changed.notify_all()
        return len(letters)


@plant("redrive_puts_back_the_oldest")
class RedriveTakesTheNewest(MemoryBackend):
    def redrive(self, queue: str, limit: int) -> int:
        with self._broker.changed:
            self._broker.queue(queue).dead.reverse()
        return super().redrive(queue, limit)


@plant("wherever_it_is_cut and redrive", SQLiteUnderTest)
class RedriveRemovesFirst(SQLiteBackend):
    def redrive(self, queue: str, limit: int) -> int:
        letters = self.dead_letters(queue, limit)
        self.purge_dead_letters(queue)
        for letter in letters:
            _put(self, queue, letter.message)
        return len(letters)


# Counting and removing


@plant("counts_follow")
class CountsWhatIsLeasedAsReady(MemoryBackend):
    def count(self, queue: str) -> Counts:
        counts = super().count(queue)
        return replace(counts, ready=counts.ready + (counts.leased or 0))


@plant("due_is_counted_as_ready")
class CountsWhatIsDueAsDelayed(MemoryBackend):
    def count(self, queue: str) -> Counts:
        with self._broker.changed:
            found = self._broker.queue(queue)
            ready = sum(map(len, found.ready.values()))
            return Counts(ready, len(found.leased), len(found.delayed), len(found.dead))


@plant("purge_leaves")
class PurgeTakesWhatIsLeased(MemoryBackend):
    def purge(self, queue: str) -> int:
        with self._broker.changed:
            self._usable().queue(queue).leased.clear()
        return super().purge(queue)


@plant("purge_removes")
class PurgeLeavesWhatIsDelayed(MemoryBackend):
    def purge(self, queue: str) -> int:
        with self._broker.changed:
            found = self._usable().queue(queue)
            kept, due = dict(found.delayed), list(found.due)
            removed = super().purge(queue)
            found.delayed.update(kept)
            found.due.extend(due)
        return removed


@plant("delete_leaves")
class DeleteTakesWhatHasBegun(MemoryBackend):
    def delete(self, queue: str, message_id: str) -> bool:
        with self._broker.changed:
            begun = self._usable().queue(queue).leased.pop(message_id, None)
        return begun is not None or super().delete(queue, message_id)


@plant("same_id_elsewhere")
class DeleteLooksEverywhere(MemoryBackend):
    def delete(self, queue: str, message_id: str) -> bool:
        found = super().delete(queue, message_id)
        for each in self._broker.queues:
            super().delete(each, message_id)
        return found


@plant("same_id_elsewhere")
class DeleteTakesTheDeadLetterToo(MemoryBackend):
    def delete(self, queue: str, message_id: str) -> bool:
        self.purge_letters(queue, [message_id])
        return super().delete(queue, message_id)


@plant("purging_dead_letters_leaves")
class PurgeTakesAllDeadLetters(MemoryBackend):
    def purge_dead_letters(self, queue: str) -> int:
        removed = super().purge_dead_letters(queue)
        for each in self._broker.queues.values():
            each.dead.clear()
        return removed


@plant("purging_the_queue_leaves_the_dead")
class PurgeTakesTheDeadLetters(MemoryBackend):
    def purge(self, queue: str) -> int:
        removed = super().purge(queue)
        self.purge_dead_letters(queue)
        return removed


# Removing a queue


@plant("removed_queue_is_gone")
class UndeclareOnlyPurges(MemoryBackend):
    def undeclare(self, spec: QueueSpec) -> None:
        self.purge(spec.name)


@plant("removed_queue_begins_empty")
class UndeclareKeepsTheDead(MemoryBackend):
    def undeclare(self, spec: QueueSpec) -> None:
        with self._broker.changed:
            dead = self._broker.queue(spec.name).dead
            super().undeclare(spec)
            self._broker.letters = dead  # type: ignore[attr-defined]

    def declare(self, *specs: ExchangeSpec | QueueSpec) -> None:
        super().declare(*specs)
        with self._broker.changed:
            for queue in self._broker.queues.values():
                queue.dead += self._broker.__dict__.pop("letters", [])


@plant("settles_nothing_of_its_successor")
class AckFindsJobsByTheirIds(MemoryBackend):
    def ack(self, delivery: Delivery) -> None:
        with self._broker.changed:
            for entries in self._broker.queue(delivery.queue).ready.values():
                entries.pop(delivery.message.id, None)
        super().ack(delivery)


@plant("other_queues_of_its_exchange")
class UndeclareEmptiesTheExchange(MemoryBackend):
    def undeclare(self, spec: QueueSpec) -> None:
        with self._broker.changed:
            for (exchange, _), names in self._broker.bindings.items():
                for name in names if exchange == spec.exchange.name else ():
                    self._broker.queues.pop(name, None)


@plant("no_key_of_before")
class UndeclareKeepsTheBinding(MemoryBackend):
    """A binding without its queue routes nothing, until there is one of its name again."""

    def undeclare(self, spec: QueueSpec) -> None:
        bindings = {place: [*names] for place, names in self._broker.bindings.items()}
        super().undeclare(spec)
        self._broker.bindings.update(bindings)


@plant("may_not_have_been_there")
class UndeclareNeedsAQueue(MemoryBackend):
    def undeclare(self, spec: QueueSpec) -> None:
        self.count(spec.name)
        super().undeclare(spec)


@plant("cut_off_may_be_repeated", SQLiteUnderTest)
class UndeclareForgetsTheLettersOfWhatIsGone(SQLiteBackend):
    def undeclare(self, spec: QueueSpec) -> None:
        def work(db: sqlite3.Connection) -> tuple[int] | None:
            row: tuple[int] | None = db.execute(
                "SELECT queue FROM queues WHERE name = ?", (spec.name,)
            ).fetchone()
            for table in ("bindings", "ready", "delayed", "leased", "jobs", "queues") * bool(row):
                db.execute(f"DELETE FROM {table} WHERE queue = ?", row or ())
            return row

        row = self._current().write(work)
        if row is not None:
            self._current().write(lambda db: db.execute("DELETE FROM dead WHERE queue = ?", row))


# Topology, and the life of a client


@plant("queue_that_does_not_exist")
class MakesMissingQueues(MemoryBackend):
    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        with self._broker.changed:
            for name in queues:
                self._usable().queues.setdefault(name, _Queue(name))
        return super().receive(queues, wait, done)


class _KnowsQueuesByLess(MemoryBackend):
    def less(self, name: str) -> str:
        raise NotImplementedError

    def declare(self, *specs: ExchangeSpec | QueueSpec) -> None:
        super().declare(
            *(
                replace(spec, name=self.less(spec.name)) if isinstance(spec, QueueSpec) else spec
                for spec in specs
            )
        )

    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        found = super().receive([self.less(name) for name in queues], wait, done)
        if found is not None:
            found.queue = next(name for name in queues if self.less(name) == found.queue)
        return found


@plant("names_that_differ")
class KnowsQueuesInLowerCase(_KnowsQueuesByLess):
    def less(self, name: str) -> str:
        return name.lower()


@plant("names_that_differ")
class KnowsQueuesByTheirBeginning(_KnowsQueuesByLess):
    def less(self, name: str) -> str:
        return name[:64]


@plant("names_that_differ")
class KnowsQueuesAsFiles(_KnowsQueuesByLess):
    def less(self, name: str) -> str:
        return name.replace("/", "_")


@plant("after_a_mistake")
class DeclaresOnlyOnce(MemoryBackend):
    def declare(self, *specs: ExchangeSpec | QueueSpec) -> None:
        known = self.__dict__.setdefault("known", set())
        super().declare(*(spec for spec in specs if spec not in known))
        known.update(specs)


@plant("another_key_hears_both")
class DeclareMovesTheBinding(MemoryBackend):
    def declare(self, *specs: ExchangeSpec | QueueSpec) -> None:
        for spec in specs:
            for names in self._broker.bindings.values():
                if isinstance(spec, QueueSpec) and spec.name in names:
                    names.remove(spec.name)
        super().declare(*specs)


@plant("exchange_of_another_type")
class TakesAnyExchange(MemoryBackend):
    def declare(self, *specs: ExchangeSpec | QueueSpec) -> None:
        for spec in specs:
            try:
                super().declare(spec)
            except TopologyError:
                continue


@plant("option_that_nobody_knows")
class TakesAnyOption(MemoryBackend):
    def __init__(self, address: Address, broker: MemoryBroker | None = None) -> None:
        super().__init__(replace(address, options={}), broker)


@plant("never_opened or closed_client_refuses")
class WorksWithoutBeingOpened(MemoryBackend):
    def _usable(self, operation: str = "") -> MemoryBroker:
        return self._broker


@plant("open_and_close_are_idempotent")
class OpenStartsAnew(MemoryBackend):
    def open(self) -> None:
        self.close()
        super().open()


@plant("own_signal_handler", SQLiteUnderTest)
class TakesTheCallersErrorsForTheBrokers(SQLiteBackend):
    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        try:
            return super().receive(queues, wait, done)
        except OSError as error:
            raise BrokerUnavailable(str(error)) from None


@plant("close_ends_a_waiting_receive")
class CloseWaitsForTheOthers(MemoryBackend):
    def close(self) -> None:
        for _ in range(50):
            if self.__dict__.get("receiving"):
                time.sleep(0.1)
        super().close()

    def receive(
        self, queues: Sequence[str], wait: float, done: Delivery | None = None
    ) -> Delivery | None:
        self.__dict__["receiving"] = True
        found = super().receive(queues, wait, done)
        self.__dict__["receiving"] = False
        return found


@plant("frozen_broker", SQLiteUnderTest)
class ItsTimeoutIsItsOwn(SQLiteBackend):
    def __init__(self, address: Address, *arguments: Any) -> None:
        super().__init__(replace(address, timeout=30.0), *arguments)


@plant("outlives_the_broker", SQLiteUnderTest)
class ForgetsDelaysOverARestart(SQLiteBackend):
    def open(self) -> None:
        was_open = self.is_open
        super().open()
        if not was_open:
            self._current().write(lambda db: db.execute("UPDATE delayed SET due = 0"))


@plant("outlives_the_broker", SQLiteUnderTest)
class ForgetsAttemptsOverARestart(SQLiteBackend):
    def open(self) -> None:
        was_open = self.is_open
        super().open()
        if not was_open:
            self._current().write(lambda db: db.execute("UPDATE ready SET deliveries = 0"))


@plant("outlives_the_broker", SQLiteUnderTest)
class FreesEverythingOnARestart(SQLiteBackend):
    """As if nobody could have begun with what was leased."""

    def open(self) -> None:
        was_open = self.is_open
        super().open()
        if not was_open:
            self._current().write(lambda db: tables.give_back(db, "1", (), counts=False))


# Secrets


def _refused(self: object, password: str) -> dict[str, Any]:
    return {"username": "nobody", "password": password}


class _Refusing(MemoryBackend):
    def open(self) -> None:
        if self.address.password:
            raise AccessRefused("login refused")
        super().open()


@plant("who_is_refused", refused=_refused)
class TellsThePassword(_Refusing):
    def open(self) -> None:
        if self.address.password:
            raise AccessRefused(f"login refused: {self.address.username}:{self.address.password}")
        super().open()


@plant("who_is_refused", refused=_refused)
class TellsThePasswordInTheCause(_Refusing):
    def open(self) -> None:
        try:
            super().open()
        except AccessRefused:
            raise AccessRefused("login refused") from ValueError(vars(self.address))


@plant("who_is_refused", refused=_refused)
class ShowsThePassword(_Refusing):
    def __repr__(self) -> str:
        return f"<backend {vars(self.address)}>"


@plant("who_is_refused", refused=_refused)
class IsUnavailableWhereItIsRefused(_Refusing):
    def open(self) -> None:
        try:
            super().open()
        except AccessRefused as error:
            raise BrokerUnavailable("cannot connect") from error


@plant("who_is_refused", refused=_refused)
class IsOpenThoughRefused(_Refusing):
    def open(self) -> None:
        self._open = True
        super().open()

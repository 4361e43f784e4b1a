"""A broker that does not answer, calls that end all the same, and waiting that costs nothing."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

import pytest

from synmanager.backends.base import Delivery, QueueBackend, QueueSpec
from synmanager.errors import BrokerUnavailable, LeaseLost
from synmanager.testing.broker import BrokerUnderTest
from synmanager.testing.steps import (
    WAIT,
    assert_counts,
    drain,
    make_message,
    make_spec,
    needs_return,
    publish,
    reopen,
    take,
)
from synmanager.testing.topic import Declare, Topic
from synmanager.testing.watchdog import in_thread

__all__ = ["Silence"]

#: Seconds by which a bound may be missed on a busy machine.
SLACK = 5.0

#: How often a second a thread may look for itself whether something has come; and ask the broker.
LOOKS, QUESTIONS = 100, 10

CALLS: dict[str, Callable[[QueueBackend, QueueSpec, Delivery], object]] = {
    "declare": lambda client, spec, held: client.declare(make_spec()),
    "publish": lambda client, spec, held: publish(client, spec),
    "publish later": lambda client, spec, held: publish(client, spec, delay=3600),
    "receive": lambda client, spec, held: client.receive([spec.name], 0),
    "receive and wait": lambda client, spec, held: client.receive([spec.name], 0.5),
    "receive and ack": lambda client, spec, held: client.receive([spec.name], 0, held),
    "ack": lambda client, spec, held: client.ack(held),
    "nack": lambda client, spec, held: client.nack(held),
    "bury": lambda client, spec, held: client.bury(held, "a reason"),
    "renew": lambda client, spec, held: client.renew(held),
    "count": lambda client, spec, held: client.count(spec.name),
    "purge": lambda client, spec, held: client.purge(make_spec().name),
    "dead_letters": lambda client, spec, held: client.dead_letters(spec.name, 1),
    "redrive": lambda client, spec, held: client.redrive(spec.name, 1),
    "purge_dead_letters": lambda client, spec, held: client.purge_dead_letters(spec.name),
}

#: Who returns from these has had the broker's word.
MUST_FAIL = {"declare", "publish", "publish later", "purge", "redrive"}


def elapsed(work: Callable[[], object]) -> tuple[float, BaseException | None]:
    """How long something takes, and how it ends."""
    begin = time.monotonic()
    try:
        work()
    except Exception as error:
        return time.monotonic() - begin, error
    return time.monotonic() - begin, None


def wakeups() -> int:
    """How often the threads of this process have gone to sleep so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nvcsw


def spent(call: Callable[[], object]) -> tuple[int, float]:
    """How often this process has gone to sleep, and seconds that it has worked, during a call."""
    before, worked = wakeups(), time.process_time()
    assert call() is None
    return wakeups() - before, time.process_time() - worked


class Silence(Topic):
    @pytest.fixture
    def held(
        self, broker: BrokerUnderTest, spec: QueueSpec
    ) -> dict[str, tuple[QueueBackend, Delivery]]:
        """For each call a client of its own, which holds a job and is impatient."""
        holders: dict[str, tuple[QueueBackend, Delivery]] = {}
        for call in CALLS:
            client = broker.connect(wired=True, timeout=broker.timeout)
            publish(client, spec, make_message(call))
            holders[call] = client, take(client, spec)
        return holders

    def test_every_call_to_a_frozen_broker_ends_in_time_and_nothing_is_lost(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        spec: QueueSpec,
        held: dict[str, tuple[QueueBackend, Delivery]],
    ) -> None:
        broker.freeze()
        calls = {
            call: in_thread(elapsed, lambda work=CALLS[call], of=of: work(of[0], spec, of[1]))
            for call, of in held.items()
        }
        ends = {call: future.result(broker.patience) for call, future in calls.items()}
        closes = {call: in_thread(elapsed, of[0].close) for call, of in held.items()}
        closed = {call: future.result(broker.patience) for call, future in closes.items()}
        broker.thaw()
        # SLACK is for what comes besides: here fifteen of them are in each other's way.
        assert [c for c, (took, _) in ends.items() if took > broker.timeout + SLACK] == []
        assert [c for c, (took, _) in closed.items() if took > 2 * broker.timeout + SLACK] == []
        wrong = {
            call: error
            for call, (_, error) in ends.items()
            if not isinstance(error, BrokerUnavailable) and (error or call in MUST_FAIL)
        }
        assert wrong == {}
        assert [error for _, error in closed.values() if error is not None] == []

    def test_open_ends_in_time_where_nobody_answers(
        self, broker: BrokerUnderTest, client: QueueBackend
    ) -> None:
        late = broker.make(wired=True, timeout=broker.timeout)
        broker.freeze()
        took, error = elapsed(late.open)
        broker.thaw()
        # A file can be opened while another process stands still in it.
        assert error is None or isinstance(error, BrokerUnavailable)
        assert took < broker.timeout + SLACK
        assert late.is_open is (error is None)
        late.open()
        assert late.is_open

    def test_after_the_thaw_a_client_works_again(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        frozen = broker.connect(wired=True, timeout=broker.timeout)
        broker.freeze()
        with pytest.raises(BrokerUnavailable):
            publish(frozen, spec, make_message("in doubt"))
        broker.thaw()
        reopen(frozen, spec)
        (sent,) = publish(frozen, spec, make_message("certain"))
        arrived = {delivery.message.id for delivery in drain(broker, frozen, spec)}
        assert sent.id in arrived
        assert len(arrived) <= 2

    @needs_return
    def test_a_broker_that_stood_still_does_not_hand_out_a_living_workers_job(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        worker, other = (broker.connect(lease=broker.lease) for _ in range(2))
        publish(client, spec)
        delivery = take(worker, spec)
        renewed: list[float] = []
        over: list[bool] = []

        def keep() -> None:
            while not over:
                try:
                    worker.renew(delivery)
                    renewed.append(time.monotonic())
                except BrokerUnavailable:
                    worker.open()
                time.sleep(broker.lease / 5)

        keeping = in_thread(keep)
        try:
            waiting = in_thread(other.receive, [spec.name], 4 * broker.lease)
            broker.freeze_server(2 * broker.lease)
            assert waiting.result(WAIT + 4 * broker.lease) is None
        finally:  # it would open again what the next test believes to be closed
            over.append(True)
            keeping.result(WAIT)
        assert renewed
        worker.ack(delivery)
        assert_counts(client, spec)

    @pytest.mark.parametrize("queues", [1, 3])
    @pytest.mark.parametrize("beside", ["nothing", "what is not ready"])
    def test_waiting_is_sleeping(
        self,
        broker: BrokerUnderTest,
        client: QueueBackend,
        declare: Declare,
        queues: int,
        beside: str,
    ) -> None:
        specs = [declare() for _ in range(queues)]
        if beside != "nothing":
            for spec in specs:
                publish(client, spec)
                take(client, spec)
                publish(client, spec, delay=3600)
        seconds = 0.5
        names = [spec.name for spec in specs]
        # What other threads of this process do, which earlier tests may have left behind.
        others, others_worked = spent(lambda: time.sleep(seconds / 2))
        looked, worked = spent(lambda: client.receive(names, seconds))
        most = (LOOKS + LOOKS * queues) * seconds
        assert looked <= most + 4 * others, "it looks all the time"
        assert worked < seconds / 5 + 4 * others_worked, "it keeps the processor busy"

    @pytest.mark.parametrize("beside", ["nothing", "what is not ready"])
    def test_waiting_asks_the_broker_seldom(
        self, broker: BrokerUnderTest, client: QueueBackend, declare: Declare, beside: str
    ) -> None:
        specs = [declare(), declare()]
        worker = broker.connect(wired=True)
        if beside != "nothing":
            for spec in specs:
                publish(client, spec)
                take(worker, spec)
                publish(client, spec, delay=3600)
        names = [spec.name for spec in specs]
        worker.receive(names, 0.01)  # the first is more than waiting
        seconds = 1.0
        before = broker.requests(worker)
        assert worker.receive(names, seconds) is None
        assert broker.requests(worker) - before <= QUESTIONS * len(specs) * seconds

    def test_a_lost_lease_while_nobody_answered_is_told(
        self, broker: BrokerUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        """And not forgotten: a call that ended without an answer settles nothing by itself."""
        worker = broker.connect(wired=True, lease=broker.lease, timeout=broker.timeout)
        publish(client, spec)
        delivery = take(worker, spec)
        broker.freeze()
        _, error = elapsed(lambda: worker.bury(delivery, "a reason"))
        broker.thaw()
        assert error is None or isinstance(error, BrokerUnavailable)
        if error is None:
            return
        assert not delivery.settled
        reopen(worker, spec)
        _, error = elapsed(lambda: worker.ack(delivery))
        assert error is None or isinstance(error, LeaseLost)

"""What makes it fast, as counts: what goes over the wire for a job, and what is not done at all.

Times depend on the machine and are the benchmark's business; these must not grow unnoticed. They
are upper bounds, so that whoever needs less may do with less.
"""

from __future__ import annotations

import logging
import resource
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
import redis
from exchange import fresh_queues
from pika.amqp_object import AMQPObject
from threads import in_thread, until
from wire import Wire

from synmanager import Retry, Worker
from synmanager.backends.base import Delivery
from synmanager.backends.rabbitmq.journal import stream
from synmanager.backends.registry import create_backend
from synmanager.evaluate import EvaluateProducerOperator
from synmanager.job import Job
from synmanager.journal import marks
from synmanager.journal.events import EVENTS, MARKS
from synmanager.message import Message
from synmanager.phases import WORK_PHASES
from synmanager.preprocess import PreprocessConsumerOperator, PreprocessProducerOperator
from synmanager.settings import parse_url
from synmanager.train import TrainProducerOperator

JOBS = 200
BATCH = 2000

#: What a loop may send besides, however many jobs it runs: at its beginning and at its end.
ONCE = 10

#: What connecting and declaring may take, once for a connection: for each queue also that of its
#: dead letters, and one that keeps its delayed jobs from those of others.
CONNECTING = 80

#: Seconds of doing nothing, and what a queue may cost the broker in each. On Redis that is two
#: commands each time: a client that is new looks after 0, 0.05, 0.1, 0.2, 0.4, 0.8 and 1 s.
IDLE = 2
AT_REST = 7

#: What the journal may cost the broker in a second, whatever happens in it, beside one entry for
#: each hundred events; and what it may at the beginning and the end of a connection.
JOURNAL = 30
JOURNAL_ONCE = 40

#: What a thread takes once, to write and read it beside the jobs: channels, or connections. A
#: reader's first word says not yet that it is one.
BESIDE = Counter({"channel.open": 3, "confirm.select": 3, "basic.qos": 3, "client": 6})


def nothing(run: int) -> None:
    pass


class Counts:
    """What holds on every broker; ``spent`` is what clients have sent, by method or command."""

    @pytest.fixture
    def wire(self, url: str) -> Iterator[Wire]:
        backend = create_backend(parse_url(url))
        backend.open()
        for log in (EVENTS, MARKS):  # which who comes first would make, by ways of its own
            backend.record(log, [b"{}"])
        backend.close()
        self.wait_for_logs(url)
        with Wire(url) as wire:
            yield wire

    def wait_for_logs(self, url: str) -> None:
        """Until the broker tells everybody that there is something in them."""

    @pytest.fixture
    def producer(self, wire: Wire) -> Iterator[PreprocessProducerOperator]:
        with PreprocessProducerOperator(url=wire.url) as made:
            yield made

    @pytest.fixture
    def consumer(
        self, wire: Wire, producer: PreprocessProducerOperator
    ) -> Iterator[PreprocessConsumerOperator]:
        with PreprocessConsumerOperator(url=wire.url) as made:
            made.purge()
            producer.process(run=0)  # whatever is prepared once is now prepared
            made.poll_message(nothing)
            made.poll_message(nothing)  # and what was kept to be sent with the next has been sent
            yield made
            made.purge()

    def spent(self, wire: Wire, work: Callable[[], object]) -> Counter[str]:
        before, journal, begun = wire.sent.copy(), wire.journal.copy(), time.monotonic()
        work()
        told = wire.journal - journal
        assert told.total() <= JOURNAL_ONCE + JOURNAL * (time.monotonic() - begun), told
        return wire.sent - before - BESIDE

    def test_polling_an_empty_queue(self, wire: Wire, consumer: PreprocessConsumerOperator) -> None:
        def work() -> None:
            for _ in range(JOBS):
                assert consumer.poll_message(nothing) is None

        assert self.spent(wire, work).total() <= JOBS

    def test_listening_to_nothing(self, wire: Wire, consumer: PreprocessConsumerOperator) -> None:
        spent, journal = Counter[str](), Counter[str]()
        stop = threading.Event()

        def look() -> None:
            """Look at the middle of it: that it begins, and that it ends, is told."""
            told = None
            while told != wire.journal:
                told = wire.journal.copy()
                assert not stop.wait(IDLE)
            before, journal_before = wire.sent.copy(), wire.journal.copy()
            stop.wait(IDLE)
            spent.update(wire.sent - before)
            journal.update(wire.journal - journal_before)
            consumer.stop()

        join = in_thread(look)
        try:
            consumer.listen_message(nothing)
        finally:
            stop.set()
            join()
        assert spent.total() <= AT_REST * IDLE, spent
        assert journal == Counter()

    def test_an_idle_worker(self, wire: Wire, consumer: PreprocessConsumerOperator) -> None:
        handlers = dict.fromkeys(WORK_PHASES, nothing)
        worker = Worker(handlers, url=wire.url)
        spent = self.spent(wire, lambda: worker.run(idle_timeout=IDLE))
        assert spent.total() <= CONNECTING + AT_REST * IDLE * len(handlers), spent

    def test_no_thread_switch_for_each_job_of_a_batch(
        self, url: str, consumer: PreprocessConsumerOperator
    ) -> None:
        """A thread that hands on a message, or waits for its confirmation, gives up its turn."""
        if not hasattr(resource, "RUSAGE_THREAD"):
            pytest.skip("this system does not count the switches of a thread")
        jobs = [{"run": run} for run in range(BATCH)]
        with PreprocessProducerOperator(url=url) as producer:  # past the proxy, which has threads
            producer.submit_many(jobs)
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
            producer.submit_many(jobs)
            switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before
        assert switches < BATCH / 10

    def test_nothing_is_written_for_a_log_that_nobody_keeps(
        self,
        producer: PreprocessProducerOperator,
        consumer: PreprocessConsumerOperator,
        wire: Wire,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Neither a record nor a representation of a message, a delivery, a frame."""
        monkeypatch.setattr(marks, "PATIENCE", 10.0)  # looks that take longer are warned of
        made: Counter[str] = Counter()

        def counted(owner: type, name: str) -> None:
            original = getattr(owner, name)

            def count(self: Any, *args: Any, **kwargs: Any) -> Any:
                made[f"{owner.__name__}.{name}"] += 1
                return original(self, *args, **kwargs)

            monkeypatch.setattr(owner, name, count)

        caplog.set_level(logging.WARNING)
        counted(logging.Logger, "makeRecord")
        for kind in (Message, Delivery, Job, AMQPObject):
            counted(kind, "__repr__")
        for run in range(JOBS):
            producer.process(run=run)
        producer.submit_many([{"run": run} for run in range(JOBS)])
        assert consumer.listen_message(nothing, max_jobs=JOBS) == JOBS
        worker = Worker({"preprocess": lambda run: {"run": run}}, url=wire.url)
        assert worker.run(burst=True) == JOBS
        assert made == Counter()

        logging.getLogger("planted").warning("%r", Message(b""))  # and it would have been seen
        assert set(made) == {"Logger.makeRecord", "Message.__repr__"}


class TestRabbitMQ(Counts):
    @pytest.fixture
    def url(self, amqp_url: str) -> Iterator[str]:
        with fresh_queues(amqp_url, "this project"):
            yield amqp_url

    def wait_for_logs(self, url: str) -> None:
        """Before 4.0 it takes seconds, and a log of which nothing is known is met elsewhere."""
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            channel = connection.channel()

            def is_told(log: str) -> bool:
                return bool(channel.queue_declare(stream(log), passive=True).method.message_count)

            until(lambda: is_told(EVENTS) and is_told(MARKS), "it counts what is in the logs")

    def test_process(
        self,
        wire: Wire,
        producer: PreprocessProducerOperator,
        consumer: PreprocessConsumerOperator,
    ) -> None:
        def work() -> None:
            for run in range(JOBS):
                producer.process(run=run)

        assert self.spent(wire, work) == {"basic.publish": JOBS}

    def test_a_delayed_job(
        self,
        wire: Wire,
        producer: PreprocessProducerOperator,
        consumer: PreprocessConsumerOperator,
    ) -> None:
        producer.submit({"run": 0}, delay=0.1)  # which builds what they wait in, if need be

        def work() -> None:
            for run in range(JOBS):
                producer.submit({"run": run}, delay=0.1)

        assert self.spent(wire, work) == {"basic.publish": JOBS}
        # They must not come to the next test, nor find no queue.
        until(lambda: consumer.check_message_count() == JOBS + 1, "all are due")

    def test_a_batch_is_on_its_way_before_the_first_is_confirmed(
        self,
        wire: Wire,
        producer: PreprocessProducerOperator,
        consumer: PreprocessConsumerOperator,
    ) -> None:
        before = wire.sent.copy()
        wire.hold_replies()
        try:
            join = in_thread(producer.submit_many, [{"run": run} for run in range(BATCH)])
            wire.wait_until_sent("basic.publish", before["basic.publish"] + BATCH)
        finally:
            wire.release_replies()
        assert len(set(join())) == BATCH
        assert wire.sent - before - BESIDE == {"basic.publish": BATCH}
        assert consumer.check_message_count() == BATCH

    def test_listening(
        self,
        wire: Wire,
        producer: PreprocessProducerOperator,
        consumer: PreprocessConsumerOperator,
    ) -> None:
        producer.submit_many([{"run": run} for run in range(JOBS)])
        received = wire.received.copy()
        spent = self.spent(wire, lambda: consumer.listen_message(nothing, max_jobs=JOBS))
        came = wire.received - received
        assert came["basic.get-ok"] + came["basic.deliver"] == JOBS  # none that is not run
        # Each comes for the acknowledgement of the last: nobody asks, consumes and cancels.
        assert spent.pop("basic.ack") <= JOBS
        assert spent.total() <= ONCE, spent

    def test_a_worker(
        self,
        wire: Wire,
        consumer: PreprocessConsumerOperator,
    ) -> None:
        """The first phase is asked, and that which has something; on one trip with the first,
        those between them."""
        asked = {PreprocessProducerOperator: 1, TrainProducerOperator: 2}
        asked[EvaluateProducerOperator] = 2
        for kind in asked:
            with kind(url=wire.url) as producer:
                producer.submit_many([{"run": run} for run in range(JOBS)])
        handlers = dict.fromkeys(WORK_PHASES, lambda run: {"run": run})
        worker = Worker(handlers, url=wire.url)
        spent = self.spent(wire, lambda: worker.run(burst=True))
        jobs = JOBS * len(asked)
        assert spent.pop("basic.publish") == jobs  # the results
        assert spent.pop("basic.ack") <= jobs
        assert spent.pop("basic.get") <= JOBS * sum(asked.values()) + ONCE
        assert spent.total() <= JOBS + CONNECTING, spent  # evaluate's jobs: is train still empty?

    def test_an_idle_worker_costs_nothing(
        self, wire: Wire, producer: PreprocessProducerOperator, consumer: PreprocessConsumerOperator
    ) -> None:
        """It consumes, and says no more until a job comes or it is told to end."""
        ran: list[int] = []
        handlers = dict.fromkeys(WORK_PHASES, lambda run: ran.append(run))
        worker = Worker(handlers, url=wire.url)
        before = wire.sent["basic.consume"]
        join = in_thread(worker.run)
        try:
            # Once more when it finds that it is idle.
            wire.wait_until_sent("basic.consume", before + 2 * len(WORK_PHASES))
            assert self.spent(wire, lambda: time.sleep(IDLE)) == Counter()
            producer.process(run=1)
            until(lambda: ran == [1], "the job has run")
        finally:
            worker.stop()
            began = time.monotonic()
            assert join() == 1
        assert time.monotonic() - began < 20  # of the minute for which it would wait

    def test_a_running_job_costs_nothing(
        self,
        wire: Wire,
        producer: PreprocessProducerOperator,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        with PreprocessConsumerOperator(url=wire.url, lease=0.3) as consumer:
            producer.process(run=0)

            def look(run: int) -> Counter[str]:
                return self.spent(wire, lambda: time.sleep(1.0))

            assert consumer.poll_message(look) == Counter()


class TestRedis(Counts):
    @pytest.fixture
    def url(self, redis_url: str) -> Iterator[str]:
        yield f"{redis_url}?prefix=test-round-trips"
        with redis.Redis.from_url(redis_url) as client:
            for key in client.scan_iter("{test-round-trips}:*", count=1000):
                client.delete(key)

    @pytest.mark.parametrize("delay", [0, 0.1])
    def test_submitting(
        self,
        delay: float,
        wire: Wire,
        producer: PreprocessProducerOperator,
        consumer: PreprocessConsumerOperator,
    ) -> None:
        def work() -> None:
            for run in range(JOBS):
                producer.submit({"run": run}, delay=delay)

        assert self.spent(wire, work).total() == JOBS

    def test_a_batch(
        self,
        wire: Wire,
        producer: PreprocessProducerOperator,
        consumer: PreprocessConsumerOperator,
    ) -> None:
        """The server does nothing else during a script, so one takes not all of it."""
        jobs = [{"run": run} for run in range(BATCH)]
        assert self.spent(wire, lambda: producer.submit_many(jobs)).total() <= BATCH / 500
        assert consumer.check_message_count() == BATCH

    def test_listening(
        self,
        wire: Wire,
        producer: PreprocessProducerOperator,
        consumer: PreprocessConsumerOperator,
    ) -> None:
        producer.submit_many([{"run": run} for run in range(JOBS)])
        spent = self.spent(wire, lambda: consumer.listen_message(nothing, max_jobs=JOBS))
        assert spent.total() <= JOBS + ONCE, spent  # one job's acknowledgement takes the next

    def test_a_retry(
        self,
        wire: Wire,
        producer: PreprocessProducerOperator,
        consumer: PreprocessConsumerOperator,
    ) -> None:
        def again(run: int) -> None:
            raise Retry(delay=60)

        producer.submit_many([{"run": run} for run in range(JOBS)])
        spent = self.spent(wire, lambda: consumer.listen_message(again, max_jobs=JOBS))
        assert spent.total() <= 2 * JOBS + ONCE, spent

    def test_a_worker(
        self,
        wire: Wire,
        consumer: PreprocessConsumerOperator,
    ) -> None:
        """Look whether it is still ours, publish the result; acknowledge and take the next."""
        for kind in (PreprocessProducerOperator, TrainProducerOperator, EvaluateProducerOperator):
            with kind(url=wire.url) as producer:
                producer.submit_many([{"run": run} for run in range(JOBS)])
        handlers = dict.fromkeys(WORK_PHASES, lambda run: {"run": run})
        worker = Worker(handlers, url=wire.url)
        spent = self.spent(wire, lambda: worker.run(burst=True))
        assert spent.total() <= 3 * JOBS * 3 + CONNECTING, spent

    def test_a_running_job_is_kept_by_three_renewals_per_lease(
        self, wire: Wire, producer: PreprocessProducerOperator
    ) -> None:
        with PreprocessConsumerOperator(url=wire.url, lease=0.6) as consumer:
            producer.process(run=0)

            def look(run: int) -> Counter[str]:
                return self.spent(wire, lambda: time.sleep(1.2))

            spent = consumer.poll_message(look)
        assert 2 <= spent.total() <= 3 * 2 + 2, spent

"""A RabbitMQ connection on which comes what should not, and calls that are interrupted."""

from __future__ import annotations

import gc
import random
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from types import FrameType
from typing import Any
from uuid import uuid4

import pika
import pytest
from pika import frame as frames
from pika import spec as amqp
from threads import WAIT, in_thread, until
from wire import Wire

from synmanager.backends import Delivery, ExchangeSpec, QueueSpec
from synmanager.backends.rabbitmq import RabbitMQBackend
from synmanager.backends.rabbitmq.lane import Lane
from synmanager.engine.leases import LeaseKeeper
from synmanager.engine.session import Session
from synmanager.errors import (
    BrokerUnavailable,
    LeaseLost,
    PublishInterrupted,
    PublishRefused,
    SynmanagerError,
    Unroutable,
    Unsupported,
)
from synmanager.job import Job
from synmanager.message import Message, Rank, encode
from synmanager.settings import parse_url

#: Seconds, of a client; who is answered in less than a half was not kept waiting for the rest.
PATIENCE = 30.0

#: Seconds, within which a call has begun to wait for its answer, also on a busy machine.
ALARM = 0.5


@pytest.fixture
def wire(amqp_url: str) -> Iterator[Wire]:
    with Wire(amqp_url) as made:
        yield made


@pytest.fixture
def client(wire: Wire) -> Iterator[RabbitMQBackend]:
    made = RabbitMQBackend(replace(parse_url(wire.url), timeout=PATIENCE))
    made.open()
    yield made
    wire.release_replies()
    made.close()


@pytest.fixture
def other(amqp_url: str) -> Iterator[RabbitMQBackend]:
    made = RabbitMQBackend(parse_url(amqp_url))
    made.open()
    yield made
    made.close()


@pytest.fixture
def plain(amqp_url: str) -> Iterator[Any]:
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    yield connection.channel()
    connection.close()


@pytest.fixture
def spec(plain: Any, client: RabbitMQBackend) -> Iterator[QueueSpec]:
    name = f"test-{uuid4().hex}"
    made = QueueSpec(name, ExchangeSpec(f"{name}-exchange", "topic"), f"{name}-key")
    client.declare(made)
    yield made
    plain.queue_delete(name)
    plain.queue_delete(f"{name}.dead")
    plain.exchange_delete(f"{name}-exchange")


def publish(client: RabbitMQBackend, spec: QueueSpec, count: int = 1) -> list[Message]:
    sent = [Message(encode({"number": number})) for number in range(count)]
    client.publish(spec.exchange.name, spec.routing_key, sent)
    return sent


def take(client: RabbitMQBackend, spec: QueueSpec, wait: float = WAIT) -> Delivery:
    delivery = client.receive([spec.name], wait)
    assert delivery is not None
    return delivery


def method(value: Any, channel: int) -> bytes:
    return bytes(frames.Method(channel, value).marshal())


def nonsense(used: int) -> dict[str, bytes]:
    """What nobody can make sense of, or nobody has asked for, on the channel that is used."""
    props = amqp.BasicProperties()
    return {
        "HTTP": b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
        "zeros": bytes(100),
        "an unknown method": struct.pack(">BHIHHB", 1, used, 4, 60, 999, 0xCE),
        "an unknown kind of frame": struct.pack(">BHIB", 7, used, 0, 0xCE),
        "no end of a frame": struct.pack(">BHIHHB", 1, used, 4, 60, 72, 0),
        "a frame that is too large": struct.pack(">BHI", 3, used, 0x7FFFFFFF),
        "a channel that is not there": method(amqp.Basic.GetEmpty(), used + 76),
        "a body without its message": bytes(frames.Body(used, b"{}").marshal()),
        "nothing, unasked": method(amqp.Basic.GetEmpty(), used),
        "a message, unasked": method(amqp.Basic.GetOk(7, False, "", "key", 0), used)
        + bytes(frames.Header(used, 2, props).marshal())
        + bytes(frames.Body(used, b"{}").marshal()),
        "a confirmation, unasked": method(amqp.Basic.Ack(4711), used),
        "another answer": method(amqp.Queue.BindOk(), used),
        "about another queue": method(amqp.Queue.DeclareOk("another", 1, 0), used),
        "another version": b"AMQP\x00\x01\x00\x00",
        **{
            f"closed with {code}": method(
                amqp.Channel.Close(code, "SAID BY THE TEST", 60, 40), used
            )
            for code in (320, 504, 505, 540, 541, 999)
        },
    }


@pytest.mark.parametrize("what", nonsense(1))
def test_nonsense_is_unavailable_at_once_and_ends_the_connection(
    wire: Wire, client: RabbitMQBackend, spec: QueueSpec, what: str
) -> None:
    held = replace(take_one(client, spec))
    assert client._link is not None
    lane = client._link._idle[-1]  # the one that is used next
    sent = wire.sent["queue.declare"]
    wire.hold_replies()
    call = in_thread(client.count, spec.name)
    wire.wait_until_sent("queue.declare", sent + 1)
    began = time.monotonic()
    assert lane not in client._link._idle
    wire.say(nonsense(lane._channel.channel_number)[what])
    with pytest.raises(BrokerUnavailable) as caught:
        call()
    assert time.monotonic() - began < PATIENCE / 2
    assert "no answer" not in str(caught.value)
    assert not client.is_open
    wire.cut()
    wire.release_replies()
    client.open()
    with pytest.raises(LeaseLost):
        client.ack(held)
    assert take(client, spec).attempt == 2


def take_one(client: RabbitMQBackend, spec: QueueSpec) -> Delivery:
    """One that is held on a channel that is not the first."""
    publish(client, spec)
    with client._link as link:  # type: ignore[union-attr]
        kept, link._idle[:] = list(link._idle), []
    delivery = take(client, spec)
    with client._link as link:  # type: ignore[union-attr]
        link._idle[:] = kept
    return delivery


def test_an_error_that_nobody_foresaw_ends_the_connection(
    client: RabbitMQBackend, spec: QueueSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ArithmeticError("planted")

    monkeypatch.setattr(Lane, "call", fail)
    with pytest.raises(BrokerUnavailable, match="ArithmeticError: planted"):
        client.purge(spec.name)
    assert not client.is_open
    monkeypatch.undo()
    client.open()
    publish(client, spec)


def test_what_is_said_about_a_queue_ends_nothing(client: RabbitMQBackend, spec: QueueSpec) -> None:
    with pytest.raises(SynmanagerError, match="NOT_FOUND"):
        client.count("nowhere")
    assert client.is_open
    publish(client, spec)


@pytest.mark.parametrize("call", ["record", "replay", "replay on"])
def test_a_journal_that_does_not_answer_costs_no_job_its_lease(
    wire: Wire, client: RabbitMQBackend, spec: QueueSpec, plain: Any, call: str
) -> None:
    """As when its stream's leader is gone: the connection is alive, and a job hangs on it."""
    log = f"test-{uuid4().hex}"
    client.record(log, [b"1"])
    (first,) = client.replay(log)
    publish(client, spec)
    held = take(client, spec)
    calls: dict[str, Callable[[], object]] = {
        "record": lambda: client.record(log, [b"2"]),
        "replay": lambda: client.replay(log),
        "replay on": lambda: client.replay(log, first.position),
    }
    link = client._link
    assert link is not None
    link.timeout, patience = 0.5, link.timeout
    wire.hold_replies()
    with pytest.raises(BrokerUnavailable, match="no answer"):
        calls[call]()
    assert client.is_open
    link.timeout = patience
    wire.release_replies()
    client.record(log, [b"3"])
    assert client.replay(log, first.position)[-1].data == b"3"
    client.ack(held)
    assert client._link is link
    assert client.count(spec.name).ready == 0
    plain.queue_delete(f"synmanager.journal.{log}")


def test_a_running_job_hears_soon_that_it_is_another_s(
    wire: Wire, client: RabbitMQBackend, spec: QueueSpec
) -> None:
    """The broker hands it out again at once; a third of a lease would be long to go on for."""
    session = Session(client)
    session.open(spec)
    publish(client, spec)
    held = take(client, spec)
    job = Job(held.message.id, "train", Rank.NORMAL, 1, None)
    keeper = LeaseKeeper(session, lease=600.0)
    keeper.keep(held, job)
    wire.hold_replies()  # nor is there a new connection soon
    wire.cut()
    until(lambda: job.lease_lost, "it is told")
    wire.release_replies()
    session.close()
    keeper.close()


class TestWhatIsNotAccepted:
    def test_is_named_where_a_queue_is_full(
        self, client: RabbitMQBackend, spec: QueueSpec, plain: Any
    ) -> None:
        plain.queue_delete(spec.name)
        limits = {"x-max-length": 2, "x-overflow": "reject-publish"}
        plain.queue_declare(spec.name, durable=True, arguments=limits)
        plain.queue_bind(spec.name, spec.exchange.name, spec.routing_key)
        sent = [Message(encode({"number": number})) for number in range(5)]
        with pytest.raises(PublishRefused) as caught:
            client.publish(spec.exchange.name, spec.routing_key, sent)
        queued = [take(client, spec, 0) for _ in range(2)]
        unconfirmed = {message.id for message in caught.value.unconfirmed}
        assert unconfirmed == {m.id for m in sent} - {d.message.id for d in queued}
        assert len(unconfirmed) == 3

    @pytest.mark.parametrize("exchange", ["as declared", "nowhere"])
    @pytest.mark.parametrize("delay", [0, 1])
    def test_is_named_where_nothing_is_bound(
        self, client: RabbitMQBackend, spec: QueueSpec, exchange: str, delay: float
    ) -> None:
        sent = [Message(b"{}"), Message(b"{}")]
        name = spec.exchange.name if exchange == "as declared" else exchange
        with pytest.raises(Unroutable) as caught:
            client.publish(name, "another", sent, delay=delay)
        assert caught.value.unconfirmed == tuple(sent)

    def test_is_named_where_the_connection_ends(
        self, wire: Wire, client: RabbitMQBackend, spec: QueueSpec
    ) -> None:
        wire.hold_replies()
        sent = wire.sent["basic.publish"]
        call = in_thread(publish, client, spec, 3)
        wire.wait_until_sent("basic.publish", sent + 3)
        wire.cut()
        with pytest.raises(PublishInterrupted) as caught:
            call()
        assert len(caught.value.unconfirmed) == 3


SETTLED: dict[str, Callable[[RabbitMQBackend, Delivery], None]] = {
    "nack": lambda client, delivery: client.nack(delivery),
    "nack uncounted": lambda client, delivery: client.nack(delivery, count=False),
    "nack later": lambda client, delivery: client.nack(delivery, delay=0.1),
}


@pytest.mark.parametrize("how", SETTLED)
def test_a_failure_whose_acknowledgement_is_lost_counts_once(
    client: RabbitMQBackend, spec: QueueSpec, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for attempt in (1, 2):  # also of what is a copy already
        if attempt == 1:
            publish(client, spec)
        delivery = take(client, spec)
        monkeypatch.setattr(Lane, "ack", lambda *_, **__: None)
        SETTLED[how](client, delivery)
        monkeypatch.undo()
        client.close()
        client.open()
    last = take(client, spec)
    assert last.attempt == (1 if how == "nack uncounted" else 3)
    assert client.receive([spec.name], 0.5) is None
    client.ack(last)
    assert client.count(spec.name).ready == 0


def test_a_letter_whose_job_s_acknowledgement_is_lost_is_written_once(
    client: RabbitMQBackend, spec: QueueSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(client, spec)
    delivery = take(client, spec)
    monkeypatch.setattr(Lane, "ack", lambda *_, **__: None)
    client.bury(delivery, "enough")
    monkeypatch.undo()
    client.close()
    client.open()
    assert client.receive([spec.name], 0.5) is None
    assert client.count(spec.name).ready == 0
    assert len(client.dead_letters(spec.name, 10)) == 1


def test_the_copy_itself_is_not_taken_for_what_it_replaced(
    client: RabbitMQBackend, other: RabbitMQBackend, spec: QueueSpec
) -> None:
    """Its next holder dies: it has to be run again, by whoever made the copy."""
    publish(client, spec)
    for attempt in range(3):
        client.nack(take(client, spec), count=False)
        take(other, spec)  # and dropped
        again = take(client, spec)
        assert again.attempt == attempt + 2
        client.nack(again, count=False)


def test_an_ack_that_is_repeated_says_that_it_may_be_done(
    wire: Wire, client: RabbitMQBackend, spec: QueueSpec
) -> None:
    publish(client, spec)
    done = take(client, spec)
    wire.hold_replies()
    sent = wire.sent["basic.ack"]
    call = in_thread(client.receive, [spec.name], WAIT, done)
    wire.wait_until_sent("basic.ack", sent + 1)
    wire.cut()
    with pytest.raises((BrokerUnavailable, LeaseLost)):
        call()
    wire.release_replies()
    client.open()
    with pytest.raises(LeaseLost, match="may be settled already"):
        client.ack(done)


class TestSixteenThreads:
    """On one client whose broker is frozen: each call has its own patience, and no more."""

    @staticmethod
    def time_each(call: Callable[[], object]) -> list[Callable[[], float]]:
        def run() -> float:
            began = time.monotonic()
            with pytest.raises(BrokerUnavailable):
                call()
            return time.monotonic() - began

        return [in_thread(run) for _ in range(16)]

    def test_publish_and_open(self, wire: Wire, client: RabbitMQBackend, spec: QueueSpec) -> None:
        assert client._link is not None
        client._link.timeout = 1.5  # from now on; a busy broker may have taken longer before
        client.address = replace(client.address, timeout=1.5)
        wire.hold_replies()

        def publish_again() -> None:
            with suppress(BrokerUnavailable):
                publish(client, spec)
            client.open()

        took = [join() for join in self.time_each(publish_again)]
        assert max(took) < 12, took  # twice the patience, and not that of sixteen

    def test_close_ends_all(self, wire: Wire, client: RabbitMQBackend, spec: QueueSpec) -> None:
        client.address = replace(client.address, timeout=60.0)
        client.close()
        wire.hold_replies()
        connections = wire.connections
        joins = self.time_each(client.open)
        until(lambda: wire.connections > connections and len(client._opening._inside) == 16)
        client.close()  # who comes later opens it again
        assert max(join() for join in joins) < WAIT


class Interrupted(BaseException):
    pass


@pytest.fixture
def alarm() -> Iterator[Callable[[Callable[[], object], float], None]]:
    """Let a handler of SIGALRM do something in so many seconds."""
    before = signal.getsignal(signal.SIGALRM)

    def set_alarm(action: Callable[[], object], seconds: float) -> None:
        def handle(_: int, __: FrameType | None) -> None:
            action()

        signal.signal(signal.SIGALRM, handle)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    yield set_alarm
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def give_up() -> None:
    raise TimeoutError("mine")


@pytest.mark.parametrize("call", ["publish", "receive", "open"])
def test_a_handler_s_own_error_passes_through(
    wire: Wire, client: RabbitMQBackend, spec: QueueSpec, alarm: Any, call: str
) -> None:
    wire.hold_replies()
    if call == "open":
        client.close()
    calls: dict[str, Callable[[], object]] = {
        "publish": lambda: publish(client, spec),
        "receive": lambda: client.receive([spec.name], WAIT),
        "open": client.open,
    }
    alarm(give_up, ALARM)
    with pytest.raises(TimeoutError, match="mine"):
        calls[call]()
    wire.release_replies()
    client.open()
    if call == "publish":
        client.ack(take(client, spec))  # it was in doubt
    assert client.receive([spec.name], 0.2) is None  # and nobody has sent it twice
    publish(client, spec)
    assert client.count(spec.name).ready == 1


@pytest.mark.parametrize("call", ["publish", "receive"])
def test_a_handler_that_calls_into_the_middle_of_a_call_learns_it_at_once(
    wire: Wire, client: RabbitMQBackend, spec: QueueSpec, alarm: Any, call: str
) -> None:
    outcome: list[object] = []

    def publish_from_handler() -> None:
        began = time.monotonic()
        try:
            publish(client, spec)
        except Unsupported as error:
            outcome.append(str(error))
        outcome.append(time.monotonic() - began)
        wire.release_replies()

    wire.hold_replies()
    alarm(publish_from_handler, ALARM)
    if call == "publish":
        publish(client, spec)
    else:
        assert client.receive([spec.name], 2 * ALARM) is None
    assert "signal handler" in str(outcome[0])
    assert float(str(outcome[1])) < PATIENCE / 2
    assert client.count(spec.name).ready == (call == "publish")


def test_a_handler_may_close(
    wire: Wire, client: RabbitMQBackend, spec: QueueSpec, alarm: Any
) -> None:
    wire.hold_replies()
    alarm(client.close, ALARM)
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable):
        publish(client, spec)
    assert time.monotonic() - began < PATIENCE / 2
    assert not client.is_open
    wire.release_replies()
    client.open()
    publish(client, spec)


@pytest.mark.filterwarnings("ignore:unclosed", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_hundreds_of_interruptions_lose_nothing_and_hang_nothing(
    amqp_url: str, other: RabbitMQBackend, spec: QueueSpec
) -> None:
    """Real signals, wherever they come, in publish, receive, ack and close."""
    client = RabbitMQBackend(parse_url(amqp_url))
    confirmed: set[str] = set()
    acked: list[str] = []
    interruptions = 0
    is_armed = False

    def interrupt(_: int, frame: FrameType | None) -> None:
        nonlocal interruptions
        names = []
        while frame is not None:
            names.append(frame.f_code.co_name)
            frame = frame.f_back
        # What is raised in a finaliser, Python only reports.
        if is_armed and not {"__del__", "unraisable_hook"} & {*names}:
            interruptions += 1
            raise Interrupted

    def work() -> None:
        nonlocal is_armed
        is_armed = True
        if not signal.getitimer(signal.ITIMER_REAL)[0]:  # else it would never come to its end
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.001, 0.1))
        client.open()
        message = Message(b"{}")
        client.publish(spec.exchange.name, spec.routing_key, [message])
        confirmed.add(message.id)
        delivery = client.receive([spec.name], 0.01)
        if delivery is not None:
            acked.append(delivery.message.id)
            client.ack(delivery)
        if interruptions % 10 == 0:
            client.close()
        is_armed = False

    def is_enough() -> bool:
        return interruptions > 10 and len(confirmed) > 5

    before = signal.signal(signal.SIGALRM, interrupt)
    began = time.monotonic()
    try:
        while (took := time.monotonic() - began) < 4 or (took < 60 and not is_enough()):
            try:
                work()
            except (Interrupted, BrokerUnavailable, LeaseLost):
                is_armed = False
    finally:
        is_armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    began = time.monotonic()
    client.close()
    assert time.monotonic() - began < WAIT
    gc.collect()  # what was lost on the way closes itself now, not in the next test
    left: set[str] = set()

    def are_all_there() -> bool:
        while (delivery := other.receive([spec.name], 0)) is not None:
            left.add(delivery.message.id)
            other.ack(delivery)
        return confirmed <= {*left, *acked}

    until(are_all_there, "all that was confirmed")
    assert is_enough()


#: A daemon closes what it finds, and what is opened then gets the numbers.
DAEMON = """
import os, socket, sys, time
from synmanager.train import TrainConsumerOperator, TrainProducerOperator
producer, consumer = TrainProducerOperator(url=sys.argv[1]), TrainConsumerOperator(url=sys.argv[1])
if sys.argv[2] == "connected":
    producer.connect(); producer.process(run=1)
    consumer.connect()
    for _ in range(2):
        if os.fork():
            os._exit(os.waitstatus_to_exitcode(os.wait()[1]))
        os.setsid()
elif sys.argv[2] == "same process":
    producer.connect(); producer.process(run=1)
os.closerange(0, 256)
path = sys.argv[3]
files = []
if sys.argv[2] != "before":
    for _ in range(3):
        os.open(os.devnull, os.O_RDWR)
    files = [os.open(path, os.O_RDWR | os.O_CREAT) for _ in range(40)]
producer.connect(); consumer.connect(); consumer.channel
producer.process(run=2)
runs = 0
while consumer.poll_message(lambda run: run) is not None:
    runs += 1
low = 0
for number in range(3):
    try:
        low += "socket" in os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        pass
producer.disconnect(); consumer.disconnect()
del producer, consumer
import gc; gc.collect()
for file in files:
    os.fstat(file)
clean = not files or os.fstat(files[0]).st_size == 0
os._exit(40 + 2 * (runs >= 1 and clean and not low))
"""


@pytest.mark.parametrize("when", ["before", "same process", "connected"])
def test_a_daemon_that_closes_all_files(
    amqp_url: str, plain: Any, when: str, tmp_path: Any
) -> None:
    path = str(tmp_path / "file")
    try:
        program = [sys.executable, "-c", DAEMON, amqp_url, when, path]
        assert subprocess.run(program, timeout=60).returncode == 42
    finally:
        for queue in ("train", "train.dead"):
            plain.queue_delete(queue)

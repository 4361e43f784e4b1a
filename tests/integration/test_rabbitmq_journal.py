"""The journal in RabbitMQ's streams: what it costs, and what others do to them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from threading import Barrier, Event
from typing import Any
from uuid import uuid4

import pytest
from threads import until
from wire import Wire

from synmanager.backends.rabbitmq import RabbitMQBackend, journal
from synmanager.backends.rabbitmq.journal import EXCHANGE, stream
from synmanager.backends.rabbitmq.tape import Tape
from synmanager.errors import BrokerUnavailable, TopologyError
from synmanager.settings import parse_url
from synmanager.testing.steps import in_thread


@pytest.fixture
def log(plain: Any) -> Iterator[str]:
    name = "".join(chr(ord("a") + int(digit, 16)) for digit in uuid4().hex)
    yield name
    plain.queue_delete(stream(name))


@pytest.fixture
def wire(amqp_url: str) -> Iterator[Wire]:
    with Wire(amqp_url) as made:
        yield made


@pytest.fixture
def counted(wire: Wire) -> Iterator[RabbitMQBackend]:
    """A client whose methods are counted."""
    made = RabbitMQBackend(parse_url(wire.url))
    made.open()
    yield made
    made.close()


@pytest.fixture
def opened(amqp_url: str) -> Iterator[Callable[[int], list[RabbitMQBackend]]]:
    """Makes clients, whose connections have to be the same at the end of the test."""
    clients: list[RabbitMQBackend] = []
    links: list[object] = []

    def make(number: int) -> list[RabbitMQBackend]:
        clients.extend(RabbitMQBackend(parse_url(amqp_url)) for _ in range(number))
        for client in clients:
            client.open()
            links.append(client._link)
        return clients

    yield make
    assert [client._link for client in clients] == links
    for client in clients:
        assert client.is_open
        client.close()


def spent(wire: Wire, work: Callable[[], object]) -> Counter[str]:
    before = wire.sent + wire.journal
    work()
    return wire.sent + wire.journal - before


def test_what_it_costs(
    wire: Wire, counted: RabbitMQBackend, client: RabbitMQBackend, log: str
) -> None:
    for _ in range(2):  # the first has a connection of its own
        counted.record(log, [b"1"] * 10)
    assert spent(wire, lambda: counted.record(log, [b"2"])) == {"basic.publish": 1}
    entries = counted.replay(log)
    after = entries[-1].position

    def look() -> None:
        assert counted.replay(log, after) == []

    look()  # with it goes what was kept to be sent with the next
    for _ in range(10):
        assert spent(wire, look) == {"basic.ack": 1, "basic.qos": 1}
    asked = wire.journal["basic.qos"]
    waiting = in_thread(lambda: counted.replay(log, after, wait=30.0))
    until(lambda: wire.journal["basic.qos"] > asked, "it has looked")

    def wait() -> None:
        time.sleep(1.0)  # nothing comes of it that could be awaited
        assert not waiting.done()

    assert spent(wire, wait) == {}
    client.record(log, [b"3"])
    assert [entry.data for entry in waiting.result(10)] == [b"3"]


def test_who_has_written_the_first_entry_knows_that_there_is_one(
    client: RabbitMQBackend, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ before 4.0 says so a while after it has confirmed it."""
    known: list[bool] = []
    start = Tape.start

    def note(tape: Tape, *, is_written: bool) -> None:
        known.append(is_written)
        start(tape, is_written=is_written)

    monkeypatch.setattr(Tape, "start", note)
    client.record(log, [b"1"])
    assert [entry.data for entry in client.replay(log)] == [b"1"]
    assert known == [True]


def test_many_looks_are_cheap(wire: Wire, counted: RabbitMQBackend, log: str) -> None:
    counted.record(log, [b"%d" % number for number in range(500)])
    after = counted.replay(log)[-1].position

    def look(times: int = 500) -> None:
        for _ in range(times):
            assert counted.replay(log, after) == []

    look(1)  # with it goes what is left of the first, which the wire may count late
    methods = spent(wire, look)
    assert methods["basic.consume"] <= 20
    assert methods["channel.open"] == 0
    assert sum(methods.values()) <= 1200


def test_looks_at_a_short_log_become_cheap(
    wire: Wire, counted: RabbitMQBackend, client: RabbitMQBackend, log: str
) -> None:
    counted.record(log, [b"1"])
    after = counted.replay(log)[-1].position

    def look(times: int = 100) -> None:
        for _ in range(times):
            assert counted.replay(log, after) == []

    look(600)
    assert spent(wire, look)["basic.consume"] <= 5
    client.record(log, [b"2"])
    assert [entry.data for entry in counted.replay(log, after)] == [b"2"]
    assert [entry.data for entry in client.replay(log)] == [b"1", b"2"]


def test_a_short_log_that_cannot_be_written_to_is_looked_at_all_the_same(
    wire: Wire, counted: RabbitMQBackend, plain: Any, log: str
) -> None:
    counted.record(log, [b"1"])
    after = counted.replay(log)[-1].position
    plain.queue_unbind(stream(log), EXCHANGE, stream(log))

    def look() -> None:
        for _ in range(50):
            assert counted.replay(log, after) == []

    assert spent(wire, look)["basic.publish"] == 1
    counted.record(log, [b"2"])
    assert [entry.data for entry in counted.replay(log, after)] == [b"2"]


def test_a_stream_that_was_deleted_begins_anew(
    client: RabbitMQBackend, plain: Any, log: str
) -> None:
    client.record(log, [b"%d" % number for number in range(5)])
    last = client.replay(log)[-1]
    waiting = in_thread(lambda: client.replay(log, last.position, wait=30.0))
    plain.queue_delete(stream(log))
    client.record(log, [b"new"])
    assert [entry.data for entry in waiting.result(40)] == [b"new"]
    assert [entry.data for entry in client.replay(log, last.position)] == [b"new"]
    assert [entry.data for entry in client.replay(log)] == [b"new"]


@pytest.mark.parametrize("attempt", range(8))
def test_who_comes_while_a_stream_is_made_keeps_the_connection(
    opened: Callable[[int], list[RabbitMQBackend]], log: str, attempt: int
) -> None:
    """RabbitMQ before 4.3 ends it, in about every second attempt."""
    clients = opened(4)
    start = Barrier(len(clients))

    def write(client: RabbitMQBackend) -> None:
        start.wait(30)
        for number in range(5):
            client.record(log, [b"%d" % number])

    def read(client: RabbitMQBackend) -> None:
        start.wait(30)
        seen = client.replay(log, wait=30)
        while len(seen) < 10:
            seen += client.replay(log, seen[-1].position, wait=30)

    working = [
        in_thread(work, client)
        for work, client in zip((read, write, read, write), clients, strict=True)
    ]
    for each in working:
        each.result(60)


def test_who_writes_to_a_stream_that_is_deleted_goes_on_in_the_new_one(
    amqp_url: str, plain: Any, log: str
) -> None:
    """RabbitMQ ends the connection of who writes in a moment of it, in one of some hundred times.

    Its words: "506 RESOURCE_ERROR - Stream not found for queue".
    """
    clients = [RabbitMQBackend(parse_url(amqp_url)) for _ in range(6)]
    for client in clients:
        client.open()
    is_over = Event()
    lost: list[str] = []
    written = [0] * len(clients)

    def write(number: int) -> None:
        while not is_over.is_set():
            try:
                clients[number].record(log, [b"%d" % number])
            except TopologyError:  # it was deleted once more
                continue
            except BrokerUnavailable as error:
                lost.append(str(error))
                clients[number].open()
                continue
            written[number] += 1

    def goes_on() -> None:
        before = list(written)
        until(
            lambda: (
                any(each.done() for each in working)
                or all(now >= then + 5 for now, then in zip(written, before, strict=True))
            ),
            "all write",
            within=45,
        )

    working = [in_thread(write, number) for number in range(len(clients))]
    goes_on()
    for _ in range(10):
        plain.queue_delete(stream(log))
        goes_on()
    is_over.set()
    for each in working:
        each.result(60)
    for client in clients:
        client.close()
    assert len(lost) <= len(clients)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("kind", ["classic", "quorum"])
def test_a_queue_in_the_place_of_a_stream_keeps_what_it_has(
    client: RabbitMQBackend, plain: Any, log: str, kind: str, count: int
) -> None:
    plain.queue_declare(stream(log), durable=True, arguments={"x-queue-type": kind})
    plain.confirm_delivery()
    for _ in range(count):
        plain.basic_publish("", stream(log), b"somebody's")
    with pytest.raises(TopologyError, match="is no stream"):
        client.replay(log)
    client.close()

    def has_all() -> bool:
        declared = plain.queue_declare(stream(log), passive=True)
        return bool(declared.method.message_count == count)

    until(has_all, "all have gone back")


def test_a_log_is_written_to_by_who_finds_its_exchange_gone(
    client: RabbitMQBackend, plain: Any, log: str
) -> None:
    client.record(log, [b"1"])
    client.record(log, [b"2"])  # by its own connection
    plain.exchange_delete(EXCHANGE)
    client.record(log, [b"3"])
    client.record(log, [b"4"])
    assert [entry.data for entry in client.replay(log)] == [b"1", b"2", b"3", b"4"]


def test_a_stream_that_somebody_has_made_is_taken_as_it_is(
    client: RabbitMQBackend, plain: Any, log: str
) -> None:
    kind = {"x-queue-type": "stream", "x-max-age": "1D"}
    plain.queue_declare(stream(log), durable=True, arguments=kind)
    begin = time.monotonic()
    assert client.replay(log) == []
    assert time.monotonic() - begin < 5  # of the five, twice, for one that must have some
    waiting = in_thread(lambda: client.replay(log, wait=30.0))
    client.record(log, [b"1"])
    assert [entry.data for entry in waiting.result(40)] == [b"1"]
    plain.queue_declare(stream(log), durable=True, arguments=kind)  # it is the same


def test_what_is_no_stream_is_named_and_keeps_what_it_has(
    client: RabbitMQBackend, plain: Any, log: str
) -> None:
    plain.queue_declare(stream(log), durable=True)
    plain.confirm_delivery()
    plain.basic_publish("", stream(log), b"a job", mandatory=True)
    for wait in (0, 1.0):
        with pytest.raises(TopologyError, match=stream(log)):
            client.replay(log, wait=wait)
    assert client.is_open
    until(lambda: plain.queue_declare(stream(log), passive=True).method.message_count == 1)


def test_who_follows_no_more_is_let_go(
    client: RabbitMQBackend, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.record(log, [b"%d" % number for number in range(10)])
    entries = client.replay(log)
    for entry in entries[::2]:  # each a place to go on from; a few are kept
        client.replay(log, entry.position, limit=1)
    assert len(client._journal._tapes) == journal._KEPT_TAPES
    monkeypatch.setattr(journal, "_KEPT_FOR", 0.0)
    until(lambda: not client._journal._tapes)
    assert client.replay(log, entries[4].position) == entries[5:]
    until(lambda: not client._journal._tapes)

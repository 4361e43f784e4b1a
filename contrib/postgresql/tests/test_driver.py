"""What only this driver does: its options, its errors, its waiting, and answers that are lost."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from uuid import uuid4

import pytest
from harness.brokers import CANARY, PASSWORD, USER
from harness.certificates import Authority
from server import PostgreSQL
from synmanager_postgresql import PostgreSQLBackend, backend
from synmanager_postgresql.wire import Wire

from synmanager.backends import Address, ExchangeSpec, QueueSpec
from synmanager.errors import (
    AccessRefused,
    BrokerUnavailable,
    ConfigurationError,
    InvalidJob,
    TopologyError,
)
from synmanager.message import Message
from synmanager.testing.steps import in_thread

Make = Callable[..., PostgreSQLBackend]


@pytest.fixture
def make(server: PostgreSQL) -> Iterator[Make]:
    """Makes clients, and closes them."""
    made: list[PostgreSQLBackend] = []

    def client(**address: object) -> PostgreSQLBackend:
        client = PostgreSQLBackend(Address.from_url(server.url(), **address))
        made.append(client)
        return client

    yield client
    for client_ in made:
        client_.close()


@pytest.fixture
def called(make: Make, monkeypatch: pytest.MonkeyPatch) -> PostgreSQLBackend:
    """A client that waits, and looks only when it is called."""
    monkeypatch.setattr(backend, "_LOOK", 3600.0)
    client = make(lease=4 * 3600.0)
    client.open()
    return client


@pytest.fixture
def spec() -> QueueSpec:
    name = f"queue-{uuid4().hex}"
    return QueueSpec(name, ExchangeSpec(f"{name}-exchange", "topic"), f"{name}-key")


def send(client: PostgreSQLBackend, spec: QueueSpec, *messages: Message) -> list[Message]:
    batch = list(messages) or [Message(b"{}")]
    client.publish(spec.exchange.name, spec.routing_key, batch)
    return batch


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"colour": "blue"}, "colour"),
        ({"schema": "Upper"}, "schema"),
        ({"schema": "pg_mine"}, "schema"),
        ({"schema": 'a"; DROP TABLE jobs; --'}, "schema"),
        ({"socket": "run/postgresql"}, "socket"),
        ({"sslmode": "off"}, "sslmode"),
        ({"sslmode": "verify-full"}, "sslrootcert"),
        ({"sslrootcert": "/nowhere/ca.pem"}, "/nowhere/ca.pem"),
        ({"sslcert": __file__}, "sslkey"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_option_is_refused_before_any_io(options: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as refused:
        PostgreSQLBackend(Address("postgresql", password=PASSWORD, options=options))
    assert CANARY not in str(refused.value)


def test_the_socket_stands_for_a_host(server: PostgreSQL) -> None:
    options = {"socket": str(server.directory)}
    client = PostgreSQLBackend(
        Address("postgresql", "localhost", server.port, USER, None, "jobs", options)
    )
    client.open()
    client.close()
    with pytest.raises(ConfigurationError, match="socket"):
        PostgreSQLBackend(Address("postgresql", "db.example", options=options))


@pytest.mark.parametrize(
    "different",
    [{"password": f"{CANARY}-wrong"}, {"username": "nobody"}, {"path": "nothing"}],
    ids=lambda different: next(iter(different)),
)
def test_a_refused_login_is_told_from_a_server_that_is_away(
    make: Make, different: dict[str, str]
) -> None:
    with pytest.raises(AccessRefused) as refused:
        make(**different).open()
    assert CANARY not in str(refused.value)


def test_a_user_without_rights_is_refused(server: PostgreSQL, make: Make) -> None:
    make().open()
    server.add_stranger("stranger", PASSWORD)
    with pytest.raises(AccessRefused):
        make(username="stranger").open()


def test_nobody_there_is_unavailable(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        begin = time.monotonic()
        with pytest.raises(BrokerUnavailable) as silent:
            make(port=port, timeout=0.5).open()
        assert time.monotonic() - begin < 10
    with pytest.raises(BrokerUnavailable) as closed:
        make(port=port).open()
    assert CANARY not in f"{silent.value} {closed.value}"


def test_tls_asks_who_the_server_is(server: PostgreSQL, make: Make, tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path), tmp_path / "theirs"
    theirs.mkdir()
    certificate = ours.signed("server")
    server.use_tls(certificate.chain, certificate.key)
    good = {"sslrootcert": str(ours.cafile)}

    def is_in_use() -> bool:
        try:
            make(options=good).open()
        except AccessRefused:  # the server has not read its settings yet
            return False
        return True

    deadline = time.monotonic() + 30
    while not is_in_use():
        assert time.monotonic() < deadline
    with pytest.raises(AccessRefused):
        make(options={"sslrootcert": str(Authority(theirs).cafile)}).open()
    with pytest.raises(AccessRefused):
        make(options=good, host="localhost").open()  # which the certificate does not name


def test_a_frozen_server_is_given_up_in_time_and_close_as_well(
    server: PostgreSQL, make: Make, spec: QueueSpec
) -> None:
    make().open()  # which makes the tables, and waits for the disk
    client = make(timeout=3.0)
    client.open()
    server.launcher.freeze()
    try:
        begin = time.monotonic()
        with pytest.raises(BrokerUnavailable):
            client.count(spec.name)
        assert not client.is_open
        client.close()
        assert time.monotonic() - begin < 20
    finally:
        server.launcher.thaw()


def test_a_newer_version_s_tables_are_refused(
    server: PostgreSQL, make: Make, spec: QueueSpec
) -> None:
    options = {"schema": "of_the_future"}
    make(options=options).open()
    server.execute("UPDATE of_the_future.version SET version = 2")
    with pytest.raises(TopologyError, match="version 2"):
        make(options=options).open()


def test_many_that_come_first_at_once_make_the_tables_once(make: Make) -> None:
    clients = [make(options={"schema": "fresh"}) for _ in range(8)]
    for opened in [in_thread(client.open) for client in clients]:
        opened.result(60)


def test_a_commit_waits_for_the_disk_whatever_the_server_does(
    server: PostgreSQL, make: Make
) -> None:
    server.execute(f"ALTER ROLE {USER} SET synchronous_commit = off")
    try:
        client = make()
        client.open()
        assert client._pool is not None
        with client._pool.wire() as wire:
            assert wire.ask("SHOW synchronous_commit") == [[b"on"]]
    finally:
        server.execute(f"ALTER ROLE {USER} RESET synchronous_commit")


def test_what_no_text_can_hold_is_an_invalid_job(make: Make, spec: QueueSpec) -> None:
    client = make()
    client.open()
    client.declare(spec)
    for bad in ("a\0b", "\ud800", "x" * 100_000):
        with pytest.raises(InvalidJob):
            send(client, spec, Message(b"{}", id=bad if bad[0] != "x" else uuid4().hex * 20_000))
    assert client.count(spec.name).ready == 0
    assert client.is_open


def test_another_program_s_insert_wakes_a_waiting_client(
    server: PostgreSQL, called: PostgreSQLBackend, spec: QueueSpec
) -> None:
    called.declare(spec)
    waiting = in_thread(called.receive, [spec.name], 60.0)
    time.sleep(0.2)  # no call tells that another one is waiting
    server.execute(
        "INSERT INTO synmanager.inbox (queue, body) VALUES (%s, '{\"run\": 1}')", spec.name
    )
    delivery = waiting.result(30)
    assert delivery is not None
    assert delivery.message.body == b'{"run": 1}'


def test_a_waiting_client_asks_seldom(
    make: Make, spec: QueueSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make()
    client.open()
    client.declare(spec)
    asked: list[str] = []
    ask = Wire.ask

    def counted(self: Wire, question: str, *rest: object, **more: object) -> object:
        asked.append(question)
        return ask(self, question, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Wire, "ask", counted)
    assert client.receive([spec.name], 3.0) is None
    assert len(asked) <= 8


@pytest.mark.parametrize("settle", ["ack", "nack", "bury", "receive"])
def test_an_answer_that_is_lost_can_be_asked_for_again(
    make: Make, spec: QueueSpec, monkeypatch: pytest.MonkeyPatch, settle: str
) -> None:
    """The server has acted, and the connection ended before it could say so."""
    client = make()
    client.open()
    client.declare(spec)
    send(client, spec)
    delivery = client.receive([spec.name], 0)
    assert delivery is not None
    calls: dict[str, Callable[[], object]] = {
        "ack": lambda: client.ack(delivery),
        "nack": lambda: client.nack(delivery),
        "bury": lambda: client.bury(delivery, "why"),
        "receive": lambda: client.receive([spec.name], 0, delivery),
    }
    ask = Wire.ask

    def lost(self: Wire, question: str, *rest: object, **more: object) -> object:
        ask(self, question, *rest, **more)  # type: ignore[arg-type]
        self.close()
        raise BrokerUnavailable("lost")

    with monkeypatch.context() as patch:
        patch.setattr(Wire, "ask", lost)
        with pytest.raises(BrokerUnavailable):
            calls[settle]()
    assert not client.is_open
    client.open()
    calls[settle]()
    assert delivery.settled
    counts = client.count(spec.name)
    assert (counts.ready, counts.leased, counts.dead) == {
        "ack": (0, 0, 0),
        "nack": (1, 0, 0),
        "bury": (0, 0, 1),
        "receive": (0, 0, 0),
    }[settle]


def test_a_job_that_was_taken_and_that_nobody_got_comes_back_uncounted(
    make: Make, spec: QueueSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make()
    client.open()
    client.declare(spec)
    send(client, spec)
    ask = Wire.ask

    def lost(self: Wire, question: str, *rest: object, **more: object) -> object:
        rows = ask(self, question, *rest, **more)  # type: ignore[arg-type]
        if ".take(" in question:
            self.close()
            raise BrokerUnavailable("lost")
        return rows

    with monkeypatch.context() as patch:
        patch.setattr(Wire, "ask", lost)
        with pytest.raises(BrokerUnavailable):
            client.receive([spec.name], 0)
    client.open()
    again = client.receive([spec.name], 0)
    assert again is not None
    assert again.attempt == 1


def test_an_interruption_leaves_nothing_half_read(make: Make, spec: QueueSpec) -> None:
    client = make()
    client.open()
    client.declare(spec)

    class Interrupted(Exception):
        pass

    def handler(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    def receive_for_a_while(timer: threading.Timer) -> None:
        timer.start()
        client.receive([spec.name], 30)

    previous = signal.signal(signal.SIGUSR1, handler)
    main = threading.main_thread().ident
    assert main is not None
    try:
        for pause in (0.05, 0.1, 0.3):
            timer = threading.Timer(pause, signal.pthread_kill, (main, signal.SIGUSR1))
            with pytest.raises(Interrupted):
                receive_for_a_while(timer)
            timer.join()
            (sent,) = send(client, spec)
            delivery = client.receive([spec.name], 0)
            assert delivery is not None
            assert delivery.message.id == sent.id
            client.ack(delivery)
    finally:
        signal.signal(signal.SIGUSR1, previous)


def test_the_journal_keeps_its_order_and_its_bounds(make: Make, called: PostgreSQLBackend) -> None:
    log = f"log{uuid4().hex}"
    client, other = called, make(journal_bytes=1000)
    other.open()
    assert client.replay(log) == []
    waiting = in_thread(lambda: client.replay(log, wait=60.0))
    time.sleep(0.2)  # no call tells that another one is waiting
    client.record(log, [b"0", b"\x00\xff"])
    assert [entry.data for entry in waiting.result(30)] == [b"0", b"\x00\xff"]

    def write() -> None:
        for _ in range(20):
            client.record(log, [b"x"])

    writers = [in_thread(write) for _ in range(4)]
    seen = client.replay(log, limit=1)
    while len(seen) < 82:
        seen += client.replay(log, seen[-1].position, wait=10.0, limit=7)
    for writer in writers:
        writer.result(30)
    assert [entry.data for entry in seen[2:]] == [b"x"] * 80
    assert len({entry.position for entry in seen}) == 82
    assert client.replay(log, seen[-1].recorded_at + 1000) == []
    other.record(log, [b"y" * 990])
    kept = client.replay(log)
    assert kept[-1].data == b"y" * 990
    assert sum(len(entry.data) for entry in kept) <= 1000


def test_a_log_at_debug_shows_no_password(
    make: Make, caplog: pytest.LogCaptureFixture, spec: QueueSpec
) -> None:
    caplog.set_level(logging.DEBUG)
    client = make()
    client.open()
    client.declare(spec)
    assert CANARY not in caplog.text + repr(client.__dict__.get("address"))

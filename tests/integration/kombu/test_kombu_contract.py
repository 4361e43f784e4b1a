"""The kombu backend keeps the contract on real servers, and on what speaks like SQS.

In the short form in parts; see also ``scripts/kombu-table``.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from uuid import uuid4

import pytest
import redis

pytest.importorskip("kombu", reason="kombu is not installed")

from conftest import needs
from containers import no_broker, wait_for
from kombu_brokers import Contract, KombuUnderTest
from kombu_kill import killed_holder

from synmanager.backends import Delivery, ExchangeSpec, QueueBackend, QueueSpec
from synmanager.backends.kombu.address import pgmq_conninfo
from synmanager.backends.kombu.pgmq import pgmq_name
from synmanager.errors import AccessRefused, BrokerUnavailable, LeaseLost
from synmanager.settings import parse_url
from synmanager.testing.dead_letters import DeadLetters
from synmanager.testing.settling import Settling
from synmanager.testing.steps import assert_counts, make_message, publish, take


def keep_renewing(client: QueueBackend, held: Delivery) -> None:
    for _ in range(100):
        client.renew(held)
        time.sleep(0.1)


class TestPyamqp(Contract):
    @pytest.fixture
    def broker(self, amqp_url: str) -> KombuUnderTest:
        return KombuUnderTest(f"kombu+{amqp_url}")

    def test_the_job_of_a_killed_consumer_comes_back(self, amqp_url: str) -> None:
        assert killed_holder(f"kombu+{amqp_url}", f"kill-{uuid4().hex}") == "kept"

    def test_a_delivery_whose_channel_the_broker_closed_is_lost_alone(
        self, client: QueueBackend, other: QueueBackend, spec: QueueSpec
    ) -> None:
        # As it does when a job is unacknowledged for too long. py-amqp opens the channel again,
        # and there the tag is another delivery's.
        first, second = publish(client, spec, make_message(1), make_message(2))
        held, safe = take(client, spec), take(client, spec)
        channel, _ = held.receipt.taken.handle
        channel.basic_ack(999)
        again = take(other, spec)
        assert (again.message.id, again.attempt) == (first.id, 2)
        with pytest.raises(LeaseLost):
            keep_renewing(client, held)
        with pytest.raises(LeaseLost):
            client.ack(held)
        client.ack(safe)
        other.ack(again)
        assert safe.message.id == second.id
        assert_counts(client, spec)


class TestRedis(Contract):
    @pytest.fixture
    def broker(self, redis_url: str) -> KombuUnderTest:
        return KombuUnderTest(f"kombu+{redis_url}")

    def test_the_job_of_a_killed_consumer_comes_back(self, redis_url: str) -> None:
        assert killed_holder(f"kombu+{redis_url}", f"kill-{uuid4().hex}") == "kept"

    @pytest.mark.parametrize("raw", [b"no json", b"[1, 2]", b'"text"', b"7", b"{}", b"\xff\xfe"])
    def test_what_is_no_message_of_kombu_s_can_be_buried(
        self,
        broker: KombuUnderTest,
        client: QueueBackend,
        other: QueueBackend,
        spec: QueueSpec,
        redis_url: str,
        raw: bytes,
    ) -> None:
        with redis.Redis.from_url(redis_url) as foreigner:
            foreigner.lpush(spec.name, raw)
        assert take(client, spec).defect
        client.close()  # which puts it back as it was: kombu would throw it away
        worker = broker.connect(lease=broker.lease)
        assert take(worker, spec).message.body == raw
        broker.pass_time(broker.lease * 1.2)  # and so does the end of a lease
        delivery = take(other, spec)
        assert delivery.message.body == raw
        assert delivery.defect
        other.bury(delivery, delivery.defect)
        (letter,) = other.dead_letters(spec.name, 10)
        assert letter.message.body == raw


@pytest.fixture(scope="session")
def sqs_url() -> Iterator[str]:
    """moto's server."""
    needs("moto")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            wait_for(lambda: _answers(port), "moto's server answers")
            yield f"sqs://key:secret@127.0.0.1:{port}/?tls=false"
        finally:
            server.terminate()


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 2):
        return True
    return False


@pytest.mark.xdist_group("sqs")
class TestSqs(Settling, DeadLetters):
    """In parts: moto's server takes tens of milliseconds for a question.

    Leases are tried by the killed consumer; all of them, in minutes, by ``scripts/kombu-table``.
    """

    @pytest.fixture
    def broker(self, sqs_url: str) -> KombuUnderTest:
        return KombuUnderTest(f"kombu+{sqs_url}")

    def test_the_job_of_a_killed_consumer_comes_back(self, sqs_url: str) -> None:
        assert killed_holder(f"kombu+{sqs_url}", f"kill-{uuid4().hex}") == "kept"


@pytest.fixture(scope="session")
def pgmq_url() -> Iterator[str]:
    """A PostgreSQL server with pgmq, of our own if none is given."""
    needs("pgmq")
    given = os.environ.get("SYNMANAGER_TEST_PGMQ_URL")
    if given:
        yield given
        return
    from pgmq_server import Missing, pgmq_server

    try:
        with pgmq_server() as server:
            yield server.url().replace("postgresql:", "pgmq:", 1)
    except Missing as missing:
        no_broker(str(missing))


def a_psycopg(url: str) -> Any:
    """A connection of another program, and a transaction."""
    import psycopg

    return psycopg.connect(pgmq_conninfo(parse_url(f"kombu+{url}")))


@pytest.mark.xdist_group("pgmq")
class TestPgmq(Contract):
    @pytest.fixture
    def broker(self, pgmq_url: str) -> KombuUnderTest:
        return KombuUnderTest(f"kombu+{pgmq_url}")

    def test_the_job_of_a_killed_consumer_comes_back(self, pgmq_url: str) -> None:
        assert killed_holder(f"kombu+{pgmq_url}", f"kill-{uuid4().hex}") == "kept"

    def test_a_late_holder_settles_nothing_of_the_next(
        self, broker: KombuUnderTest, client: QueueBackend, spec: QueueSpec
    ) -> None:
        # pgmq's own delete and set_vt go by the number of the message, which stays the same.
        publish(client, spec, make_message(1))
        late = broker.connect(lease=broker.lease)
        held = take(late, spec)
        held.receipt.until = None  # the clock of this process, which may be behind
        broker.pass_time(broker.lease * 1.2)
        again = take(client, spec)
        assert again.attempt == 2
        for settle in (late.ack, late.nack, late.renew):
            with pytest.raises(LeaseLost):
                settle(held)
        client.ack(again)
        assert_counts(client, spec)

    def test_a_plain_queue_is_shared_with_kombu_s_own_programs(
        self, client: QueueBackend, pgmq_url: str
    ) -> None:
        import kombu

        name = f"plain_{uuid4().hex[:16]}"
        spec = QueueSpec(name, ExchangeSpec(f"{name}-exchange", "topic"), name)
        client.declare(spec)
        options = {"init_extension": False}
        with (
            kombu.Connection(pgmq_url, transport_options=options) as foreigner,
            foreigner.SimpleQueue(name, no_ack=False) as queue,
        ):
            queue.put({"lr": 1}, serializer="json")
            delivery = take(client, spec)
            assert delivery.message.body == b'{"lr": 1}'
            client.ack(delivery)
            publish(client, spec, make_message(1))
            queue.get(timeout=20).ack()
        assert_counts(client, spec)

    def test_what_is_no_message_of_kombu_s_can_be_buried(
        self, client: QueueBackend, spec: QueueSpec, pgmq_url: str
    ) -> None:
        with a_psycopg(pgmq_url) as foreigner:
            foreigner.execute("SELECT pgmq.send(%s, '[1, 2]')", [pgmq_name(spec.name)])
        delivery = take(client, spec)
        assert (delivery.message.body, bool(delivery.defect)) == (b"[1, 2]", True)
        client.bury(delivery, delivery.defect or "")
        (letter,) = client.dead_letters(spec.name, 10)
        assert letter.message.body == b"[1, 2]"

    def test_a_wrong_password_is_refused_and_not_quoted(self, broker: KombuUnderTest) -> None:
        with pytest.raises(AccessRefused) as caught:
            broker.make(password="canary7c1f").open()
        assert "canary7c1f" not in f"{caught.value!r} {caught.value.__context__!r}"

    @pytest.mark.skipif("SYNMANAGER_TEST_PGMQ_URL" in os.environ, reason="the server is not ours")
    def test_a_server_that_is_stopped_is_given_up(self, broker: KombuUnderTest) -> None:
        client = broker.connect(timeout=1.0)
        ((session,),) = client._carrier._wire.ask("SELECT pg_backend_pid()")  # type: ignore[attr-defined]
        os.kill(session, signal.SIGSTOP)  # and its kernel answers
        try:
            begin = time.monotonic()
            with pytest.raises(BrokerUnavailable):
                client.count("any")
            assert time.monotonic() - begin < 20
        finally:
            os.kill(session, signal.SIGCONT)
        assert not client.is_open

"""What the contract does not ask of every backend: lost answers, clocks, servers not to trust."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import fakeredis
import pytest
import redis
from fake_redis import INFO, FakeConnection, new_server

from synmanager.backends import Address
from synmanager.backends.base import Counts, Delivery, ExchangeSpec, QueueSpec
from synmanager.backends.redis import RedisBackend, checks
from synmanager.backends.redis import backend as module
from synmanager.backends.redis.connections import Connections
from synmanager.backends.redis.faults import Failed
from synmanager.backends.redis.scripts import Script
from synmanager.backends.redis.shapes import Fits
from synmanager.errors import (
    BrokerUnavailable,
    LeaseLost,
    PublishInterrupted,
    PublishRefused,
    SynmanagerError,
    TopologyError,
    Unroutable,
)
from synmanager.message import Message
from synmanager.testing.steps import in_thread
from synmanager.trust import ClockTrust, _Seen

SPEC = QueueSpec("train", ExchangeSpec("exchange", "topic"), "key")
BASE = "{synmanager}:queue:train"


class Flaky(FakeConnection):
    """A connection whose answers can get lost: the command runs, and nobody hears of it.

    Attributes:
        loses: which commands' answers, from now on; told by what was sent.
    """

    loses: Callable[[bytes], bool] = staticmethod(lambda sent: False)

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        packed = b"".join(command)
        if type(self).loses(packed):
            super().send_packed_command(command, check_health)
            self.disconnect()  # type: ignore[no-untyped-call]
            raise redis.ConnectionError("reset by peer")
        super().send_packed_command(command, check_health)


class Broker:
    def __init__(self) -> None:
        self.server = new_server()
        self.foreigner = fakeredis.FakeRedis(server=self.server)
        self.connection = type("OwnFlaky", (Flaky,), {})

    def lose(self, *words: str, count: int = 1) -> None:
        """Lose the next answers to commands in which all the words are."""
        left = [count]

        def loses(sent: bytes) -> bool:
            if left[0] and all(word.encode() in sent for word in words):
                left[0] -= 1
                return True
            return False

        self.connection.loses = staticmethod(loses)  # type: ignore[attr-defined]

    def client(self, **address: Any) -> RedisBackend:
        client = RedisBackend(
            Address("redis", **address), partial(self.connection, server=self.server)
        )
        client.open()
        client.declare(SPEC)
        return client


@pytest.fixture
def broker() -> Broker:
    return Broker()


def messages(number: int, size: int = 2) -> list[Message]:
    return [Message(b"x" * size, id=f"id-{n}") for n in range(number)]


def publish(client: RedisBackend, batch: list[Message]) -> None:
    client.publish(SPEC.exchange.name, SPEC.routing_key, batch)


class TestLostAnswers:
    def test_a_publish_is_in_doubt_from_the_first_message_without_an_answer(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_CHUNK_MESSAGES", 3)
        client = broker.client()
        batch = messages(8)
        broker.lose("id-3")
        with pytest.raises(PublishInterrupted) as caught:
            publish(client, batch)
        assert list(caught.value.unconfirmed) == batch[3:]
        assert not client.is_open
        client.open()
        publish(client, list(caught.value.unconfirmed))
        assert client.count(SPEC.name).ready == 8

    def test_what_could_not_be_sent_is_not_in_doubt(self, broker: Broker) -> None:
        client = broker.client()
        assert client._connections is not None
        client._connections.forget_idle()
        broker.server.connected = False
        with pytest.raises(BrokerUnavailable) as caught:
            publish(client, messages(2))
        assert not isinstance(caught.value, PublishInterrupted)

    @pytest.mark.parametrize("refusal", ["OOM no room", "LOADING the data"])
    def test_what_a_server_refuses_is_not_in_doubt(
        self, broker: Broker, refusal: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = broker.client()
        parser: Any = redis._parsers.BaseParser
        error = parser.parse_error(refusal)
        monkeypatch.setattr(
            broker.connection, "read_response", lambda self, **kwargs: (_ for _ in ()).throw(error)
        )
        with pytest.raises(SynmanagerError) as caught:
            publish(client, messages(2))
        kind = PublishRefused if refusal.startswith("OOM") else BrokerUnavailable
        assert type(caught.value) is kind

    @pytest.mark.parametrize(
        ("settle", "left"),
        [
            (lambda client, delivery: client.ack(delivery), (0, 0, 0)),
            (lambda client, delivery: client.bury(delivery, "why"), (0, 0, 1)),
            (lambda client, delivery: client.nack(delivery), (1, 0, 0)),
            (lambda client, delivery: client.nack(delivery, delay=60), (0, 1, 0)),
        ],
        ids=["ack", "bury", "nack", "nack later"],
    )
    def test_a_settlement_whose_answer_was_lost_can_be_repeated(
        self, broker: Broker, settle: Any, left: tuple[int, int, int]
    ) -> None:
        client = broker.client()
        publish(client, messages(1))
        delivery = client.receive([SPEC.name], 0)
        assert delivery is not None
        broker.lose(delivery.receipt.lease)
        with pytest.raises(BrokerUnavailable):
            settle(client, delivery)
        assert not delivery.settled
        client.open()
        settle(client, delivery)
        assert delivery.settled
        counts = client.count(SPEC.name)
        assert (counts.ready, counts.delayed, counts.dead) == left
        assert counts.leased == 0

    def test_an_ack_whose_answer_was_to_be_the_next_job_can_be_repeated(
        self, broker: Broker
    ) -> None:
        client = broker.client()
        batch = messages(3)
        publish(client, batch)
        done = client.receive([SPEC.name], 0)
        assert done is not None
        broker.lose(done.receipt.lease)
        with pytest.raises(BrokerUnavailable):
            client.receive([SPEC.name], 0, done)
        assert not done.settled
        client.open()
        delivery = client.receive([SPEC.name], 0, done)
        assert done.settled
        assert delivery is not None
        assert (delivery.message.id, delivery.attempt) == (batch[1].id, 1)
        counts = client.count(SPEC.name)
        assert (counts.ready, counts.leased) == (1, 1)

    def test_an_ack_that_could_not_be_sent_is_sent_again(self, broker: Broker) -> None:
        client = broker.client()
        publish(client, messages(1))
        done = client.receive([SPEC.name], 0)
        assert done is not None
        assert client._connections is not None
        client._connections.forget_idle()
        broker.server.connected = False
        with pytest.raises(BrokerUnavailable):
            client.receive([SPEC.name], 0, done)
        broker.server.connected = True
        client.open()
        assert client.receive([SPEC.name], 0, done) is None
        assert done.settled
        assert client.count(SPEC.name) == Counts(0, 0, 0, 0)

    def test_an_ack_in_doubt_of_a_lease_that_is_another_s_is_lost(self, broker: Broker) -> None:
        client, other = broker.client(), broker.client()
        publish(client, messages(1))
        delivery = client.receive([SPEC.name], 0)
        assert delivery is not None
        delivery.receipt.in_doubt = True  # and it never arrived
        client.close()
        assert other.receive([SPEC.name], 0) is not None
        client.open()
        with pytest.raises(LeaseLost):
            client.ack(delivery)

    def test_a_delivery_that_never_arrived_is_given_back_uncounted(self, broker: Broker) -> None:
        client, other = broker.client(), broker.client()
        publish(client, messages(1))
        broker.lose(f"{client._name}-")
        with pytest.raises(BrokerUnavailable):
            client.receive([SPEC.name], 0)
        assert other.count(SPEC.name).leased == 1
        client.open()
        delivery = other.receive([SPEC.name], 0)
        assert delivery is not None
        assert delivery.attempt == 1

    def test_it_is_given_back_to_a_queue_whose_groups_were_destroyed(self, broker: Broker) -> None:
        client = broker.client()
        publish(client, messages(1))
        broker.lose(f"{client._name}-")
        with pytest.raises(BrokerUnavailable):
            client.receive([SPEC.name], 0)
        broker.foreigner.xgroup_destroy(f"{BASE}:normal", "synmanager")
        client.open()
        delivery = client.receive([SPEC.name], 0)
        assert delivery is not None
        assert delivery.attempt == 1

    def test_close_gives_back_what_never_arrived(self, broker: Broker) -> None:
        client, other = broker.client(), broker.client()
        publish(client, messages(1))
        broker.lose(f"{client._name}-")
        with pytest.raises(BrokerUnavailable):
            client.receive([SPEC.name], 0)
        client.close()
        delivery = other.receive([SPEC.name], 0)
        assert delivery is not None
        assert delivery.attempt == 1


class TestFinishAndLook:
    """An acknowledgement and the next job, in one call."""

    def finished(self, client: RedisBackend) -> Delivery:
        publish(client, messages(2))
        done = client.receive([SPEC.name], 0)
        assert done is not None
        return done

    def test_it_is_one_script(self, broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
        client = broker.client()
        done: Delivery | None = self.finished(client)
        calls: list[str] = []
        call = Connections.call

        def note_and_call(self: Connections, *command: Any, **more: Any) -> Any:
            calls.append(command[0])
            return call(self, *command, **more)

        monkeypatch.setattr(Connections, "call", note_and_call)
        for _ in range(2):
            done = client.receive([SPEC.name], 0, done)
        assert done is None
        assert calls == ["EVALSHA", "EVALSHA"]
        client.close()
        assert calls == ["EVALSHA", "EVALSHA"], "nothing is left to give back"

    @pytest.mark.parametrize("rank", ["high", "normal"])
    def test_a_group_that_was_destroyed_is_mended(self, broker: Broker, rank: str) -> None:
        client = broker.client()
        done = self.finished(client)
        broker.foreigner.xgroup_destroy(f"{BASE}:{rank}", "synmanager")
        delivery = client.receive([SPEC.name], 0, done)
        assert done.settled
        assert delivery is not None
        assert delivery.attempt == 1
        assert client.receive([SPEC.name], 0, delivery) is None
        assert client.count(SPEC.name) == Counts(0, 0, 0, 0)

    def test_what_is_wrong_with_the_next_queue_is_said_of_it(self, broker: Broker) -> None:
        client = broker.client()
        done = self.finished(client)
        broker.foreigner.set("{synmanager}:queue:other:due", "a string")
        with pytest.raises(TopologyError, match=r"queue 'other': .*:due' is of type string"):
            client.receive(["other"], 0, done)
        assert done.settled
        assert client.count(SPEC.name) == Counts(1, 0, 0, 0)

    def test_what_is_wrong_with_the_queue_before_is_said_of_it(self, broker: Broker) -> None:
        client = broker.client()
        done = self.finished(client)
        other = replace(SPEC, name="other", routing_key="another")
        client.declare(other)
        leases = broker.foreigner.dump(f"{BASE}:leases")
        assert leases is not None
        broker.foreigner.set(f"{BASE}:leases", "a string")
        with pytest.raises(TopologyError, match=r"queue 'train': .*:leases' is of type string"):
            client.receive([other.name], 0, done)
        assert not done.settled
        broker.foreigner.restore(f"{BASE}:leases", 0, leases, replace=True)
        assert client.receive([other.name], 0, done) is None
        assert done.settled


def held(client: RedisBackend) -> Delivery:
    publish(client, messages(1))
    delivery = client.receive([SPEC.name], 0)
    assert delivery is not None
    return delivery


USES: dict[str, Callable[[RedisBackend, Delivery], object]] = {
    "declare": lambda client, delivery: client.declare(SPEC),
    "publish": lambda client, delivery: publish(client, messages(2)),
    "receive": lambda client, delivery: client.receive([SPEC.name], 0),
    "wait": lambda client, delivery: client.receive([SPEC.name], 0.5),
    "finish and receive": lambda client, delivery: client.receive([SPEC.name], 0, delivery),
    "ack": lambda client, delivery: client.ack(delivery),
    "nack": lambda client, delivery: client.nack(delivery),
    "nack later": lambda client, delivery: client.nack(delivery, delay=60),
    "bury": lambda client, delivery: client.bury(delivery, "why"),
    "renew": lambda client, delivery: client.renew(delivery),
    "count": lambda client, delivery: client.count(SPEC.name),
    "purge": lambda client, delivery: client.purge(SPEC.name),
    "delete": lambda client, delivery: client.delete(SPEC.name, "nobody"),
    "dead_letters": lambda client, delivery: client.dead_letters(SPEC.name, 1),
    "redrive": lambda client, delivery: client.redrive(SPEC.name, 1),
    "purge_dead_letters": lambda client, delivery: client.purge_dead_letters(SPEC.name),
}


def error(text: str) -> Exception:
    parser: Any = redis._parsers.BaseParser
    made: Exception = parser.parse_error(text)
    return made


#: Answers that are none to what was asked, and a word that is said of each.
UNKNOWN: dict[str, tuple[Any, str]] = {
    "an error of a proxy's": (error("ERR backend on fire"), "on fire"),
    "an error without a code": (error(""), "not known"),
    "an error of a later version's": (error("HALT for the day"), "HALT"),
    "no longer the primary": (error("READONLY You can't write"), "primary"),
    "a slot that moved": (error("MOVED 1 10.0.0.1:6379"), "MOVED|another one"),
    "the end of a wait": (error("UNBLOCKED force unblock"), "UNBLOCKED|primary"),
    "no protocol": (redis.exceptions.InvalidResponse("Protocol Error: b'HTTP/1.1 503'"), "503"),
    "the answer before": (b"PONG", "PONG"),
    "nested": ([[[b"1"]], 2.5], "2.5"),
}


class TestAnswers:
    """What is not recognised on a connection that was open ends it, and nothing else."""

    @pytest.mark.parametrize("answer", UNKNOWN)
    @pytest.mark.parametrize("use", USES)
    def test_one_that_is_not_known_is_unavailable(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch, use: str, answer: str
    ) -> None:
        client = broker.client()
        delivery = held(client)
        given, word = UNKNOWN[answer]
        sound = [use] if use == "wait" else []  # the answer to its look; the bell's is not

        def read(connection: Any, **_: Any) -> Any:
            reply = FakeConnection.read_response(connection)
            if sound:
                sound.clear()
                return reply
            if isinstance(given, Exception):
                raise given
            return given

        with monkeypatch.context() as strange:
            strange.setattr(broker.connection, "read_response", read)
            with pytest.raises(BrokerUnavailable, match=word):
                USES[use](client, delivery)
        assert not client.is_open
        connections = client._connections
        assert connections is not None
        assert not connections._idle
        assert not connections._busy
        client.open()
        USES[use](client, delivery)
        if not delivery.settled:
            client.ack(delivery)

    @pytest.mark.parametrize("answer", ["OOM", "MISCONF", "NOREPLICAS"])
    @pytest.mark.parametrize("use", [use for use in USES if use != "publish"])
    def test_a_server_that_takes_no_writes_for_now_is_waited_for(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch, use: str, answer: str
    ) -> None:
        """On the same connection, and the delivery stays ours."""
        client = broker.client()
        delivery = held(client)

        def read(connection: Any, **_: Any) -> Any:
            raise error(f"{answer} no writes")

        def send(connection: Any, *_: Any) -> None:
            pass

        with monkeypatch.context() as full:
            full.setattr(broker.connection, "read_response", read)
            full.setattr(broker.connection, "send_packed_command", send)
            for _ in range(2):
                with pytest.raises(BrokerUnavailable, match="takes no writes"):
                    USES[use](client, delivery)
        assert client.is_open
        assert client.count(SPEC.name).leased == 1
        client.ack(delivery)
        assert client.count(SPEC.name) == Counts(0, 0, 0, 0)

    def test_a_batch_that_is_refused_half_way_says_what_was_not_accepted(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_CHUNK_MESSAGES", 3)
        client = broker.client()
        batch = messages(8)
        send = broker.connection.send_packed_command  # type: ignore[attr-defined]
        refused = []

        def send_or_refuse(connection: Any, command: Any, *rest: Any) -> None:
            send(connection, command, *rest)
            if b"id-3" in b"".join(command):
                refused.append(connection)

        def read(connection: Any, **options: Any) -> Any:
            if refused:
                raise error("OOM no room")
            return FakeConnection.read_response(connection, **options)

        monkeypatch.setattr(broker.connection, "send_packed_command", send_or_refuse)
        monkeypatch.setattr(broker.connection, "read_response", read)
        with pytest.raises(PublishRefused) as caught:
            publish(client, batch)
        assert list(caught.value.unconfirmed) == batch[3:]
        assert client.is_open

    def test_a_batch_whose_queue_is_gone_half_way_says_what_was_not_accepted(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_CHUNK_MESSAGES", 3)
        client = broker.client()
        batch = messages(8)
        run = Connections.run

        def run_and_unbind(self: Connections, *args: Any) -> Any:
            reply = run(self, *args)
            broker.foreigner.delete("{synmanager}:route:exchange:key")
            return reply

        monkeypatch.setattr(Connections, "run", run_and_unbind)
        with pytest.raises(Unroutable) as caught:
            publish(client, batch)
        assert list(caught.value.unconfirmed) == batch[3:]


class TestLosses:
    def test_it_says_that_the_job_may_be_done(self, broker: Broker) -> None:
        client, other = broker.client(), broker.client()
        delivery = held(client)
        broker.foreigner.delete(f"{BASE}:leases")
        other.declare(SPEC)
        again = other.receive([SPEC.name], 0)
        assert again is not None
        with pytest.raises(LeaseLost, match="another worker may hold it"):
            client.renew(delivery)
        other.ack(again)
        with pytest.raises(LeaseLost, match=r"settled since, .* answer was lost"):
            client.ack(delivery)

    def test_a_settlement_that_was_interrupted_is_in_doubt(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = broker.client()
        delivery = held(client)

        def interrupted(connection: Any, **options: Any) -> Any:
            FakeConnection.read_response(connection, **options)
            raise KeyboardInterrupt

        with monkeypatch.context() as context:
            context.setattr(broker.connection, "read_response", interrupted)
            with pytest.raises(KeyboardInterrupt):
                client.ack(delivery)
        client.ack(delivery)
        assert delivery.settled

    def test_a_delivery_whose_taker_was_interrupted_is_given_back_by_the_next_call(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = broker.client()
        publish(client, messages(1))

        def interrupted(connection: Any, **options: Any) -> Any:
            FakeConnection.read_response(connection, **options)
            raise KeyboardInterrupt

        with monkeypatch.context() as context:
            context.setattr(broker.connection, "read_response", interrupted)
            with pytest.raises(KeyboardInterrupt):
                client.receive([SPEC.name], 0)
        delivery = client.receive([SPEC.name], 0)
        assert delivery is not None
        assert delivery.attempt == 1


class TestIdentity:
    def test_what_is_another_s_is_not_deleted_forgotten_or_taken_for_it(
        self, broker: Broker
    ) -> None:
        """Strangers use an id that is queued; and the index points to another message."""
        client = broker.client()
        publish(client, [Message(b"ours", id="nightly")])
        for text in ("first", "second"):
            broker.foreigner.xadd(f"{BASE}:high", {"body": text, "id": "nightly"})
        for body in (b"first", b"second"):
            delivery = client.receive([SPEC.name], 0)
            assert delivery is not None
            assert (delivery.message.body, delivery.message.id) == (body, "nightly")
            client.ack(delivery)
        assert client.publish("exchange", "key", [Message(b"again", id="nightly")]) == 1
        place: Any = broker.foreigner.hget(f"{BASE}:ids", "nightly")
        broker.foreigner.hset(f"{BASE}:ids", "weekly", place)
        assert client.publish("exchange", "key", [Message(b"weekly", id="weekly")]) == 0
        broker.foreigner.hset(f"{BASE}:ids", "yearly", place)
        assert not client.delete(SPEC.name, "yearly")
        assert client.delete(SPEC.name, "nightly")
        assert client.count(SPEC.name).ready == 1


class TestOpening:
    def test_those_who_wait_for_one_that_fails_do_not_try_each_in_turn(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = broker.client()
        assert client._connections is not None
        client._connections.ready = False
        client._connections.forget_idle()
        frozen, nap = threading.Event(), time.sleep
        tries: list[Any] = []

        def freeze(connection: Any) -> Any:
            tries.append(connection)
            frozen.wait(10)
            raise redis.TimeoutError("Timeout connecting to server")

        waiting: set[int] = set()

        def wait(seconds: float) -> None:
            waiting.add(threading.get_ident())
            nap(seconds)

        monkeypatch.setattr(time, "sleep", wait)
        monkeypatch.setattr(broker.connection, "_connect", freeze)
        opening = [in_thread(client.open) for _ in range(16)]
        while len(waiting) < 15:
            nap(0.001)
        frozen.set()
        for future in opening:
            assert isinstance(future.exception(5), BrokerUnavailable)
        assert len(tries) == 1
        monkeypatch.undo()
        client.open()
        assert client.is_open


class TestClose:
    def test_a_frozen_server_is_left_without_a_goodbye(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client, other = broker.client(lease=30), broker.client()
        publish(client, messages(1))
        delivery = client.receive([SPEC.name], 0)
        assert delivery is not None
        limits: list[float] = []

        def freeze(connection: Any) -> Any:
            limits.append(max(connection.socket_timeout, connection.socket_connect_timeout))
            raise redis.TimeoutError("Timeout connecting to server")

        with monkeypatch.context() as frozen:
            frozen.setattr(broker.connection, "_connect", freeze)
            client.close()
        assert limits == [module._FAREWELL]
        # It is still leased there, and given back by who comes back, before it would end.
        assert other.count(SPEC.name).leased == 1
        client.open()
        with pytest.raises(LeaseLost):
            client.ack(delivery)
        assert other.count(SPEC.name).ready == 1

    def test_nothing_is_sent_where_nothing_is_held(self, broker: Broker) -> None:
        client = broker.client()
        broker.server.connected = False
        client.close()
        assert not client.is_open


class TestBatches:
    def test_a_script_takes_no_more_than_a_bounded_part(self, broker: Broker) -> None:
        def parts(batch: list[Message]) -> list[int]:
            starts = [start for start, _ in module._chunks(batch, ("a", "b", 0))]
            return [b - a for a, b in zip(starts, [*starts[1:], len(batch)], strict=True)]

        assert not list(module._chunks([], ("a", "b", 0)))
        assert parts(messages(1)) == [1]
        assert parts(messages(1200)) == [500, 500, 200]
        assert parts(messages(5, size=400 * 1024)) == [2, 2, 1]
        assert parts(messages(2, size=8 * 1024 * 1024)) == [1, 1]


class TestClock:
    def test_leases_that_all_look_expired_are_left_alone_by_a_newcomer(
        self, broker: Broker
    ) -> None:
        """As after a jump of the server's clock, by which every lease has run out."""
        holder, waiting = broker.client(lease=4), broker.client()
        publish(holder, messages(1))
        delivery = holder.receive([SPEC.name], 0)
        assert delivery is not None
        broker.foreigner.zadd(f"{BASE}:leases", {delivery.receipt.lease: 1})
        assert waiting.count(SPEC.name).leased == 1
        received = in_thread(waiting.receive, [SPEC.name], 0)
        holder.renew(delivery)
        assert received.result(30) is None

    def test_a_clock_that_jumped_takes_no_lease(self, broker: Broker) -> None:
        holder, waiting = broker.client(), broker.client()
        publish(holder, messages(1))
        delivery = holder.receive([SPEC.name], 0)
        assert delivery is not None
        broker.foreigner.zadd(f"{BASE}:leases", {delivery.receipt.lease: 1})
        waiting._trust = ClockTrust(60, lambda: time.monotonic() + 3600)
        waiting._trust._seen = _Seen(0.0, time.monotonic() + 3600, 0.0, 0.0)
        assert waiting.count(SPEC.name).leased == 1, "the clock is not what it should be"
        holder.ack(delivery)

    def test_the_lease_of_a_dead_worker_ends_soon_even_for_a_newcomer(self, broker: Broker) -> None:
        dead = broker.client(lease=0.3)
        publish(dead, messages(1))
        assert dead.receive([SPEC.name], 0)
        newcomer = broker.client(lease=3600)
        began = time.monotonic()
        assert newcomer.receive([SPEC.name], 10) is not None
        assert time.monotonic() - began < 8


class TestBell:
    def bells(self, broker: Broker) -> bytes:
        newest: Any = broker.foreigner.xrevrange(f"{BASE}:bell", count=1)
        return bytes(newest[0][0]) if newest else b""

    def test_it_rings_for_the_first_and_not_for_those_behind_it(self, broker: Broker) -> None:
        client = broker.client()
        publish(client, [Message(b"1")])
        rung = self.bells(broker)
        assert rung
        publish(client, [Message(b"2")])
        assert self.bells(broker) == rung, "who waited is on the way"
        for _ in range(2):
            assert client.receive([SPEC.name], 0)
        publish(client, [Message(b"3")])
        assert self.bells(broker) != rung, "what was ready is taken"


class TestServer:
    def connection(self, broker: Broker, info: bytes) -> Any:
        kind = type("Told", (FakeConnection,), {"info": info})
        return partial(kind, server=broker.server)

    @pytest.mark.parametrize(
        ("was", "told", "error", "word"),
        [
            (b"7.0.0", b"6.2.14", TopologyError, "6.2.14"),
            (b"7.0.0", b"", TopologyError, "unknown"),
            (b"noeviction", b"allkeys-lru", TopologyError, "noeviction"),
            (b"loading:0", b"loading:1", BrokerUnavailable, "loading"),
        ],
    )
    def test_one_that_cannot_be_trusted_with_jobs_is_refused(
        self, broker: Broker, was: bytes, told: bytes, error: type[Exception], word: str
    ) -> None:
        client = RedisBackend(Address("redis"), self.connection(broker, INFO.replace(was, told)))
        with pytest.raises(error, match=word):
            client.open()
        assert not client.is_open
        client.close()

    def test_one_that_confirms_before_it_writes_is_warned_of_once(
        self, broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checks, "_warned", set())
        info = INFO + b"aof_enabled:0\r\n"
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                client = RedisBackend(Address("redis"), self.connection(broker, info))
                client.open()
                client.close()
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "appendonly" in caplog.text

    @pytest.mark.parametrize(
        ("setting", "doubt"), [(b"always", ""), (b"everysec", "appendfsync everysec")]
    )
    def test_how_it_writes_is_asked_for(self, setting: bytes, doubt: str) -> None:
        assert checks._doubt(lambda *command, fits: [b"appendfsync", setting], {}) == doubt

    def test_one_that_does_not_tell_is_given_the_benefit_of_the_doubt(self) -> None:
        def refuses(*command: str, fits: Fits) -> Any:
            raise Failed(redis.exceptions.NoPermissionError("no permissions"), sent=True)

        assert checks._doubt(refuses, {"aof_enabled": "1"}) == ""


class TestDeclare:
    def test_what_exists_is_only_looked_at(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = broker.client()
        publish(client, messages(3))
        held = client.receive([SPEC.name], 0)
        assert held is not None
        seen: list[str] = []
        run = client._run

        def note_and_run(script: Script, *rest: Any) -> Any:
            seen.append(script.name)
            return run(script, *rest)

        monkeypatch.setattr(client, "_run", note_and_run)
        client.declare(SPEC)
        assert seen == ["declared"]

    @pytest.mark.parametrize("damage", ["group", "stream", "route", "lease"])
    def test_what_is_damaged_is_mended(self, broker: Broker, damage: str) -> None:
        client = broker.client()
        publish(client, messages(2))
        assert client.receive([SPEC.name], 0)
        if damage == "group":
            broker.foreigner.xgroup_destroy(f"{BASE}:normal", "synmanager")
        elif damage == "stream":
            broker.foreigner.delete(f"{BASE}:high")
        elif damage == "route":
            broker.foreigner.delete("{synmanager}:route:exchange:key")
        else:
            broker.foreigner.delete(f"{BASE}:leases")
        client.declare(SPEC)
        publish(client, [Message(b"next")])
        taken = []
        while delivery := client.receive([SPEC.name], 0):
            taken.append(delivery.message.id)
            client.ack(delivery)
        assert len(taken) == (3 if damage == "lease" else 2)


def test_a_delayed_job_is_never_due_early(broker: Broker) -> None:
    """The server's clock has microseconds, and due times have not."""
    client = broker.client()
    for number in range(20):
        seconds, micros = broker.foreigner.time()
        client.publish("exchange", "key", [Message(b"{}", id=str(number))], delay=60)
        last: Any = broker.foreigner.zrange(f"{BASE}:due", -1, -1, withscores=True)
        assert last[0][1] >= seconds * 1000 + micros / 1000 + 60_000

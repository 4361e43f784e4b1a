"""What the contract does not ask of every backend: lost answers, clocks, servers not to trust."""

from __future__ import annotations

import logging
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
from synmanager.backends.redis.scripts import Script
from synmanager.backends.redis.trust import ClockTrust
from synmanager.errors import (
    BrokerUnavailable,
    LeaseLost,
    PublishInterrupted,
    PublishRefused,
    SynmanagerError,
    TopologyError,
)
from synmanager.message import Message

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

        def note_and_call(self: Connections, *command: Any) -> Any:
            calls.append(command[0])
            return call(self, *command)

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
        with pytest.raises(TopologyError, match=r"queue 'other': .*WRONGTYPE"):
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
        with pytest.raises(TopologyError, match=r"queue 'train': .*WRONGTYPE"):
            client.receive([other.name], 0, done)
        assert not done.settled
        broker.foreigner.restore(f"{BASE}:leases", 0, leases, replace=True)
        assert client.receive([other.name], 0, done) is None
        assert done.settled


class TestClose:
    def test_a_frozen_server_is_left_without_a_goodbye(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client, other = broker.client(lease=0.3), broker.client()
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
        holder, waiting = broker.client(lease=0.6), broker.client()
        publish(holder, messages(1))
        delivery = holder.receive([SPEC.name], 0)
        assert delivery is not None
        broker.foreigner.zadd(f"{BASE}:leases", {delivery.receipt.lease: 1})
        assert waiting.count(SPEC.name).leased == 1
        assert waiting.receive([SPEC.name], 0.05) is None
        holder.renew(delivery)
        assert waiting.receive([SPEC.name], 0.1) is None

    def test_a_clock_that_jumped_takes_no_lease(self, broker: Broker) -> None:
        holder, waiting = broker.client(), broker.client()
        publish(holder, messages(1))
        delivery = holder.receive([SPEC.name], 0)
        assert delivery is not None
        broker.foreigner.zadd(f"{BASE}:leases", {delivery.receipt.lease: 1})
        waiting._trust = ClockTrust(60, lambda: time.monotonic() + 3600)
        waiting._trust._since, waiting._trust._last = 0.0, time.monotonic() + 3600
        assert waiting.receive([SPEC.name], 0) is None, "the clock is not what it should be"
        holder.ack(delivery)

    def test_the_lease_of_a_dead_worker_ends_soon_even_for_a_newcomer(self, broker: Broker) -> None:
        dead = broker.client(lease=0.3)
        publish(dead, messages(1))
        assert dead.receive([SPEC.name], 0)
        newcomer = broker.client(lease=3600)
        began = time.monotonic()
        assert newcomer.receive([SPEC.name], 10) is not None
        assert time.monotonic() - began < 2


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
        assert checks._doubt(lambda *command: [b"appendfsync", setting], {}) == doubt

    def test_one_that_does_not_tell_is_given_the_benefit_of_the_doubt(self) -> None:
        def refuses(*command: str) -> Any:
            raise redis.exceptions.NoPermissionError("no permissions")

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

"""Where the primary is: what an address means, and what Sentinels answer. No server."""

from __future__ import annotations

import socket
import socketserver
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from synmanager.backends import Address, create_backend
from synmanager.backends.redis.dialling import FollowedPlain
from synmanager.backends.redis.guides import Nodes, Sentinels
from synmanager.backends.redis.options import (
    connection_options,
    guide_options,
    place,
    primary_name,
    replicas_of,
    silence,
)
from synmanager.errors import AccessRefused, ConfigurationError
from synmanager.settings import parse_url

SENTINEL = "redis+sentinel://me:pw@a,b:7,[::1]/grid/3?sentinel_username=s&sentinel_password=canary"


def test_a_primary_that_sentinels_know() -> None:
    address = parse_url(SENTINEL)
    options = connection_options(address)
    assert (options["db"], options["username"], options["password"]) == (3, "me", "pw")
    assert "host" not in options
    asking = guide_options(address)
    assert (primary_name(address), asking["db"]) == ("grid", 0)
    assert (asking["username"], asking["password"]) == ("s", "canary")
    assert place(address) == "grid (Sentinels a:26379,b:7,[::1]:26379)"
    assert "canary" not in f"{address!r} {address.safe_url} {place(address)}"


def test_a_primary_may_be_called_by_a_number() -> None:
    address = parse_url("redis+sentinel://a/7/0")
    assert (primary_name(address), connection_options(address)["db"]) == ("7", 0)


def test_a_lease_says_how_soon_a_silent_server_is_asked_about() -> None:
    assert silence(Address("redis+sentinel", lease=6.0)) < 1
    assert silence(Address("redis+sentinel")) == 3


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis+sentinel://a,b", "name that the Sentinels have"),
        ("redis+sentinel://a,b/0", "name that the Sentinels have.*/mymaster/0"),
        ("redis+sentinel://a,b/0/", "name that the Sentinels have.*/mymaster/0"),
        ("redis+sentinel://a,b/grid/x", "number of a database, such as /mymaster/0"),
        ("redis+sentinel://a,b/grid?cafile=/ca.pem", "rediss.sentinel"),
        ("valkey+sentinel://a,b/grid?cafile=/ca.pem", "valkeys.sentinel"),
        ("redis+cluster://a,b/1", "no other database"),
        ("valkey+cluster://a,b/?cafile=/ca.pem", "valkeys.cluster"),
        ("redis+cluster://a,b/?sentinel_username=x", "no option"),
        ("valkey://a/0?cafile=/ca.pem", "valkeys://"),
        ("valkey://a,b/0", "one server"),
        ("redis://a/0?sentinel_password=x", "no option"),
        ("redis://a/0?replicas=many", "a whole number"),
        ("unix://host/run/redis.sock", "has no host"),
        ("unix://", "server's socket"),
        ("unix:///run/redis.sock?db=x", "number of a database, such as db=0"),
        ("unix:///run/redis.sock?cafile=/ca.pem", "no option"),
    ],
)
def test_what_can_never_work_is_refused_at_once(url: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        create_backend(parse_url(url))


def test_a_socket_and_how_many_replicas() -> None:
    address = parse_url("unix://me:pw@/run/redis.sock?db=4&replicas=2")
    options = connection_options(address)
    assert (options["path"], options["db"], options["username"]) == ("/run/redis.sock", 4, "me")
    assert (place(address), replicas_of(address)) == ("/run/redis.sock", 2)
    assert replicas_of(parse_url("valkey://localhost")) == 0


class Sentinel:
    """A connection to one, which answers what ``answers`` has for its host."""

    def __init__(self, answers: dict[str, Any], host: str) -> None:
        self.answer = answers[host]
        self.is_open = False

    def connect(self) -> None:
        if not self.is_open and isinstance(self.answer, OSError):
            raise self.answer
        self.is_open = True

    def send_command(self, *words: str) -> None:
        assert words == ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "grid")

    def read_response(self) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def disconnect(self) -> None:
        self.is_open = False


def sentinels(answers: dict[str, Any]) -> tuple[Sentinels, list[Sentinel]]:
    made: list[Sentinel] = []

    def connect(host: str, port: int) -> Sentinel:
        assert port == 26379
        made.append(Sentinel(answers, host))
        return made[-1]

    return Sentinels(connect, [(host, None) for host in answers], "grid"), made


@pytest.mark.parametrize(
    "other", [OSError("down"), redis.AuthenticationError("no"), None, [b"1"], b"OK"]
)
def test_one_sentinel_that_knows_is_enough(other: Any) -> None:
    asked, made = sentinels({"a": other, "b": [b"10.0.0.1", b"6380"], "c": other})
    for _ in range(20):
        assert asked.locate() == ("10.0.0.1", 6380)
    assert not any(connection.is_open for connection in made)


def test_if_none_knows_the_reason_is_told() -> None:
    with pytest.raises(redis.ConnectionError, match="knows no primary 'grid'"):
        sentinels({"a": None})[0].locate()
    with pytest.raises(OSError, match="down"):
        sentinels({"a": OSError("down")})[0].locate()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(now=100.0)
    made.monotonic = lambda: made.now
    monkeypatch.setattr("synmanager.backends.redis.guides.time", made)
    return made


def test_who_waits_asks_the_same_one_on_one_connection_for_a_while(clock: SimpleNamespace) -> None:
    place = [b"10.0.0.1", b"6380"]
    asked, made = sentinels(dict.fromkeys("abc", place))
    guide = None
    for _ in range(60):
        found, guide = asked.locate_again(guide)
        assert found == ("10.0.0.1", 6380)
        assert [connection.is_open for connection in made].count(True) == 1
        clock.now += 5.0
    assert len(made) == 10


@pytest.mark.parametrize("answer", [OSError("gone"), redis.TimeoutError("silent"), None])
def test_who_does_not_know_any_more_is_asked_no_longer(answer: Any) -> None:
    asked, made = sentinels({host: [b"10.0.0.1", b"6380"] for host in "ab"})
    _, guide = asked.locate_again(None)
    first = made[-1]
    first.answer = answer
    for _ in range(2):
        found, guide = asked.locate_again(guide)
        assert found == ("10.0.0.1", 6380)
    assert [connection.is_open for connection in made] == [False, True]


class Refusing(socketserver.StreamRequestHandler):
    """Answers every command but a library's ``CLIENT SETINFO`` by the same error."""

    answer = b""

    def handle(self) -> None:
        while words := [self.rfile.readline() for _ in range(2 * int(self._count() or 0))]:
            self.wfile.write(b"+OK\r\n" if b"CLIENT\r\n" in words else self.answer)

    def _count(self) -> bytes:
        return self.rfile.readline()[1:]


@pytest.mark.parametrize(
    ("url", "answer", "words"),
    [
        (
            "redis+sentinel://me:pw@127.0.0.1:{}/grid/0?sentinel_username=s&sentinel_password=pw",
            "-WRONGPASS invalid username-password pair or user is disabled.",
            "a Sentinel of grid .Sentinels .*sentinel_username= and sentinel_password=",
        ),
        (
            "redis+sentinel://me:pw@127.0.0.1:{}/grid/0",
            "-NOAUTH Authentication required.",
            "a Sentinel of grid .*sentinel_username= and sentinel_password=",
        ),
        (
            "redis+sentinel://127.0.0.1:{}/grid/0",
            "-ERR unknown command 'SENTINEL', with args beginning with: 'GET-MASTER-ADDR-BY-NAME'",
            r"is no Sentinel; name the Sentinels.*leave \+sentinel",
        ),
        (
            "redis+sentinel://127.0.0.1:{}/grid/0",
            "-ERR unknown command `SENTINEL`, with args beginning with: `GET-MASTER-ADDR-BY-NAME`",
            "is no Sentinel",
        ),
        (
            "redis+cluster://127.0.0.1:{}/",
            "-ERR This instance has cluster support disabled",
            r"is no node of a cluster; leave \+cluster",
        ),
        (
            "redis+cluster://127.0.0.1:{}/",
            "-ERR unknown command 'CLUSTER', with args beginning with: 'SLOTS'",
            "is no node of a cluster.*Sentinel",
        ),
        (
            "redis+cluster://me:pw@127.0.0.1:{}/",
            "-NOPERM User me has no permissions to run the 'cluster|slots' command",
            "the cluster of 127.0.0.1.*check user, password and ACL",
        ),
    ],
)
def test_who_cannot_tell_where_the_server_is(url: str, answer: str, words: str) -> None:
    handler = type("Handler", (Refusing,), {"answer": f"{answer}\r\n".encode()})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        backend = create_backend(parse_url(url.format(server.server_address[1])))
        try:
            with pytest.raises(AccessRefused, match=words) as refused:
                backend.open()
        finally:
            backend.close()
            server.shutdown()
            thread.join()
    assert "pw" not in str(refused.value)


def test_a_silent_server_is_left_when_another_one_is_the_primary() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # whose kernel lets clients in
        places = [*3 * [silent.getsockname()], ("127.0.0.1", 1)]
        asked: list[Sentinel] = []

        class Told(Sentinels):
            def _ask(self, connection: Any, host: str) -> tuple[str, int]:
                asked.append(connection)
                if len(asked) == 2:
                    raise redis.ConnectionError("no Sentinel answers")
                host, port = places[min(len(asked), 4) - 1]
                return host, port

        connection = FollowedPlain(
            guides=Told(lambda host, port: Sentinel({"a": None}, host), [("a", None)], "grid"),
            silence=0.05,
            socket_timeout=60.0,
            socket_connect_timeout=5.0,
            db=1,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            with pytest.raises(redis.ConnectionError, match=r"primary is now at 127\.0\.0\.1:1"):
                connection.connect()
        finally:
            connection.disconnect()
    assert len({id(connection) for connection in asked}) == 4, "another one each time"


def test_the_node_of_a_cluster_that_serves_our_slot() -> None:
    slot = key_slot(b"synmanager")
    others = [0, slot - 1, [b"10.0.0.1", 1, b"id"]]

    class Node(Sentinel):
        def send_command(self, *words: str) -> None:
            assert words == ("CLUSTER", "SLOTS")

    def node(named: bytes, slots: list[Any]) -> Nodes:
        answer = [others, [slots[0], slots[1], [named, 7, b"id"], [b"10.0.0.9", 9, b"replica"]]]
        return Nodes(
            lambda host, _: Node({"seed": answer}, host), [("seed", None)], "{synmanager}:queues"
        )

    assert node(b"10.0.0.2", [slot, 16383]).locate() == ("10.0.0.2", 7)
    assert node(b"", [slot, slot]).locate() == ("seed", 7)
    with pytest.raises(redis.ConnectionError, match=f"nobody who serves slot {slot}"):
        node(b"10.0.0.2", [slot + 1, 16383]).locate()

"""A replica that is missing is asked whether it has been promoted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from redis import exceptions as redis_errors

from synmanager.backends.redis.rivals import Rivals

OURS, NEWER, NONE = "a" * 40, "b" * 40, "0" * 40
FIRST, SECOND = ("10.0.0.1", 6379), ("10.0.0.2", 6379)


def said(
    *online: tuple[str, int],
    role: str = "master",
    now: str = OURS,
    was: str = NONE,
    uptime: int = 1_000_000,
) -> bytes:
    """As ``INFO`` says it."""
    slaves = [
        f"slave{number}:ip={host},port={port},state=online,offset=14,lag=0"
        for number, (host, port) in enumerate(online)
    ]
    head, tail = [f"role:{role}"], [f"master_replid:{now}", f"master_replid2:{was}"]
    server = [f"uptime_in_seconds:{uptime}", "# Replication"]
    return "\r\n".join([*server, *head, *slaves, *tail, ""]).encode()


class Servers:
    """What each place says; who says nothing is gone.

    Attributes:
        asked: the places, in their order.
    """

    def __init__(self) -> None:
        self.says: dict[tuple[str, int], Any] = {}
        self.asked: list[tuple[str, int]] = []

    def __call__(self, host: str, port: int) -> Any:
        servers, place = self, (host, port)

        class Connection:
            def connect(self) -> None:
                servers.asked.append(place)
                if place not in servers.says:
                    raise redis_errors.ConnectionError("refused")

            def send_command(self, *words: str) -> None:
                assert words == ("INFO",)

            def read_response(self) -> Any:
                if isinstance(servers.says[place], Exception):
                    raise servers.says[place]
                return servers.says[place]

            def disconnect(self) -> None:
                pass

        return Connection()


@pytest.fixture
def servers() -> Servers:
    return Servers()


def test_nobody_is_asked_while_all_are_there(servers: Servers) -> None:
    known = Rivals(servers, [FIRST])
    known.check(said(FIRST))
    known.check(said(FIRST, SECOND))
    known.check(said(SECOND, FIRST))
    assert servers.asked == []


def test_who_continues_our_history_is_the_primary_now(servers: Servers) -> None:
    known = Rivals(servers, [])
    known.check(said(FIRST, SECOND))
    servers.says[FIRST] = said(now=NEWER, was=OURS)
    with pytest.raises(redis_errors.ConnectionError, match=r"10\.0\.0\.1:6379 is the primary now"):
        known.check(said(SECOND))
    assert servers.asked == [FIRST]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(said(role="slave"), id="it comes back"),
        pytest.param(said(now=NEWER), id="it was the primary before us"),
        pytest.param(said(now=NEWER, was=OURS, uptime=0), id="it was started anew"),
        pytest.param(said(role="slave", now=NEWER, was=OURS), id="it follows somebody"),
        pytest.param(None, id="nonsense"),
    ],
)
def test_who_does_not_is_no_rival(servers: Servers, answer: Any) -> None:
    known = Rivals(servers, [FIRST, SECOND])
    servers.says[FIRST] = answer
    for _ in range(2):  # each time: a moment later it may be one
        known.check(said(SECOND))
    assert servers.asked == [FIRST, FIRST]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(now=100.0)
    made.monotonic = lambda: made.now
    monkeypatch.setattr("synmanager.backends.redis.rivals.time", made)
    return made


def test_who_is_gone_is_asked_again_ever_later(servers: Servers, clock: SimpleNamespace) -> None:
    known = Rivals(servers, [FIRST, SECOND])
    for _ in range(1000):
        known.check(said(SECOND))
        clock.now += 0.1
    assert 6 <= len(servers.asked) <= 9
    servers.says[FIRST] = said(now=NEWER, was=OURS)
    clock.now += 30.0
    with pytest.raises(redis_errors.ConnectionError):
        known.check(said(SECOND))


def test_who_says_nothing_may_be_busy_with_being_promoted(
    servers: Servers, clock: SimpleNamespace
) -> None:
    known = Rivals(servers, [FIRST, SECOND])
    servers.says[FIRST] = redis_errors.TimeoutError("no answer")
    for _ in range(3):
        with pytest.raises(redis_errors.ConnectionError, match="says nothing"):
            known.check(said(SECOND))
        clock.now += 1.0
    known.check(said(SECOND))


def test_who_says_nothing_is_gone_soon_however_often_we_connect_meanwhile(
    servers: Servers, clock: SimpleNamespace
) -> None:
    servers.says[FIRST] = redis_errors.TimeoutError("no answer")
    known = None
    for _ in range(3):
        known = Rivals(servers, [FIRST, SECOND], known)
        with pytest.raises(redis_errors.ConnectionError, match="says nothing"):
            known.check(said(SECOND))
        clock.now += 1.0
    Rivals(servers, [FIRST, SECOND], known).check(said(SECOND))


@pytest.mark.parametrize("is_asked", [True, False])
def test_who_was_there_in_between_may_be_busy_again(
    servers: Servers, clock: SimpleNamespace, is_asked: bool
) -> None:
    known = Rivals(servers, [FIRST, SECOND])
    silence = servers.says[FIRST] = redis_errors.TimeoutError("no answer")
    with pytest.raises(redis_errors.ConnectionError, match="says nothing"):
        known.check(said(SECOND))
    servers.says[FIRST] = said(role="slave")
    known.check(said(SECOND) if is_asked else said(FIRST))
    servers.says[FIRST] = silence
    clock.now += 10.0
    with pytest.raises(redis_errors.ConnectionError, match="says nothing"):
        known.check(said(SECOND))


def test_those_that_have_left_for_good_are_forgotten_once_all_are_there(servers: Servers) -> None:
    known = Rivals(servers, [("replica-1", 6379)])
    known.check(said(FIRST))
    known.check(said())
    assert servers.asked == [FIRST]


def test_names_of_the_sentinels_may_differ_from_the_servers(servers: Servers) -> None:
    first, second = ("replica-1", 6379), ("replica-2", 6379)
    servers.says = {first: said(now=NEWER, was=OURS), second: said(role="slave")}
    Rivals(servers, [first, second]).check(said(FIRST, SECOND))
    assert servers.asked == []
    with pytest.raises(redis_errors.ConnectionError):
        Rivals(servers, [first, second]).check(said(SECOND))


def test_a_server_that_has_become_a_replica_confirms_nothing(servers: Servers) -> None:
    with pytest.raises(redis_errors.ConnectionError, match="become a replica"):
        Rivals(servers, []).check(said(role="slave"))


def test_what_a_signal_handler_raises_passes_through(servers: Servers) -> None:
    def connect(host: str, port: int) -> Any:
        raise KeyboardInterrupt

    known = Rivals(connect, [FIRST])
    with pytest.raises(KeyboardInterrupt):
        known.check(said())

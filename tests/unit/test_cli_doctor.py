"""``synmanager doctor``: what would hurt, in words, and an exit status by how much."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from grid import Grid

from synmanager import checks
from synmanager.backends import Address, Counts, Facts, Features
from synmanager.backends.memory import MemoryBackend
from synmanager.backends.rabbitmq.management import Node
from synmanager.backends.registry import create_backend
from synmanager.checks import CHECKS, Finding, Seen, Severity
from synmanager.cli import main
from synmanager.errors import BrokerUnavailable, SynmanagerError, TopologyError
from synmanager.phases import PHASES
from synmanager.settings import load_settings, parse_url

Captured = pytest.CaptureFixture[str]

GIB = 1024**3

FEATURES = Features(
    durable=True, shared=True, timed_lease=True, deduplicates=True, deletes=True,
    counts_leased=True, counts_delayed=True, ranks_foreign=True,
)  # fmt: skip

GOOD: Mapping[str, Any] = {"x-queue-type": "classic", "x-max-priority": 9, "durable": True}


#: A node of RabbitMQ with room.
ROOMY = Node("rabbit@a", (), GIB, 2 * GIB, 9 * GIB, GIB)


def rabbitmq(version: str, **arguments: Any) -> Facts:
    queues = {phase.queue: {**GOOD, **arguments} for phase in PHASES.values()}
    return Facts("RabbitMQ", version, consumers={}, arguments=queues)


def redis(**settings: str) -> Facts:
    sound = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
    return Facts("Redis", "8.0.6", settings={**sound, **settings})


def found(
    facts: Facts, address: Address | None = None, *, longest: float = 86_400.0, **counts: Counts
) -> list[Finding]:
    """What all checks say of a broker that is sound but for this."""
    every = {phase.queue: Counts(0, 0, 0, 0) for phase in PHASES.values()} | counts
    address = address or Address("amqps", "mq.example")
    seen = Seen(address, facts, FEATURES, every, longest)
    return [finding for check in CHECKS for finding in check(seen)]


@pytest.fixture(autouse=True)
def guest(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Where guest is let in; nothing is connected to."""
    open_at: dict[str, bool] = {}

    def lets_in(address: Address) -> bool:
        assert (address.username, address.password) == ("guest", "guest")
        assert not address.others  # else it is not known who has let us in
        return open_at.get(address.host or "", False)

    monkeypatch.setattr(checks, "_lets_in", lets_in)
    monkeypatch.setattr(checks, "_own_address", lambda: "10.0.0.7")
    monkeypatch.setattr(checks, "_copies", lambda _: {})
    monkeypatch.setattr(checks, "_nodes", lambda _: [ROOMY])
    return open_at


def test_nothing_hurts_on_a_sound_broker() -> None:
    assert found(rabbitmq("4.3.6")) == []
    assert found(redis(), Address("rediss", "mq.example", username="a", password="b")) == []
    assert found(redis(), Address("redis", "127.0.0.1")) == []


@pytest.mark.parametrize(
    ("facts", "severity", "words"),
    [
        (rabbitmq("3.10.8"), Severity.WARNING, "community support of this series ended"),
        (rabbitmq("3.10.8"), Severity.WARNING, "30 minutes unless its configuration"),
        (rabbitmq("4.0.5"), Severity.WARNING, "30 minutes unless the configuration"),
        (
            rabbitmq("4.0.5", **{"x-consumer-timeout": 3_600_000}), Severity.WARNING,
            "not done after 60 minutes, and your longest takes 24 h",
        ),
        (rabbitmq("4.3.6", **{"x-max-priority": 0}), Severity.WARNING, "cannot rank"),
        (rabbitmq("4.3.6", **{"x-message-ttl": 60}), Severity.DANGER, "by x-message-ttl"),
        (rabbitmq("4.3.6", **{"x-max-length": 60}), Severity.DANGER, "by x-max-length"),
        (rabbitmq("4.3.6", durable=False), Severity.DANGER, "by not being durable"),
        (rabbitmq("4.3.6", **{"x-queue-type": "stream"}), Severity.DANGER, "is a stream"),
        (redis(appendonly="no"), Severity.DANGER, "appendonly no"),
        (redis(appendfsync="everysec"), Severity.WARNING, "appendfsync everysec"),
        (redis(**{"maxmemory-policy": "allkeys-lru"}), Severity.DANGER, "allkeys-lru"),
    ],
)  # fmt: skip
def test_what_hurts(facts: Facts, severity: Severity, words: str) -> None:
    (finding,) = [each for each in found(facts) if words in each.what][:1]
    assert finding.severity is severity
    assert finding.remedy


def test_an_acknowledgement_timeout_that_is_long_enough() -> None:
    patient = rabbitmq("4.0.5", **{"x-consumer-timeout": 7 * 86_400_000})
    assert not [each for each in found(patient) if "not done after" in each.what]
    assert [each for each in found(patient, longest=8 * 86_400) if "not done after" in each.what]


@pytest.mark.parametrize("version", ["4.0.5", "4.3.6"])
def test_a_quorum_queue_ranks_or_has_sisters(version: str) -> None:
    ranks = rabbitmq(version, **{"x-queue-type": "quorum", "x-max-priority": 0,
                                 "x-consumer-timeout": 7 * 86_400_000})  # fmt: skip
    assert not [each for each in found(ranks) if "support" not in each.what]


def test_guest_from_the_network(guest: dict[str, bool]) -> None:
    guest["mq.example"] = True
    (finding,) = found(rabbitmq("4.3.6"))
    assert finding.severity is Severity.DANGER
    assert "mq.example is let in as guest" in finding.what


def test_guest_of_a_broker_on_this_machine(guest: dict[str, bool]) -> None:
    local = Address("amqp", "localhost")
    guest["localhost"] = True  # which is as it should be
    assert found(rabbitmq("4.3.6"), local) == []
    guest["10.0.0.7"] = True
    (finding,) = found(rabbitmq("4.3.6"), local)
    assert "10.0.0.7 is let in as guest" in finding.what


def test_guest_at_each_host_of_a_url(
    guest: dict[str, bool], nodes: dict[str, Facts | SynmanagerError]
) -> None:
    here = Address("amqps", "localhost", 5672, others=(("127.0.0.1", 5673), ("mq.example", None)))
    nodes.update({host: node() for host, _ in here.hosts})
    guest["localhost"] = guest["127.0.0.1"] = True
    assert not [each for each in found(rabbitmq("4.3.6"), here) if "guest" in each.what]
    guest["mq.example"] = True
    (finding,) = [each for each in found(rabbitmq("4.3.6"), here) if "guest" in each.what]
    assert "reaches mq.example is let in" in finding.what
    guest["10.0.0.7"] = True
    (finding,) = [each for each in found(rabbitmq("4.3.6"), here) if "guest" in each.what]
    assert "reaches 10.0.0.7 or mq.example is let in" in finding.what


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Facts | SynmanagerError]:
    """What each host answers that a URL names."""
    there: dict[str, Facts | SynmanagerError] = {}
    monkeypatch.setattr(checks, "_visit", lambda address: there[address.host])
    return there


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """On how many nodes a queue lies, and how many of those run; nobody tells unless it is set."""
    there: dict[str, tuple[int, int]] = {}
    monkeypatch.setattr(checks, "_copies", lambda _: there)
    return there


THREE = Address("amqps", "a", others=(("b", 5673), ("c", None)))

RANKED = {"x-queue-type": "quorum", "x-max-priority": 0, "x-consumer-timeout": 7 * 86_400_000}


def node(cluster: str = "grid") -> Facts:
    return Facts("RabbitMQ", "4.3.6", settings={"cluster_name": cluster})


def test_the_nodes_that_a_url_names(
    nodes: dict[str, Facts | SynmanagerError], copies: dict[str, tuple[int, int]]
) -> None:
    nodes.update(a=node(), b=node(), c=node())
    assert found(rabbitmq("4.3.6", **RANKED), THREE) == []
    nodes["b"] = BrokerUnavailable("RabbitMQ at b:5673 answers nothing")
    (finding,) = found(rabbitmq("4.3.6", **RANKED), THREE)
    assert finding.severity is Severity.WARNING
    assert finding.what.startswith("b:5673 does not let us in")
    assert "answers nothing" in finding.what
    nodes["b"] = node("another")
    (finding,) = found(rabbitmq("4.3.6", **RANKED), THREE)
    assert finding.severity is Severity.DANGER
    assert "different clusters (a and c of grid; b:5673 of another)" in finding.what


def test_queues_on_one_node_where_several_are_meant(
    nodes: dict[str, Facts | SynmanagerError], copies: dict[str, tuple[int, int]]
) -> None:
    nodes.update(a=node(), b=node(), c=node())
    (finding,) = found(rabbitmq("4.3.6"), THREE)
    assert "on one node alone: the queues preprocess, train, evaluate, completed" in finding.what
    quorum = Address("amqps", "a", options={"queues": "quorum"})
    (finding,) = found(rabbitmq("4.3.6"), quorum)
    assert "on one node alone" in finding.what


@pytest.mark.parametrize(
    ("nodes", "severity", "words"),
    [
        ((1, 1), Severity.WARNING, "a quorum queue on 1 node, and outlives the loss of none"),
        ((2, 2), Severity.WARNING, "a quorum queue on 2 nodes, and outlives the loss of none"),
        ((3, 2), Severity.DANGER, "2 of its 3 nodes, and outlives the loss of no other"),
        ((5, 4), Severity.WARNING, "4 of its 5 nodes, and outlives the loss of 1 more"),
        ((3, 3), None, ""),
    ],
)
def test_how_many_nodes_a_quorum_queue_has(
    nodes: tuple[int, int],
    severity: Severity | None,
    words: str,
    copies: dict[str, tuple[int, int]],
) -> None:
    copies.update({"train": nodes, "somebody's": (1, 1)})
    findings = found(rabbitmq("4.3.6", **RANKED))
    assert [each.severity for each in findings] == ([] if severity is None else [severity])
    assert all(words in each.what for each in findings)


def test_replicas_that_a_url_counts_on() -> None:
    one = Address("redis", "localhost", options={"replicas": "1"})
    assert found(redis(connected_slaves="1"), one) == []
    (finding,) = found(redis(connected_slaves="0"), one)
    assert finding.severity is Severity.DANGER
    assert "asks for 1 replicas, and Redis has 0" in finding.what


@pytest.mark.parametrize(
    ("scheme", "word"),
    [("rediss+sentinel", "SENTINEL REPLICAS"), ("valkeys+cluster", "CLUSTER REPLICATE")],
)
def test_a_primary_that_nobody_can_follow(scheme: str, word: str) -> None:
    address = Address(scheme, "s1", username="a", password="b")
    assert found(redis(connected_slaves="1"), address) == []
    (finding,) = found(redis(connected_slaves="0"), address)
    assert finding.severity is Severity.WARNING
    assert "nothing can take over" in finding.what
    assert word in finding.remedy


@pytest.mark.parametrize(
    ("room", "words"),
    [
        ({"memory": (80 * GIB, 100 * GIB)}, None),
        ({"memory": (95 * GIB, 100 * GIB)}, "5.0 GiB of memory left, and takes 95.0 GiB"),
        ({"memory": (101 * GIB, 100 * GIB)}, "0 B of memory left"),
        ({"disk": (95 * GIB, 100 * GIB)}, None),
        ({"disk": (2**20, 2**20 + GIB // 2)}, "512.0 MiB of disk left, and takes 1.0 MiB"),
    ],
)
def test_room_that_is_left(room: dict[str, tuple[int, int]], words: str | None) -> None:
    findings = found(Facts("a broker", room=room), Address("nats"))
    assert [each.severity for each in findings] == ([] if words is None else [Severity.WARNING])
    assert all(str(words) in each.what for each in findings)


@pytest.mark.parametrize(
    ("node", "severity", "words"),
    [
        (ROOMY, None, ""),
        (
            Node("a", ("memory", "disk"), 3 * GIB, 2 * GIB, 0, GIB),
            Severity.DANGER,
            "the node a accepts no jobs and no results: its alarm for memory and disk has gone off "
            "(3.0 GiB of 2.0 GiB of memory taken, 0 B of disk free, where it stops at 1.0 GiB)",
        ),
        (Node("a", (), 99 * GIB, 100 * GIB, 9 * GIB, GIB), Severity.WARNING, "99.0 GiB of 100.0"),
        (Node("a", (), 0, 2 * GIB, GIB, GIB // 2), Severity.WARNING, "stops at 512.0 MiB"),
    ],
)
def test_pressure_on_a_node(
    node: Node, severity: Severity | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "_nodes", lambda _: [node])
    findings = found(rabbitmq("4.3.6"))
    assert [each.severity for each in findings] == ([] if severity is None else [severity])
    assert all(words in each.what for each in findings)


def pressure(address: Address, facts: Facts) -> dict[str, str]:
    return Seen(address, facts, FEATURES, {}, 1.0).pressure


def test_how_much_room_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Address("amqps", "mq.example")
    assert pressure(here, rabbitmq("4.3.6")) == {
        "memory": "1.0 GiB of 2.0 GiB", "disk": "9.0 GiB free, alarm at 1.0 GiB", "alarms": "none",
    }  # fmt: skip
    full = Node("rabbit@b", ("memory", "disk"), 3 * GIB, 2 * GIB, 0, GIB)
    monkeypatch.setattr(checks, "_nodes", lambda _: [ROOMY, full])
    both = pressure(here, rabbitmq("4.3.6"))
    assert both["memory of rabbit@a"] == "1.0 GiB of 2.0 GiB"
    assert both["alarms of rabbit@b"] == "memory, disk"
    assert pressure(Address("kombu+amqp", "mq.example"), rabbitmq("4.3.6")) == {}
    room = Facts("Redis", "8.0.6", room={"memory": (GIB // 2, 4 * GIB)})
    assert pressure(Address("redis"), room) == {"memory": "512.0 MiB of 4.0 GiB"}


def test_nobody_tells_how_much_room_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_nodes", lambda _: [])
    (finding,) = found(rabbitmq("4.3.6"))
    assert finding.severity is Severity.NOTE
    assert "whether an alarm has gone off" in finding.what
    assert "rabbitmq_management" in finding.remedy
    assert found(rabbitmq("4.3.6"), Address("kombu+amqps", "mq.example")) == []
    assert pressure(Address("amqps", "mq.example"), rabbitmq("4.3.6")) == {}


def test_room_in_a_file(tmp_path: Path) -> None:
    backend = create_backend(load_settings(url=f"sqlite:///{tmp_path}/jobs.db").address)
    backend.open()
    try:
        seen = checks.look(backend, 1.0)
    finally:
        backend.close()
    taken, most = seen.facts.room["disk"]
    assert (tmp_path / "jobs.db").stat().st_size <= taken <= most
    assert re.fullmatch(r"[\d.]+ [KMG]iB of [\d.]+ [KMGT]iB", seen.pressure["disk"])


def test_no_encryption_and_no_password_off_loopback() -> None:
    words = [each.what for each in found(redis(), Address("redis", "mq.example"))]
    assert any("without a password" in each for each in words)
    assert any("unencrypted" in each for each in words)


@pytest.mark.parametrize(
    ("url", "hosts", "scheme"),
    [
        ("amqp://u:p@far/", "far", "amqps"),
        ("amqp://u:p@127.0.0.1,far:5673,[::1],[fe80::1]/", "far and fe80::1", "amqps"),
        ("valkey://u:p@far", "far", "valkeys"),
        ("redis+sentinel://u:p@localhost,far/grid/0", "far", "rediss+sentinel"),
        ("valkey+cluster://u:p@far:1,far:2", "far", "valkeys+cluster"),
        ("kombu+redis://u:p@far", "far", "kombu+rediss"),
        ("amqp://u:p@127.0.0.1,localhost/", None, ""),
        ("amqps://u:p@far/", None, ""),
        ("rediss+sentinel://u:p@far/grid/0", None, ""),
        ("kombu+sqs://u:p@far", None, ""),
    ],
)
def test_what_travels_unencrypted(url: str, hosts: str | None, scheme: str) -> None:
    findings = list(checks.no_tls(Seen(parse_url(url), Facts(), FEATURES, {}, 1.0)))
    assert [each.what for each in findings] == (
        [] if hosts is None else [f"jobs and passwords travel to {hosts} unencrypted"]
    )
    assert all(f"Use {scheme}://" in each.remedy for each in findings)


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("rediss+cluster://localhost,far:7,near/", "far or near"),
        ("rediss+sentinel://s1/grid/0", "the primary that the Sentinels at s1 name"),
        ("rediss+sentinel://s1/grid/0?sentinel_password=x", "Sentinels at s1 name"),
        ("rediss+cluster://localhost,[::1]/", None),
        ("rediss+sentinel://:pw@s1/grid/0", None),
    ],
)
def test_a_server_without_a_password(url: str, where: str | None) -> None:
    findings = list(checks.open_redis(Seen(parse_url(url), redis(), FEATURES, {}, 1.0)))
    assert len(findings) == (where is not None)
    assert all(f"{where} is let in without" in each.what for each in findings)


def test_results_that_nobody_reads() -> None:
    (finding,) = found(rabbitmq("4.3.6"), completed=Counts(5000, None, None, 0))
    assert "5,000 results wait in completed, and nobody reads them" in finding.what
    assert found(rabbitmq("4.3.6"), completed=Counts(5000, 1, None, 0)) == []


def doctor(url: str, capsys: Captured, *options: str) -> tuple[int, str]:
    status = main(["doctor", "--backend", url, *options])
    return status, capsys.readouterr().out


def test_on_a_broker(grid: Grid, capsys: Captured) -> None:
    status, shown = doctor(grid.url, capsys)
    assert status == 3
    assert "may hurt: jobs are in memory alone" in shown
    assert "note: not there yet: the queues preprocess, train, evaluate, completed" in shown
    assert grid.broker.queues == {}
    status, shown = doctor(grid.url, capsys, "--json")
    assert (status, [each["severity"] for each in json.loads(shown)]) == (3, ["warning", "note"])


def test_nothing_hurts(grid: Grid, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryBackend, "features", FEATURES)
    grid.client()
    status, shown = doctor(grid.url, capsys)
    assert (status, shown) == (0, "synmanager's memory\n\nnothing hurts\n")


def test_a_broker_that_cannot_be_used(
    grid: Grid, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object) -> None:
        raise TopologyError("it would throw jobs away: allkeys-lru")

    monkeypatch.setattr(MemoryBackend, "open", refuse)
    status, shown = doctor(grid.url, capsys)
    assert status == 4
    assert shown.startswith("\nDANGER: it would throw jobs away: allkeys-lru\n")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_check_is_silent_about_what_nobody_tells(
    check: Callable[[Seen], Iterator[Finding]],
) -> None:
    every = {phase.queue: Counts(0, None, None, 0) for phase in PHASES.values()}
    assert list(check(Seen(Address("nats"), Facts(), FEATURES, every, 86_400.0))) == []

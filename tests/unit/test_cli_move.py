"""``synmanager move``: nothing is lost on the way, whatever happens there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grid import Grid, until

import synmanager
from synmanager.archiver import Archiver
from synmanager.backends import DeadLetter, QueueBackend, create_backend, memory
from synmanager.cli import main
from synmanager.cli.broker import are_one_broker
from synmanager.errors import BrokerUnavailable
from synmanager.message import Message, Rank, encode
from synmanager.phases import PHASES
from synmanager.settings import parse_url

Captured = pytest.CaptureFixture[str]

TRAIN = PHASES["train"]
KILLS = 10


@pytest.fixture
def goal() -> Iterator[Grid]:
    made = Grid()
    yield made
    made.close()


def letter(number: int, queue: str = "train") -> DeadLetter:
    message = Message(encode({"run": number}), f"dead-{number}", Rank.LOW, 1.0)
    return DeadLetter(message, queue, f"why {number}", 5, 1764094604.5 + number, "the end of it")


def move(grid: Grid, goal: Grid, *options: str) -> int:
    return main(["move", "--from", grid.url, "--to", goal.url, *options])


def test_all_of_a_queue(grid: Grid, goal: Grid, capsys: Captured) -> None:
    sent = [grid.put({"run": n}, rank=rank) for n in range(3) for rank in Rank]
    before = grid.ready("train")
    assert len(before) == len(sent)
    grid.producer().submit({"later": 1}, delay=3600, job_id="later")
    grid.client().add_letters("train", [letter(n) for n in range(250)])
    assert move(grid, goal) == 0
    assert goal.ready("train") == before
    assert goal.count() == {"ready": 9, "delayed": 1, "dead": 250}
    assert grid.count() == {}
    (delayed,) = goal.client().delayed("train", 10)
    assert delayed.message.id == "later"
    assert 3500 < delayed.seconds <= 3600
    assert goal.client().dead_letters("train", 300) == [letter(n) for n in range(250)]
    shown = capsys.readouterr()
    assert "train: 9 ready, 1 delayed, 250 dead\n" in shown.out
    assert shown.err == f"from: {grid.url}\nto: {goal.url}\n"


def test_results_go_to_their_own_subscriber_alone(grid: Grid, goal: Grid) -> None:
    for made in (grid, goal):
        Archiver(print, "audit", url=made.url).subscribe()
        Archiver(print, "other", url=made.url).subscribe()
    grid.put({"loss": 1}, phase="completed")
    grid.client().purge("completed-other")
    assert move(grid, goal) == 0
    assert [len(goal.ready(f"completed{name}")) for name in ("", "-audit", "-other")] == [1, 1, 0]


def test_one_phase(grid: Grid, goal: Grid, capsys: Captured) -> None:
    grid.put({}, phase="train")
    grid.put({}, phase="evaluate")
    assert move(grid, goal, "--phase", "evaluate", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown == {"evaluate": {"ready": 1, "delayed": 0, "dead": 0, "left": 0}}
    assert grid.count("train") == {"ready": 1}


def test_says_what_is_still_running(
    grid: Grid, goal: Grid, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synmanager.cli.move._LEASE", 0.1)
    grid.put({"run": 1}, {"run": 2})
    assert grid.client().receive(["train"], 0) is not None
    assert move(grid, goal) == 0
    assert "train: 1 ready, 0 delayed, 0 dead; 1 still run there" in capsys.readouterr().out
    assert grid.count() == {"leased": 1}


def test_a_broker_that_leaves(
    grid: Grid, goal: Grid, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = grid.put({"run": 1}, {"run": 2}, {"run": 3})
    kind = type(create_backend(parse_url(goal.url)))
    publish = kind.publish
    calls: list[Any] = []

    def leave(self: Any, *arguments: Any, **options: Any) -> int:
        calls.append(arguments)
        if len(calls) == 2:
            raise BrokerUnavailable("planted")
        return publish(self, *arguments, **options)

    monkeypatch.setattr(kind, "publish", leave)
    assert move(grid, goal) == 1
    assert capsys.readouterr().err.endswith("synmanager: planted\n")
    assert move(grid, goal) == 0
    assert [message.id for message in goal.ready("train")] == [message.id for message in sent]
    assert grid.count() == {}


def test_dead_letters_that_are_there_already_come_once(grid: Grid, goal: Grid) -> None:
    grid.client().add_letters("train", [letter(1), letter(2)])
    goal.client().add_letters("train", [letter(1)])  # as after a kill before they were removed
    assert move(grid, goal) == 0
    assert [each.message.id for each in goal.client().dead_letters("train", 9)] == [
        "dead-1", "dead-2",
    ]  # fmt: skip


def opened(url: str) -> QueueBackend:
    backend = create_backend(parse_url(url))
    backend.open()
    backend.declare(*(phase.spec for phase in PHASES.values()))
    return backend


def test_killed_ten_times_on_its_way(tmp_path: Path) -> None:
    urls = [f"sqlite:///{tmp_path}/{name}.db" for name in ("here", "there")]
    origin, goal = map(opened, urls)
    jobs = [Message(encode({"run": n}), f"job-{n}") for n in range(400)]
    late = [Message(encode({"run": n}), f"late-{n}") for n in range(20)]
    origin.publish(TRAIN.exchange.name, TRAIN.routing_key, jobs)
    origin.publish(TRAIN.exchange.name, TRAIN.routing_key, late, delay=86_400)
    origin.add_letters("train", [letter(n) for n in range(20)])

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "synmanager", "move", "--from", urls[0], "--to", urls[1]],
            cwd=Path(synmanager.__file__).parents[1],
            env={**os.environ, "SYNMANAGER_LEASE": "0.5"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def carried() -> int:
        counts = goal.count("train")
        return counts.ready + (counts.delayed or 0) + counts.dead

    for _ in range(KILLS):
        before = carried()
        process = start()
        until(lambda before=before: carried() > before + 5)  # type: ignore[misc]
        assert process.poll() is None, "there was not enough to carry"
        process.kill()
        process.wait()
    assert start().wait(60) == 0

    counts = origin.count("train")
    assert (counts.ready, counts.leased, counts.delayed, counts.dead) == (0, 0, 0, 0)
    assert {each.message.id for each in goal.delayed("train", 99)} == {each.id for each in late}
    letters = goal.dead_letters("train", 99)
    assert sorted(each.message.id for each in letters) == sorted(f"dead-{n}" for n in range(20))
    arrived = []
    while (delivery := goal.receive(["train"], 0)) is not None:
        arrived.append(delivery.message.id)
    assert sorted(arrived) == sorted(job.id for job in jobs)
    origin.close()
    goal.close()


def test_a_broker_is_not_moved_onto_itself_by_another_name(
    tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "alias").symlink_to(tmp_path)
    here, there = f"sqlite:///{tmp_path}/jobs.db", f"sqlite:///{tmp_path}/alias/jobs.db"
    assert main(["submit", "train", "run=1", "--backend", here]) == 0
    assert main(["move", "--from", here, "--to", there]) == 2
    assert "the same broker" in capsys.readouterr().err
    assert main(["status", "--json", "--backend", here]) == 0
    status = json.loads(capsys.readouterr().out)
    assert status["queues"]["train"]["ready"] == 1


def test_nor_by_an_address_that_does_not_tell(
    grid: Grid, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.setitem(memory._brokers, "tunnel", grid.broker)
    grid.put({})
    assert main(["move", "--from", grid.url, "--to", "memory:///tunnel"]) == 1
    assert "the same broker; nothing was moved" in capsys.readouterr().err
    assert grid.count() == {"ready": 1}


@pytest.mark.parametrize(
    ("one", "other", "are_one"),
    [
        ("amqp://localhost", "amqp://127.0.0.1:5672/", True),
        ("amqp://a@localhost/grid", "amqps://b@LOCALHOST./grid", True),
        ("amqp://localhost/%2F", "amqp://localhost", True),
        ("amqp://localhost", "amqp://localhost/ranked", False),
        ("amqp://localhost", "amqp://localhost:5673", False),
        ("redis://localhost", "rediss://127.0.0.1/0?prefix=synmanager", True),
        ("redis://localhost", "redis://localhost/1", False),
        ("redis://localhost", "redis://localhost?prefix=other", False),
        ("redis://127.0.0.1", "redis://127.0.0.2", False),
        ("redis://localhost", "amqp://localhost", False),
        ("memory", "memory:///other", False),
        ("sqlite:///jobs.db", "sqlite:///./jobs.db?mkdir=true", True),
        ("kombu+sqs://me:x@", "kombu+sqs://you:x@", False),
    ],
)
def test_which_addresses_are_one_broker(one: str, other: str, are_one: bool) -> None:
    assert are_one_broker(parse_url(one), parse_url(other)) is are_one
    assert are_one_broker(parse_url(other), parse_url(one)) is are_one


def test_nothing_is_put_into_a_memory_that_ends_with_the_command(
    grid: Grid, capsys: Captured
) -> None:
    grid.put({})
    nobody_s = f"{grid.url}-nobody"
    assert main(["move", "--from", grid.url, "--to", nobody_s]) == 1
    assert grid.count() == {"ready": 1}
    assert main(["submit", "train", "run=1", "--backend", nobody_s]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("would be gone when it ends") == 2


def test_a_subscriber_that_is_named_is_moved_alone(grid: Grid, goal: Grid) -> None:
    Archiver(print, "audit", url=grid.url).subscribe()
    grid.put({}, phase="completed")
    grid.put({})
    assert move(grid, goal, "--subscriber", "audit") == 0
    assert goal.count("completed-audit") == {"ready": 1}
    assert grid.count("completed-audit") == {}
    assert (grid.count(), grid.count("completed")) == ({"ready": 1}, {"ready": 1})

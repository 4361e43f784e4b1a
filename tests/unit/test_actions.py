"""Redrives, edits and purges, as the journal tells of them, whoever did them and from where."""

from __future__ import annotations

import getpass
import json
from typing import Any

import pytest
from grid import Grid

from synmanager import Archiver, Jobs, Reject, Worker
from synmanager.backends import Entry
from synmanager.backends.memory import MemoryBackend
from synmanager.cli import main
from synmanager.errors import AccessRefused, BrokerUnavailable
from synmanager.journal.actions import acted, record
from synmanager.journal.events import EVENTS, Event, read
from synmanager.journal.fold import Fold, State
from synmanager.journal.recorder import flush_all
from synmanager.journal.tally import Tally

Captured = pytest.CaptureFixture[str]


def die(grid: Grid, *ids: str) -> None:
    producer = grid.producer()
    for each in ids:
        producer.submit({"run": 1}, job_id=each)

    def reject(run: int) -> None:
        raise Reject("no")

    Worker({"train": reject}, url=grid.url).run(burst=True)
    flush_all()


def actions(grid: Grid) -> list[Event]:
    entries = grid.client().replay(EVENTS)
    events = [event for entry in entries for event in read(entry.data)]
    return [event for event in events if event.type.startswith("action.")]


def get(grid: Grid, job_id: str) -> State:
    with Jobs(url=grid.url) as jobs:
        found = jobs.get(job_id)
    assert found is not None
    return found


def states(grid: Grid, *ids: str) -> list[str]:
    return [get(grid, each).state for each in ids]


class TestFromAShell:
    def test_a_redrive(self, grid: Grid, capsys: Captured) -> None:
        die(grid, "job-a", "job-b")
        assert main(["dead", "redrive", "job-a", "--yes", "--backend", grid.url]) == 0
        (event,) = actions(grid)
        assert (event.type, event.data["ids"]) == ("action.redrive", ["job-a"])
        assert (event.data["queue"], event.data["number"]) == ("train", 1)
        assert event.data["who"].startswith(f"{getpass.getuser()}@")
        job = get(grid, "job-a")
        assert (job.state, job.attempt, job.finished_at) == ("queued", 0, None)
        assert job.reason == f"put back by {event.data['who']}"
        assert states(grid, "job-b") == ["dead"]
        Worker({"train": lambda run: None}, url=grid.url).run(burst=True)
        assert states(grid, "job-a", "job-b") == ["succeeded", "dead"]

    def test_its_timeline_shows_it(self, grid: Grid, capsys: Captured) -> None:
        die(grid, "job-a", "job-b")
        main(["dead", "redrive", "job-a", "--yes", "--backend", grid.url])
        capsys.readouterr()
        shown = {}
        for each in ("job-a", "job-b"):
            assert main(["job", each, "--json", "--backend", grid.url]) == 0
            events = json.loads(capsys.readouterr().out)["events"]
            shown[each] = [event["type"].removeprefix("synmanager.") for event in events]
        assert shown["job-a"][-2:] == ["job.died", "action.redrive"]
        assert shown["job-b"][-1] == "job.died"

    def test_a_timeline_costs_one_reading(
        self, grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        die(grid, "job-a")
        begun: list[Any] = []
        replay = MemoryBackend.replay

        def counted(self: MemoryBackend, log: str, after: Any = 0.0, **how: Any) -> list[Entry]:
            begun.extend([log] * (after == 0.0))
            return replay(self, log, after, **how)

        monkeypatch.setattr(MemoryBackend, "replay", counted)
        assert main(["job", "job-a", "--backend", grid.url]) == 0
        assert begun == [EVENTS]

    def test_an_edit_that_puts_back(self, grid: Grid) -> None:
        die(grid, "job-a", "job-b")
        edit = ["dead", "edit", "--job", '{"run": 2}', "--backend", grid.url]
        assert main([*edit, "job-a"]) == 0
        assert states(grid, "job-a") == ["dead"]
        assert main([*edit, "job-b", "--redrive"]) == 0
        assert states(grid, "job-b") == ["queued"]
        assert [event.data["redriven"] for event in actions(grid)] == [0, 1]

    def test_an_edit_that_is_half_done(self, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(*_: object) -> int:
            raise BrokerUnavailable("gone")

        die(grid, "job-a")
        monkeypatch.setattr(MemoryBackend, "redrive_letters", fails)
        edit = ["dead", "edit", "--job", '{"run": 2}', "--redrive", "--backend", grid.url]
        assert main([*edit, "job-a"]) != 0
        (event,) = actions(grid)
        assert (event.type, event.data["redriven"]) == ("action.edit", 0)

    def test_a_purge_of_dead_letters(self, grid: Grid) -> None:
        die(grid, "job-a")
        assert main(["dead", "purge", "--all", "--yes", "--backend", grid.url]) == 0
        (event,) = actions(grid)
        assert (event.type, event.data["ids"]) == ("action.purge", ["job-a"])
        assert states(grid, "job-a") == ["dead"]

    def test_a_purge_of_a_queue(self, grid: Grid, capsys: Captured) -> None:
        die(grid, "died")
        producer = grid.producer()
        producer.submit({}, job_id="waits")
        producer.submit({}, job_id="delayed", delay=60)
        grid.producer("evaluate").submit({}, job_id="elsewhere")
        flush_all()
        assert main(["purge", "train", "--yes", "--backend", grid.url]) == 0
        assert states(grid, "died", "waits", "delayed", "elsewhere") == [
            "dead", "cancelled", "cancelled", "queued"
        ]  # fmt: skip
        assert "purged from its queue by" in str(get(grid, "waits").reason)
        producer.submit({}, job_id="waits")
        assert states(grid, "waits") == ["queued"]
        capsys.readouterr()
        main(["job", "delayed", "--json", "--backend", grid.url])
        kinds = [event["type"] for event in json.loads(capsys.readouterr().out)["events"]]
        assert kinds[-1] == "synmanager.action.purge_queue"

    def test_nothing_is_said_where_the_journal_is_off(
        self, grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        die(grid, "job-a")
        monkeypatch.setenv("SYNMANAGER_JOURNAL", "off")
        assert main(["dead", "redrive", "--all", "--yes", "--backend", grid.url]) == 0
        assert actions(grid) == []

    def test_a_subscriber_s_letters(self, grid: Grid, capsys: Captured) -> None:
        archiver = Archiver(lambda run: None, "audit", url=grid.url)
        archiver.subscribe()
        grid.put({"wrong": 1}, {"wrong": 2}, phase="completed")
        archiver.run(burst=True)
        of = ["--subscriber", "audit", "--backend", grid.url]
        assert main(["dead", "list", "--each", "--json", *of]) == 0
        letters = json.loads(capsys.readouterr().out)
        assert [letter["job"] for letter in letters] == [{"wrong": 1}, {"wrong": 2}]
        first, second = (letter["id"] for letter in letters)
        assert main(["dead", "show", first, *of]) == 0
        assert "cannot take it" in capsys.readouterr().out
        assert main(["dead", "redrive", first, "--yes", *of]) == 0
        assert grid.count("completed-audit") == {"ready": 1, "dead": 1}
        assert main(["dead", "purge", second, "--yes", *of]) == 0
        assert grid.count("completed-audit") == {"ready": 1}
        assert [(event.type, event.data["queue"]) for event in actions(grid)] == [
            ("action.redrive", "completed-audit"), ("action.purge", "completed-audit")
        ]  # fmt: skip


class TestFromAProgram:
    def test_an_operator_s_redrive_means_the_oldest(self, grid: Grid) -> None:
        die(grid, "job-a")
        die(grid, "job-b")
        consumer = grid.consumer()
        assert consumer.redrive(1) == 1
        consumer.disconnect()
        assert states(grid, "job-a", "job-b") == ["queued", "dead"]

    def test_its_purges(self, grid: Grid) -> None:
        die(grid, "job-a")
        grid.producer().submit({}, job_id="job-b")
        flush_all()
        consumer = grid.consumer()
        consumer.purge()
        consumer.purge_dead_letters()
        consumer.redrive()  # of nothing
        consumer.disconnect()
        assert states(grid, "job-a", "job-b") == ["dead", "cancelled"]
        assert [event.type for event in actions(grid)] == ["action.purge_queue", "action.purge"]

    def test_an_archiver_s(self, grid: Grid) -> None:
        archiver = Archiver(lambda run: None, "audit", url=grid.url)
        archiver.subscribe()
        grid.put({"wrong": 1}, phase="completed")
        archiver.run(burst=True)
        archiver.redrive()
        archiver.unsubscribe()
        assert [(event.type, event.data["number"]) for event in actions(grid)] == [
            ("action.redrive", 1), ("action.unsubscribe", 1)
        ]  # fmt: skip


class TestEvents:
    def test_many_ids_are_several_events(self) -> None:
        ids = [f"job-{number:04}" for number in range(1_200)]
        events = acted("redrive", "me", 1.0, 1_190, ids, queue="train")
        assert [len(event.data["ids"]) for event in events] == [500, 500, 200]
        assert [event.data["number"] for event in events] == [500, 500, 190]
        assert acted("redrive", "me", 1.0, 0, ids) == []

    def test_that_nobody_can_write_it_undoes_nothing(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        def call(write: Any) -> None:
            raise AccessRefused("not for you")

        record(call, acted("purge", "me", 1.0, 1, queue="train"))
        assert "not recorded: action.purge" in caplog.text

    def test_what_died_since_is_not_put_back(self) -> None:
        fold = _fold_of_dead(("first", 10.0), ("second", 30.0))
        fold.apply(_redrive(20.0, number=5))
        assert [fold.jobs["train", each].state for each in ("first", "second")] == [
            "queued", "dead"
        ]  # fmt: skip

    def test_what_strangers_write_changes_nothing(self) -> None:
        fold = _fold_of_dead(("first", 10.0))
        for data in ({}, {"number": "x"}, {"number": 1, "queue": 7}, {"number": 1, "ids": [{}]}):
            fold.apply(Event("action.redrive", "me", 20.0, "", data))
        assert fold.jobs["train", "first"].state == "dead"

    def test_the_metrics_follow(self) -> None:
        tally = Tally(_fold_of_dead(("first", 10.0)), ("train",))
        tally.apply(_redrive(20.0, number=1))
        assert tally.ready(21.0) == {("train", "normal"): 1}
        data = {"who": "me", "number": 1, "queue": "train", "delayed": True}
        tally.apply(Event("action.purge_queue", "me", 30.0, "", data))
        assert tally.ready(31.0) == {}
        assert tally.ended["train", "cancelled"] == 1


def _fold_of_dead(*dead: tuple[str, float]) -> Fold:
    fold = Fold()
    for job_id, at in dead:
        about = {"id": job_id, "phase": "train", "submitted_at": 1.0, "rank": "normal"}
        fold.apply(Event("job.died", "w", at, f"train/{job_id}", {**about, "attempt": 1}))
    return fold


def _redrive(at: float, number: int) -> Event:
    return Event("action.redrive", "me", at, "", {"who": "me", "number": number, "queue": "train"})

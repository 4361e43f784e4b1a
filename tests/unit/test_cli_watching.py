"""``synmanager jobs``, ``job``, ``why``, ``cancel``, ``workers`` and ``events``."""

from __future__ import annotations

import io
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from grid import Grid, in_thread

from synmanager import Retry, Worker, current_job
from synmanager.cli import main
from synmanager.journal import marks, recorder
from synmanager.journal.events import EVENTS, Event, write

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNMANAGER_JOURNAL", "on")
    monkeypatch.setattr(marks, "PATIENCE", 5.0)


@pytest.fixture
def running(grid: Grid) -> Iterator[None]:
    """A job ``run-1`` that is half done, on a worker with a tag."""
    begun, go = threading.Event(), threading.Event()

    def train(**kwargs: Any) -> None:
        job = current_job()
        assert job is not None
        job.progress(1, total=2, text="half\x1b[2J", loss=0.5)
        recorder.flush_all(5)
        begun.set()
        assert go.wait(30)

    grid.producer().submit({}, job_id="run-1")
    worker = Worker({"train": train}, url=grid.url, tags={"gpu"})
    join = in_thread(worker.run)
    assert begun.wait(30)
    yield
    go.set()
    worker.stop()
    join()


def run(grid: Grid, *arguments: str) -> int:
    return main([*arguments, "--backend", grid.url])


def answer(grid: Grid, capsys: Captured, *arguments: str) -> Any:
    capsys.readouterr()
    assert run(grid, *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.usefixtures("running")
def test_a_running_job_is_seen(grid: Grid, capsys: Captured) -> None:
    grid.producer().submit({}, job_id="run-2")
    assert run(grid, "jobs") == 0
    first, second = capsys.readouterr().out.splitlines()[1:]
    assert first.startswith("run-1")
    assert "[##########..........] 50% half\\x1b[2J loss=0.5" in first
    assert second.split()[:3] == ["run-2", "train", "queued"]
    found = answer(grid, capsys, "jobs")["jobs"]
    assert [(each["id"], each["state"]) for each in found] == [
        ("run-1", "running"),
        ("run-2", "queued"),
    ]
    assert found[0]["progress"]["figures"] == {"loss": 0.5}
    (worker,) = answer(grid, capsys, "workers")["workers"]
    assert (worker["tags"], worker["job"]) == (["gpu"], ["train", "run-1"])
    assert run(grid, "workers") == 0
    assert "run-1 of train" in capsys.readouterr().out
    assert run(grid, "why", "run-2") == 0
    assert "number 1 of train" in capsys.readouterr().out


def test_a_job_has_a_timeline(grid: Grid, capsys: Captured) -> None:
    def fail(**kwargs: Any) -> None:
        raise ZeroDivisionError("planted")

    job_id, _ = grid.producer().submit_many([{"run": 1}, {"run": 2}])
    Worker({"train": fail}, url=grid.url, max_attempts=1).run(max_jobs=1)
    recorder.flush_all(5)
    found = answer(grid, capsys, "job", job_id)
    assert found["state"] == "dead"
    types = [event["type"] for event in found["events"]]
    assert types[0] == "synmanager.job.submitted"
    assert types[-1] == "synmanager.job.died"
    assert run(grid, "job", job_id) == 0
    shown = capsys.readouterr().out
    assert "dead: it was given up " in shown
    assert "ZeroDivisionError: planted" in shown
    assert "job.died" in shown


def test_a_line_of_a_timeline_is_for_people(grid: Grid, capsys: Captured) -> None:
    def train(**kwargs: Any) -> None:
        job = current_job()
        assert job is not None
        job.progress(1)
        raise Retry(delay=3600)

    grid.producer().submit({}, job_id="run-1")
    Worker({"train": train}, url=grid.url).run(max_jobs=1)
    recorder.flush_all(5)
    assert run(grid, "job", "run-1") == 0
    shown = capsys.readouterr().out
    assert "done=1" in shown
    assert "null" not in shown
    assert re.search(r'due_at="\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"', shown)


def test_a_time_that_is_none_is_shown_as_it_is(grid: Grid, capsys: Captured) -> None:
    event = Event("job.retried", "x", 1.0, "train/run-1", {"due_at": 1e300})
    grid.client().record(EVENTS, [write(event)])
    assert run(grid, "events") == 0
    assert "due_at=1e+300" in capsys.readouterr().out


def test_a_job_that_waits_is_cancelled(grid: Grid, capsys: Captured) -> None:
    grid.producer().submit({}, job_id="run-1")
    assert run(grid, "cancel", "run-1") == 1  # nobody answers
    assert answer(grid, capsys, "cancel", "run-1", "--yes") == {"asked": ["run-1"]}
    ran: list[object] = []
    Worker({"train": lambda **kwargs: ran.append(kwargs)}, url=grid.url).run(burst=True)
    recorder.flush_all(5)
    assert ran == []
    assert answer(grid, capsys, "job", "run-1")["state"] == "cancelled"


def test_cancelling_says_whom_it_does_not_reach(grid: Grid, capsys: Captured) -> None:
    grid.producer().submit({}, job_id="run-1")
    Worker({"train": lambda **kwargs: None}, url=grid.url).run(burst=True)
    grid.producer().submit({}, job_id="run-2")
    recorder.flush_all(5)
    capsys.readouterr()
    assert run(grid, "cancel", "run-1", "run-2", "run-3", "--yes") == 0
    said = capsys.readouterr()
    assert "run-1: it succeeded" in said.err
    assert "does not know run-3" in said.err
    assert "run-2" not in said.err
    assert "SYNMANAGER_JOURNAL=off" in said.out


def test_events_as_they_were(grid: Grid, capsys: Captured) -> None:
    grid.producer().submit({}, job_id="run-1")
    recorder.flush_all(5)
    assert run(grid, "events", "--json") == 0
    (event,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert set(event) == {"specversion", "id", "source", "type", "time", "subject", "data"}
    assert (event["type"], event["data"]["ids"]) == ("synmanager.job.submitted", ["run-1"])
    assert run(grid, "events", "--since", "3600") == 0
    assert "job.submitted" in capsys.readouterr().out


def test_what_is_not_known_says_what_to_do(grid: Grid, capsys: Captured) -> None:
    for command in ("jobs", "workers", "events"):
        assert run(grid, command) == 0
        assert "SYNMANAGER_JOURNAL=off" in capsys.readouterr().out
    for command in ("job", "why"):
        assert run(grid, command, "nobody\x1b") == 1
        said = capsys.readouterr().err
        assert "SYNMANAGER_JOURNAL=off" in said
        assert "\x1b" not in said


def test_no_worker_and_no_journal_are_two_things(grid: Grid, capsys: Captured) -> None:
    grid.producer().submit({}, job_id="run-1")
    recorder.flush_all(5)
    assert run(grid, "workers") == 0
    assert "no worker" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["why", "job"])
def test_a_phase_that_is_not_the_job_s(command: str, grid: Grid, capsys: Captured) -> None:
    grid.producer().submit({}, job_id="run-1")
    recorder.flush_all(5)
    assert run(grid, command, "run-1", "--phase", "train") == 0
    capsys.readouterr()
    assert run(grid, command, "run-1", "--phase", "tarin") == 1
    assert "run-1 is a job of train, and not of 'tarin'" in capsys.readouterr().err


def test_a_phase_is_paused_and_resumed(
    grid: Grid, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid.producer().submit({}, job_id="run-1")
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert run(grid, "pause", "train") == 1
    assert "Pause train, where 1 job is ready, 0 delayed, 0 running?" in capsys.readouterr().err
    assert answer(grid, capsys, "status")["paused"] == {}
    assert run(grid, "pause", "train", "--yes") == 0
    assert "train is paused; what runs goes on to its end" in capsys.readouterr().out
    pause = answer(grid, capsys, "status")["paused"]["train"]
    assert sorted(pause) == ["phase", "since", "who"]
    assert answer(grid, capsys, "pause", "train") == {"paused": pause}
    for command in (["status"], ["why", "run-1"], ["pause", "train"]):
        assert run(grid, *command) == 0
        said = capsys.readouterr().out
        assert re.search(rf"train has been paused for \d+ s, by {re.escape(pause['who'])}", said)
    assert answer(grid, capsys, "resume", "train", "--yes") == {"resumed": pause}
    assert answer(grid, capsys, "resume", "train") == {"resumed": None}
    assert run(grid, "resume", "evaluate") == 0
    assert "evaluate is not paused" in capsys.readouterr().out
    assert run(grid, "pause", "completed", "--yes") == 2


def test_a_pause_where_nothing_is_recorded(
    grid: Grid, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNMANAGER_JOURNAL", "off")
    assert run(grid, "pause", "train", "--yes") == 1
    assert "SYNMANAGER_JOURNAL is off" in capsys.readouterr().err

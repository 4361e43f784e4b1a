"""A phase that is paused: who obeys, for how long, and what is told of it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from grid import Grid, in_thread, until

from synmanager import Jobs, Worker, current_job
from synmanager.backends.memory import MemoryBackend
from synmanager.errors import ConfigurationError, Unsupported
from synmanager.journal import marks
from synmanager.journal.events import MARKS, Event, read, write
from synmanager.journal.marks import Marks, Pause, pause_mark, resume_mark

AGE = 7 * 86_400.0


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, even memory may take longer than a job waits for it."""
    monkeypatch.setenv("SYNMANAGER_JOURNAL", "on")
    monkeypatch.setattr(marks, "PATIENCE", 5.0)
    monkeypatch.setattr(marks, "_FIRST", 30.0)
    monkeypatch.setattr(marks, "_FRESH", 0.0)  # each look is a look, and nobody waits for the next
    monkeypatch.setattr("synmanager.jobs.SETTLED", 0.0)
    monkeypatch.setattr(marks, "_WAITS", 0.05)


@pytest.fixture
def jobs(grid: Grid) -> Iterator[Jobs]:
    with Jobs(url=grid.url) as found:
        yield found


class Ran(list[tuple[str, int]]):
    """The jobs that ran, in order, with their attempts."""

    def worker(self, grid: Grid, *phases: str) -> Worker:
        return Worker({phase: self.handler(phase) for phase in phases}, url=grid.url)  # type: ignore[misc]

    def handler(self, phase: str) -> Callable[..., None]:
        def handle(**_: Any) -> None:
            job = current_job()
            assert job is not None
            self.append((phase, job.attempt))

        return handle


def kinds(grid: Grid, log: str) -> list[Event]:
    return [event for entry in grid.client().replay(log, limit=1000) for event in read(entry.data)]


class TestWhoObeys:
    def test_a_worker_goes_on_with_the_others_by_rank(self, grid: Grid, jobs: Jobs) -> None:
        phases = ("preprocess", "train", "evaluate")
        for phase in phases:
            grid.producer(phase).submit({})
        jobs.pause("train")
        ran = Ran()
        assert ran.worker(grid, *phases).run(burst=True) == 2
        assert ran == [("preprocess", 1), ("evaluate", 1)]
        assert grid.count() == {"ready": 1}
        jobs.resume("train")
        assert ran.worker(grid, *phases).run(burst=True) == 1
        assert ran[2:] == [("train", 1)]

    def test_listening_does(self, grid: Grid, jobs: Jobs) -> None:
        grid.producer().submit({})
        jobs.pause("train")
        ran = Ran()
        consumer = grid.consumer()
        assert consumer.listen_message(ran.handler("train"), idle_timeout=0) == 0
        assert grid.count() == {"ready": 1}
        jobs.resume("train")
        assert consumer.listen_message(ran.handler("train"), idle_timeout=0) == 1

    def test_asking_for_one_job_does_not(self, grid: Grid, jobs: Jobs) -> None:
        grid.producer().submit({})
        jobs.pause("train")
        ran = Ran()
        grid.consumer().poll_message(ran.handler("train"))
        assert ran == [("train", 1)]

    def test_a_worker_that_waits(self, grid: Grid, jobs: Jobs) -> None:
        """It learns of the pause with the job, which goes back uncounted; and of its end."""
        ran = Ran()
        worker = ran.worker(grid, "train", "evaluate")
        join = in_thread(worker.run)
        until(lambda: any(each.state == "idle" for each in jobs.workers()), "it waits")
        jobs.pause("train")
        held = grid.producer().submit({})
        grid.producer("evaluate").submit({})
        until(lambda: ran == [("evaluate", 1)], "the other phase goes on")
        until(lambda: grid.count() == {"ready": 1}, "the job is back")
        jobs.resume("train")
        jobs.wait([held], timeout=30)
        worker.stop()
        join()
        assert ran == [("evaluate", 1), ("train", 1)]

    def test_what_runs_ends_and_nothing_follows(self, grid: Grid, jobs: Jobs) -> None:
        begun, go = threading.Event(), threading.Event()

        def train(**_: Any) -> dict[str, int]:
            begun.set()
            assert go.wait(30)
            return {"loss": 1}

        first, second = grid.producer().submit_many([{}, {}])
        worker = Worker({"train": train}, url=grid.url)
        join = in_thread(worker.run)
        assert begun.wait(30)
        jobs.pause("train")
        go.set()
        (job,) = jobs.wait([first], timeout=30)
        assert job is not None
        assert job.state == "succeeded"
        # With no other phase there is no job to acknowledge it with.
        until(lambda: grid.count() == {"ready": 1}, "the first is acknowledged")
        assert grid.count("completed") == {"ready": 1}
        jobs.resume("train")
        jobs.wait([second], timeout=30)
        worker.stop()
        join()
        assert grid.count() == {}

    def test_a_worker_that_comes_back_to_its_broker(self, grid: Grid, jobs: Jobs) -> None:
        """All of its phases are paused, so that it asks for no job: it connects all the same."""
        held = grid.producer().submit({})
        jobs.pause("train")
        ran = Ran()
        worker = ran.worker(grid, "train")
        client = grid.flaky(worker)
        join = in_thread(worker.run)
        until(lambda: grid.count() == {"ready": 1} and bool(jobs.workers()), "it waits")
        client.close()
        until(lambda: client.is_open, "it is back")
        jobs.resume("train")
        jobs.wait([held], timeout=30)
        worker.stop()
        join()
        assert ran == [("train", 1)]

    def test_it_ends_when_told_to(self, grid: Grid, jobs: Jobs) -> None:
        jobs.pause("train")
        ran = Ran()
        assert ran.worker(grid, "train").run(idle_timeout=0.2) == 0
        worker = ran.worker(grid, "train")
        join = in_thread(worker.run)
        until(lambda: bool(jobs.workers()), "it waits")
        worker.stop()
        join()

    def test_with_the_journal_off_it_does_not(
        self, grid: Grid, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        grid.producer().submit({})
        jobs.pause("train")
        monkeypatch.setenv("SYNMANAGER_JOURNAL", "off")
        ran = Ran()
        assert ran.worker(grid, "train").run(burst=True) == 1


class TestAsking:
    def test_what_is_told(self, grid: Grid, jobs: Jobs) -> None:
        before = time.time()
        job_id = grid.producer().submit({})
        later = grid.producer().submit({}, delay=3600)
        made = jobs.pause("train", who="ada")
        assert jobs.paused() == {"train": made}
        assert (made.phase, made.who) == ("train", "ada")
        assert before <= made.since <= time.time()
        assert re.search(r"train has been paused for \d+ s, by ada", jobs.why(job_id))
        assert "train has been paused for" in jobs.why(later)
        assert jobs.resume("train", who="bob") == made
        assert jobs.paused() == {}
        assert "paused" not in jobs.why(job_id)
        told = [(event.type, event.data) for event in kinds(grid, "events")]
        assert ("action.pause", {"who": "ada", "phase": "train"}) in told
        assert ("action.resume", {"who": "bob", "phase": "train"}) in told

    def test_by_default_it_is_the_user(self, jobs: Jobs) -> None:
        user, _, host = jobs.pause("evaluate").who.partition("@")
        assert user
        assert host

    def test_twice_is_once(self, grid: Grid, jobs: Jobs) -> None:
        first = jobs.pause("train", who="ada")
        assert jobs.pause("train", who="bob") == first
        assert jobs.resume("train") == first
        assert jobs.resume("train") is None
        assert [event.type for event in kinds(grid, MARKS)] == ["mark.pause", "mark.resume"]

    def test_another_observer_sees_it(self, grid: Grid, jobs: Jobs) -> None:
        made = jobs.pause("preprocess")
        with Jobs(url=grid.url) as other:
            assert other.paused() == {"preprocess": made}
            other.resume("preprocess")
        assert jobs.paused() == {}

    @pytest.mark.parametrize("phase", ["completed", "trian", "", None, []])
    def test_no_such_phase(self, phase: Any, jobs: Jobs) -> None:
        for ask in (jobs.pause, jobs.resume):
            with pytest.raises(ConfigurationError, match="preprocess, train, evaluate can be"):
                ask(phase)

    def test_with_the_journal_off(self, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SYNMANAGER_JOURNAL", "off")
        with Jobs(url=grid.url) as jobs:
            for ask in (jobs.pause, jobs.resume):
                with pytest.raises(Unsupported, match="SYNMANAGER_JOURNAL is off"):
                    ask("train")

    def test_where_there_is_none(self, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
        features = replace(MemoryBackend.features, journal=False)
        monkeypatch.setattr(MemoryBackend, "features", features)
        jobs = Jobs(url=grid.url)
        with pytest.raises(Unsupported, match="keeps no journal"):
            jobs.connect()


class TestHowLong:
    """Marks are read as they were recorded, whatever the writers' clocks say."""

    @staticmethod
    def after(*recorded: tuple[float, Event]) -> Marks:
        found = Marks(AGE)
        for recorded_at, event in recorded:
            for each in read(write(event)):
                found._note(each, recorded_at)
        return found

    def test_a_repeat_does_not_undo_its_end(self) -> None:
        now = time.time()
        pause = Pause("train", now - 100, "ada")
        mark = pause_mark("", pause)
        assert self.after((now, mark)).pause_of("train") == pause
        ended = resume_mark("", "train", now - 50)
        assert self.after((now - 99, mark), (now - 50, ended)).paused() == ()
        assert self.after((now - 99, mark), (now - 50, ended), (now - 49, mark)).paused() == ()
        again = pause_mark("", Pause("train", now - 10, "bob"))
        assert self.after((now - 50, ended), (now - 9, again)).paused() == ("train",)

    def test_it_is_repeated_before_it_is_forgotten(self) -> None:
        now = time.time()
        pause = Pause("train", now - AGE, "ada")
        mark = pause_mark("", pause)
        assert self.after((now - 60, mark)).to_be_repeated() == []
        assert self.after((now - 4000, mark)).to_be_repeated() == [pause]
        assert self.after((now - 4000, mark), (now, mark)).to_be_repeated() == []

    def test_it_is_over_where_nobody_has_repeated_it(self) -> None:
        now = time.time()
        mark = pause_mark("", Pause("train", now - AGE, "ada"))
        assert self.after((now - AGE - 60, mark)).paused() == ()

    def test_a_worker_that_obeys_repeats_it(
        self, grid: Grid, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = jobs.pause("train", who="ada")
        monkeypatch.setattr(marks, "_REPEATED", 0.3)
        worker = Ran().worker(grid, "train")
        join = in_thread(worker.run)

        def pauses() -> list[Event]:
            return [event for event in kinds(grid, MARKS) if event.type == "mark.pause"]

        until(lambda: len(pauses()) >= 3, "it repeats it")
        jobs.resume("train")
        worker.stop()
        join()
        assert {event.data["since"] for event in pauses()} == {made.since}
        assert jobs.paused() == {}

    def test_a_clock_that_was_ahead(self, grid: Grid, jobs: Jobs) -> None:
        ahead = Pause("train", time.time() + 3600, "ada")
        grid.client().record(MARKS, [write(pause_mark("", ahead))])
        assert jobs.paused() == {"train": ahead}
        assert jobs.resume("train") == ahead
        assert jobs.paused() == {}
        assert jobs.pause("train").since > ahead.since
        assert list(jobs.paused()) == ["train"]

    @pytest.mark.parametrize(
        "data",
        [
            {"phase": "train", "since": 1e300, "who": "eve"},
            {"phase": "train", "since": "soon", "who": "eve"},
            {"phase": "completed", "since": 1e9, "who": "eve"},
            {"phase": ["train"], "since": 1e9, "who": "eve"},
            {"since": 1e9},
        ],
    )
    def test_what_strangers_write_pauses_nothing(self, data: dict[str, Any]) -> None:
        now = time.time()
        assert self.after((now, Event("mark.pause", "", now, "", data))).paused() == ()
        forever = Event("mark.resume", "", now, "", {"phase": "train", "until": 1e300})
        good = pause_mark("", Pause("train", now, "ada"))
        assert self.after((now, forever), (now, good)).paused() == ("train",)


def test_an_idle_worker_looks_no_more_often(grid: Grid, jobs: Jobs) -> None:
    """A pause costs the broker nothing while there is none."""
    worker = Ran().worker(grid, "train")
    client = grid.flaky(worker)
    join = in_thread(worker.run)
    until(lambda: client.calls.count("receive") >= 3, "it waits")
    looks = client.calls.count("replay")
    until(lambda: client.calls.count("receive") >= 5, "it waits on")
    assert client.calls.count("replay") == looks
    worker.stop()
    join()

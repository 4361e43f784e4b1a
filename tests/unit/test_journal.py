"""What is told of jobs, what observers make of it, and that no trouble with it touches a job."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
from grid import FlakyBackend, Grid, in_thread, until

from synmanager import Archiver, Cancelled, Jobs, Worker, current_job
from synmanager.backends import Address, Delivery, Entry
from synmanager.backends.memory import MemoryBackend
from synmanager.engine.session import Session
from synmanager.errors import (
    AccessRefused,
    BrokerUnavailable,
    ConfigurationError,
    InvalidJob,
    NotConnected,
    PublishRefused,
    Reject,
    TimeLimit,
    Unsupported,
)
from synmanager.job import Job
from synmanager.journal import desk, marks, recorder
from synmanager.journal.events import SIGN, Event, read, together, write
from synmanager.journal.fold import Fold, State, at_time
from synmanager.journal.reader import Reader
from synmanager.journal.tally import Tally


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, even memory may take longer than a job waits for it."""
    monkeypatch.setenv("SYNMANAGER_JOURNAL", "on")
    monkeypatch.setattr(marks, "PATIENCE", 5.0)


@pytest.fixture
def jobs(grid: Grid) -> Iterator[Jobs]:
    with Jobs(url=grid.url) as found:
        yield found


def the(job: Job | None) -> Job:
    assert job is not None
    return job


def known(state: State | None) -> State:
    assert state is not None
    return state


def events(grid: Grid, log: str = "events") -> list[Event]:
    recorder.flush_all(5)
    found = grid.client().replay(log, limit=100_000)
    return [event for entry in found for event in read(entry.data)]


def types(grid: Grid) -> list[str]:
    return [event.type for event in events(grid)]


class Held:
    """A worker in a thread, whose one job waits until it is let go."""

    def __init__(self, grid: Grid, do: Callable[[Job], Any] = lambda job: None) -> None:
        self.go, self.begun = threading.Event(), threading.Event()
        self._do = do
        self.worker = Worker({"train": self._train}, url=grid.url, tags={"gpu", "site-a"})
        self._join = in_thread(self.worker.run)

    def _train(self, **kwargs: Any) -> Any:
        self.begun.set()
        assert self.go.wait(30)
        return self._do(the(current_job()))

    def end(self) -> None:
        self.go.set()
        self.worker.stop()
        self._join()


class TestStates:
    def test_of_a_job_that_succeeds(self, grid: Grid, jobs: Jobs) -> None:
        job_id = grid.producer().submit({"run": 1}, priority="high")
        job = known(jobs.get(job_id))
        assert (job.state, job.phase, job.rank, job.attempt) == ("queued", "train", "high", 0)
        grid.consumer().poll_message(lambda run: None)
        job = known(jobs.get(job_id))
        assert (job.state, job.attempt, job.reason) == ("succeeded", 1, None)
        assert job.submitted_at is not None
        assert job.started_at is not None
        assert job.finished_at is not None
        assert job.submitted_at <= job.started_at <= job.finished_at
        assert job.worker is not None
        assert job.ended

    @pytest.mark.parametrize("limit", [None, 0.1])
    def test_of_a_job_that_was_given_away_and_returns_all_the_same(
        self, grid: Grid, jobs: Jobs, monkeypatch: pytest.MonkeyPatch, limit: float | None
    ) -> None:
        monkeypatch.setenv("SYNMANAGER_GRACE", "0.02")

        def train(**_: Any) -> dict[str, int]:
            if limit is None:
                worker.stop()
            with suppress(TimeLimit):
                until(lambda: the(current_job()).lease_lost and grid.count().get("leased") is None)
            return {"loss": 1}

        job_id = grid.producer().submit({}, time_limit=limit)
        worker = Worker({"train": train}, url=grid.url)
        assert worker.run(max_jobs=1) == 1
        last, state = ("given_back", "queued") if limit is None else ("retried", "retrying")
        told = set(types(grid))
        assert told & {"job.given_back", "job.retried", "job.succeeded"} == {f"job.{last}"}
        assert known(jobs.get(job_id)).state == state

    @pytest.mark.parametrize("value", [None, {"loss": 1}])
    def test_of_a_job_that_is_anothers_and_returns_all_the_same(
        self,
        grid: Grid,
        jobs: Jobs,
        monkeypatch: pytest.MonkeyPatch,
        value: dict[str, int] | None,
    ) -> None:
        monkeypatch.setenv("SYNMANAGER_LEASE", "0.3")  # a renewal each tenth of a second
        other = grid.client()
        taken: list[Delivery | None] = []

        def train(**_: Any) -> dict[str, int] | None:
            grid.crash_holders()
            taken.append(other.receive(["train"], 0))
            until(lambda: the(current_job()).lease_lost)
            return value

        job_id = grid.producer().submit({})
        Worker({"train": train}, url=grid.url).run(burst=True)
        assert [delivery.message.id for delivery in taken if delivery] == [job_id]
        assert "job.succeeded" not in types(grid)
        assert known(jobs.get(job_id)).state == "running"

    def test_of_a_job_that_nobody_knows(self, jobs: Jobs) -> None:
        assert jobs.get("nobody") is None
        assert jobs.why("nobody") == "the journal does not know this job, or no longer"

    def test_of_a_delayed_job(self, grid: Grid, jobs: Jobs) -> None:
        job_id = grid.producer().submit({}, delay=3600)
        job = known(jobs.get(job_id))
        assert job.state == "delayed"
        assert job.due_at is not None
        assert at_time(job, job.due_at).state == "queued"
        assert jobs.why(job_id).startswith("it is delayed for another 60 min")

    def test_of_a_job_that_fails(self, grid: Grid, jobs: Jobs) -> None:
        def fail(**_: Any) -> None:
            raise ValueError("planted")

        consumer = grid.consumer(max_attempts=2)
        job_id = grid.producer().submit({})
        consumer.poll_message(fail)
        job = known(jobs.get(job_id))
        assert (job.state, job.attempt, job.reason) == ("retrying", 1, "ValueError: planted")
        assert "attempt 1 has failed" in jobs.why(job_id)
        grid.clock.advance(100)
        consumer.poll_message(fail)
        job = known(jobs.get(job_id))
        assert (job.state, job.attempt, job.reason) == ("dead", 2, "ValueError: planted")
        assert "Traceback" in str(job.traceback)
        assert "ValueError: planted" in jobs.why(job_id)

    def test_of_a_job_that_runs(self, grid: Grid, jobs: Jobs) -> None:
        job_id = grid.producer().submit({})
        held = Held(grid)
        assert held.begun.wait(30)
        until(lambda: bool(jobs.running()), "it is seen to run")
        (job,) = jobs.running()
        assert (job.id, job.state) == (job_id, "running")
        (worker,) = jobs.workers()
        assert (worker.state, worker.job) == ("busy", ("train", job_id))
        assert (worker.tags, worker.phases) == (("gpu", "site-a"), ("train",))
        assert job.worker == worker.id
        assert worker.host in jobs.why(job_id)
        later = grid.producer().submit({})
        assert "number 1 of train" in jobs.why(later)
        assert f"runs {job_id} of train" in jobs.why(later)
        held.end()
        assert [job.state for job in map(known, jobs.wait([job_id]))] == ["succeeded"]
        assert jobs.workers() == []

    def test_of_a_worker_that_leaves_after_its_job(self, grid: Grid, jobs: Jobs) -> None:
        job_id = grid.producer().submit({})
        held = Held(grid)
        assert held.begun.wait(30)
        until(lambda: bool(jobs.running()), "it is seen to run")
        later = grid.producer().submit({})
        held.worker.stop()
        until(lambda: jobs.workers()[0].state == "leaving", "it is seen to leave")
        (worker,) = jobs.workers()
        assert worker.job == ("train", job_id)
        assert known(jobs.get(job_id)).state == "running"
        assert "no worker takes jobs of train" in jobs.why(later)
        held.end()
        assert [job.state for job in map(known, jobs.wait([job_id]))] == ["succeeded"]
        assert jobs.workers() == []
        assert types(grid)[-3:] == ["worker.leaving", "job.succeeded", "worker.leaving"]

    def test_of_a_worker_that_is_told_to_stop_as_its_job_ends(self) -> None:
        fold, day = Fold(), 86_400.0
        about = {"id": "a", "phase": "train", "submitted_at": 1.0, "attempt": 1, "rank": "normal"}

        def hear(kind: str, at: float, **data: Any) -> str:
            fold.apply(Event(kind, "h/1/x", at, "", data))
            return fold.workers["h/1/x"].state

        assert hear("job.started", 0.0, **about) == "busy"
        assert hear("worker.leaving", 10 * day, running=True) == "leaving"
        assert fold.workers["h/1/x"].is_there(10.3 * day)  # the older a job, the less is said
        assert hear("job.renewed", 11 * day, **about) == "leaving"
        assert fold.workers["h/1/x"].job == ("train", "a")
        assert hear("job.succeeded", 12 * day, **about) == "leaving"
        assert fold.workers["h/1/x"].job is None
        assert hear("worker.leaving", 12 * day) == "gone"
        assert hear("worker.leaving", 12 * day, running=True) == "gone"  # is told too late
        assert hear("worker.up", 13 * day) == "gone"  # says nothing of itself
        assert hear("worker.idle", 13 * day) == "idle"
        assert hear("worker.leaving", 13 * day, running=True) == "idle"

    def test_of_the_same_id_in_two_phases(self, grid: Grid, jobs: Jobs) -> None:
        grid.producer("train").submit({}, job_id="run-1")
        grid.producer("evaluate").submit({}, job_id="run-1")
        grid.consumer("train").poll_message(lambda **_: None)
        assert known(jobs.get("run-1")).phase == "evaluate"
        assert known(jobs.get("run-1", "train")).state == "succeeded"
        assert known(jobs.get("run-1")).state == "queued"

    def test_of_an_id_that_is_used_again(self, grid: Grid, jobs: Jobs) -> None:
        producer, consumer = grid.producer(), grid.consumer()
        producer.submit({}, job_id="nightly")
        consumer.poll_message(lambda **_: None)
        producer.submit({}, job_id="nightly")
        producer.submit({}, job_id="nightly")  # is there already, and changes nothing
        assert known(jobs.get("nightly")).state == "queued"
        consumer.poll_message(lambda **_: None)
        assert known(jobs.get("nightly")).state == "succeeded"

    def test_of_a_deleted_job(self, grid: Grid, jobs: Jobs) -> None:
        producer = grid.producer()
        producer.submit({}, job_id="run-1")
        assert producer.delete("run-1")
        assert known(jobs.get("run-1")).state == "cancelled"

    def test_why_it_waits_for_a_worker(self, grid: Grid, jobs: Jobs) -> None:
        producer = grid.producer()
        first, second = producer.submit({}), producer.submit({})
        third = producer.submit({}, priority="high")
        assert "number 3 of train" in jobs.why(second)
        assert "number 2 of train" in jobs.why(first)
        assert "number 1 of train" in jobs.why(third)
        assert "no worker takes jobs of train" in jobs.why(first)

    def test_recent_ones_come_first(self, grid: Grid, jobs: Jobs) -> None:
        ids = grid.producer().submit_many([{} for _ in range(5)])
        grid.consumer().poll_message(lambda **_: None)
        assert [job.id for job in jobs.recent(1)] == ids[:1]
        assert {job.id for job in jobs.recent()} == set(ids)

    def test_results_on_their_way_to_the_archive_are_no_jobs(self, grid: Grid) -> None:
        grid.put({"run": 1}, phase="completed")
        Archiver(lambda **_: None, url=grid.url).run(burst=True)
        assert types(grid) == []

    def test_an_archiver_s_dead_letter_is_told(self, grid: Grid) -> None:
        def reject(**_: Any) -> None:
            raise Reject("planted")

        grid.put({"run": 1}, phase="completed")
        Archiver(reject, url=grid.url).run(burst=True)
        (event,) = events(grid)
        assert (event.type, event.data["reason"]) == ("job.died", "planted")


class TestWaiting:
    def test_is_over_when_the_last_has_ended(self, grid: Grid, jobs: Jobs) -> None:
        ids = grid.producer().submit_many([{"run": run} for run in range(3)])
        join = in_thread(lambda: grid.consumer().listen_message(lambda run: None, max_jobs=3))
        assert [known(job).state for job in jobs.wait(ids, timeout=30)] == ["succeeded"] * 3
        join()

    def test_ends_with_its_time(self, grid: Grid, jobs: Jobs) -> None:
        job_id = grid.producer().submit({})
        found = jobs.wait([job_id, "nobody"], timeout=0.1)
        assert [job and job.state for job in found] == ["queued", None]

    @pytest.mark.parametrize("timeout", [float("nan"), "3", True, []])
    def test_has_a_number_for_its_timeout(self, grid: Grid, jobs: Jobs, timeout: Any) -> None:
        job_id = grid.producer().submit({})
        with pytest.raises(ConfigurationError, match="timeout must be seconds, not "):
            jobs.wait([job_id], timeout=timeout)

    def test_keeps_no_other_thread_from_asking(
        self, grid: Grid, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        job_id, waits, ends = grid.producer().submit({}), threading.Event(), threading.Event()
        replay = MemoryBackend.replay

        def held(self: MemoryBackend, *about: Any, wait: float = 0.0, **how: Any) -> list[Entry]:
            if wait:
                waits.set()
                assert ends.wait(30)
            return replay(self, *about, wait=wait, **how)

        monkeypatch.setattr(MemoryBackend, "replay", held)
        join = in_thread(lambda: jobs.wait([job_id], timeout=30))
        assert waits.wait(30)
        assert known(jobs.get(job_id)).state == "queued"
        grid.consumer().poll_message(lambda **_: None)
        assert known(jobs.get(job_id)).state == "succeeded"
        ends.set()
        join()

    def test_what_another_thread_has_read_is_taken_once(
        self, grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        taken: list[str] = []
        client, client.clock = grid.client(), grid.clock
        reader = Reader(Session(client, None), lambda event: taken.append(event.subject))
        reader._session.open()
        client.record("events", [write(Event("x", "me", 1.0, name, {})) for name in "ab"])
        replay = type(client).replay

        def twice(self: Any, *about: Any, **how: Any) -> list[Entry]:
            found = replay(self, *about, **how)
            if not taken:
                monkeypatch.undo()
                reader.catch_up()  # as from another thread
            return found

        monkeypatch.setattr(type(client), "replay", twice)
        reader.catch_up()
        assert taken == ["a", "b"]

    def test_one_string_is_no_list_of_ids(self, jobs: Jobs) -> None:
        with pytest.raises(InvalidJob):
            jobs.wait("run-1")


class TestProgress:
    def test_is_seen(self, grid: Grid, jobs: Jobs) -> None:
        job_id = grid.producer().submit({})
        told, seen = threading.Event(), threading.Event()

        def work(**_: Any) -> None:
            the(current_job()).progress(1, total=4, text="epoch", loss=0.5, shape=(1, 2))
            told.set()
            assert seen.wait(30)

        join = in_thread(lambda: grid.consumer().poll_message(work))
        assert told.wait(30)
        progress = known(jobs.get(job_id)).progress
        assert progress is not None
        assert (progress.done, progress.total, progress.text) == (1, 4, "epoch")
        assert progress.figures == {"loss": 0.5, "shape": "(1, 2)"}
        assert known(jobs.get(job_id)).eta is not None
        seen.set()
        join()

    def test_is_throttled_and_the_last_is_told(self, grid: Grid, jobs: Jobs) -> None:
        def work(**_: Any) -> None:
            for step in range(1000):
                the(current_job()).progress(step)

        job_id = grid.producer().submit({})
        grid.consumer().poll_message(work)
        progress = known(jobs.get(job_id)).progress
        assert progress is not None
        assert progress.done == 999
        assert 2 <= types(grid).count("job.progress") < 20

    @pytest.mark.parametrize(
        "value", [float("nan"), object(), 10**400, "x" * 10_000, [[]]], ids=range(5)
    )
    def test_takes_anything(self, value: Any, grid: Grid, jobs: Jobs) -> None:
        job_id = grid.producer().submit({})
        grid.consumer().poll_message(
            lambda **_: the(current_job()).progress(value, value, value, x=value)
        )
        job = known(jobs.get(job_id))
        assert job.state == "succeeded"
        assert job.progress is not None


class TestCancel:
    def test_a_job_that_waits_is_not_run(self, grid: Grid, jobs: Jobs) -> None:
        first, second = grid.producer().submit_many([{"run": 1}, {"run": 2}])
        jobs.cancel(first)
        seen: list[int] = []
        assert grid.consumer().listen_message(lambda run: seen.append(run), idle_timeout=0) == 2
        assert seen == [2]
        assert known(jobs.get(first)).state == "cancelled"
        assert known(jobs.get(second)).state == "succeeded"
        assert grid.count() == {}

    def test_what_is_submitted_later_runs(self, grid: Grid, jobs: Jobs) -> None:
        producer, consumer = grid.producer(), grid.consumer()
        producer.submit({"run": 1}, job_id="again")
        jobs.cancel("again")
        seen: list[int] = []
        consumer.poll_message(lambda run: seen.append(run))
        producer.submit({"run": 2}, job_id="again")
        consumer.poll_message(lambda run: seen.append(run))
        assert seen == [2]
        assert known(jobs.get("again")).state == "succeeded"

    @pytest.mark.parametrize("way", ["check", "progress"])
    def test_a_job_that_runs_leaves(self, way: str, grid: Grid, jobs: Jobs) -> None:
        begun = threading.Event()

        def work(**_: Any) -> None:
            job = the(current_job())
            begun.set()
            for step in range(3000):
                job.check() if way == "check" else job.progress(step)
                time.sleep(0.01)

        job_id = grid.producer().submit({})
        join = in_thread(lambda: grid.consumer().poll_message(work))
        assert begun.wait(30)
        jobs.cancel(job_id)
        (job,) = jobs.wait([job_id], timeout=30)
        join()
        assert known(job).state == "cancelled"
        assert grid.count() == {}
        assert grid.count("completed") == {}

    def test_nothing_is_published_for_it(self, grid: Grid, jobs: Jobs) -> None:
        def do(job: Job) -> None:
            job._looked = 0.0  # a second is over
            job.check()

        job_id = grid.producer().submit({})
        held = Held(grid, do)
        assert held.begun.wait(30)
        jobs.cancel(job_id)
        held.end()
        assert known(jobs.get(job_id)).state == "cancelled"
        assert grid.count() == grid.count("completed") == {}

    def test_who_finishes_first_has_succeeded(self, grid: Grid, jobs: Jobs) -> None:
        job_id = grid.producer().submit({})
        held = Held(grid, lambda job: {"loss": 1})
        assert held.begun.wait(30)
        jobs.cancel(job_id)
        held.end()
        assert known(jobs.get(job_id)).state == "succeeded"
        assert grid.count("completed") == {"ready": 1}

    def test_cancelled_without_a_cancellation_is_a_failure(self, grid: Grid, jobs: Jobs) -> None:
        def leave(**_: Any) -> None:
            raise Cancelled("of its own")

        job_id = grid.producer().submit({})
        grid.consumer().poll_message(leave)
        assert known(jobs.get(job_id)).state == "retrying"

    def test_no_job_has_such_an_id(self, jobs: Jobs) -> None:
        with pytest.raises(InvalidJob):
            jobs.cancel("")

    def test_where_the_broker_cannot_find_a_job_delete_cancels_it(
        self, grid: Grid, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        features = {**vars(MemoryBackend.features), "deletes": False}
        monkeypatch.setattr(MemoryBackend, "features", type(MemoryBackend.features)(**features))
        producer = grid.producer()
        producer.submit({"run": 1}, job_id="run-1")
        assert producer.delete("run-1")
        assert not producer.delete("nobody")
        seen: list[int] = []
        grid.consumer().poll_message(lambda run: seen.append(run))
        assert seen == []
        assert not producer.delete("run-1")

    def test_one_that_never_ran_has_made_no_attempt(self, grid: Grid, jobs: Jobs) -> None:
        job_id = grid.producer().submit({})
        jobs.cancel(job_id)
        grid.consumer().poll_message(lambda **_: None)
        assert known(jobs.get(job_id)).attempt == 0

    def test_what_is_taken_after_it_has_returned_is_not_run(self, grid: Grid, jobs: Jobs) -> None:
        """Although what was seen just before it was asked may still stand."""
        grid.producer().submit({"cancels": True}, job_id="run-1")
        grid.producer().submit({"cancels": False}, job_id="run-2")
        ran: list[bool] = []

        def work(cancels: bool) -> None:
            ran.append(cancels)
            jobs.cancel("run-2")

        assert grid.consumer().listen_message(work, max_jobs=2) == 2
        assert ran == [True]
        assert known(jobs.get("run-2")).state == "cancelled"

    def test_short_jobs_share_a_look(self, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
        looks: list[float] = []
        read_on = marks.Marks.read

        def read_and_count(self: marks.Marks, backend: Any) -> None:
            looks.append(time.monotonic())
            read_on(self, backend)

        monkeypatch.setattr(marks.Marks, "read", read_and_count)
        grid.put(*[{"run": run} for run in range(500)])
        begun = time.monotonic()
        grid.consumer().listen_message(lambda run: None, max_jobs=500)
        # Every 0.15 s, two at the beginning, and one more if the first finds nothing at all.
        assert len(looks) <= 4 + (time.monotonic() - begun) / 0.1


class TestCheckpoints:
    def test_the_next_attempt_finds_what_the_last_one_saved(self, grid: Grid) -> None:
        found: list[Any] = []

        def work(**_: Any) -> None:
            job = the(current_job())
            found.append(job.saved)
            job.save({"epoch": len(found)})
            if len(found) < 3:
                raise ValueError("planted")

        grid.producer().submit({})
        for _ in range(3):
            grid.consumer().poll_message(work)
            grid.clock.advance(100)
        assert found == [None, {"epoch": 1}, {"epoch": 2}]

    def test_a_job_that_was_given_back_uncounted_finds_it(self, grid: Grid) -> None:
        from synmanager import Retry

        found: list[Any] = []

        def work(**_: Any) -> None:
            job = the(current_job())
            found.append((job.attempt, job.saved))
            job.save(7)
            if len(found) < 2:
                raise Retry(count=False, delay=0)

        grid.producer().submit({})
        for _ in range(2):
            grid.consumer().poll_message(work)
        assert found == [(1, None), (1, 7)]

    def test_another_submission_of_the_id_does_not(self, grid: Grid) -> None:
        found: list[Any] = []

        def work(**_: Any) -> None:
            job = the(current_job())
            found.append(job.saved)
            job.save(1)

        for _ in range(2):
            grid.producer().submit({}, job_id="again")
            grid.consumer().poll_message(work)
        assert found == [None, None]

    @pytest.mark.parametrize("state", ["x" * 70_000, object(), {1, 2}])
    def test_what_cannot_be_kept_is_refused(self, state: Any, grid: Grid) -> None:
        def work(**_: Any) -> None:
            with pytest.raises(InvalidJob, match="a checkpoint is"):
                the(current_job()).save(state)
            the(current_job()).save("x" * 60_000)

        grid.producer().submit({})
        grid.consumer().poll_message(work)
        assert grid.count() == {}

    def test_without_a_journal(self, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SYNMANAGER_JOURNAL", "off")

        def work(**_: Any) -> None:
            job = the(current_job())
            assert job.saved is None
            job.progress(1)
            assert not job.cancelled
            with pytest.raises(Unsupported):
                job.save(1)

        grid.producer().submit({})
        grid.consumer().poll_message(work)
        assert grid.count() == {}
        assert types(grid) == []


class Hanging(FlakyBackend):
    """A connection whose journal does what a test says, and whose queues work."""

    def __init__(self, address: Address, broker: Any) -> None:
        super().__init__(address, broker)
        self.trouble: BaseException | None = None  # None: it hangs
        self.tries = 0
        self.over = threading.Event()

    def record(self, log: str, entries: Sequence[bytes]) -> None:
        self._fail()

    def replay(
        self, log: str, after: str | float = 0.0, *, wait: float = 0.0, limit: int = 1000
    ) -> list[Entry]:
        self._fail()
        return []

    def _fail(self) -> None:
        self.tries += 1
        if self.trouble is None:
            assert self.over.wait(60)
            raise BrokerUnavailable("planted")
        raise self.trouble


class TestTrouble:
    """Whatever the journal does, jobs run as before (invariant 10)."""

    @pytest.fixture
    def hanging(self, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
        monkeypatch.setattr(marks, "PATIENCE", 0.05)
        monkeypatch.setattr(recorder, "FAREWELL", 0.05)
        backend = Hanging(Address("memory"), grid.broker)
        monkeypatch.setattr("synmanager.base.create_backend", lambda address: backend)
        monkeypatch.setattr("synmanager.engine.service.create_backend", lambda address: backend)
        yield backend
        backend.over.set()

    @pytest.mark.parametrize(
        "trouble",
        [
            None,
            AccessRefused("planted"),
            PublishRefused("planted"),
            Unsupported("planted"),
            BrokerUnavailable("planted"),
            OSError("planted"),
            MemoryError(),
            RecursionError("planted"),
        ],
        ids=lambda trouble: type(trouble).__name__,
    )
    def test_of_any_kind_touches_no_job(
        self,
        trouble: BaseException | None,
        hanging: Hanging,
        grid: Grid,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        hanging.trouble = trouble
        seen: list[int] = []

        def work(run: int) -> dict[str, int]:
            the(current_job()).progress(run)
            seen.append(run)
            return {"run": run}

        grid.put(*[{"run": run} for run in range(100)])
        began = time.monotonic()
        with caplog.at_level(logging.WARNING, "synmanager"):
            Worker({"train": work}, url=grid.url).run(burst=True)
        assert seen == list(range(100))
        assert grid.count() == {}
        assert grid.count("completed") == {"ready": 100}
        assert time.monotonic() - began < 100 * 0.05 + 5
        said = [record.getMessage() for record in caplog.records]
        assert len(said) <= 1
        assert all("the journal does not work" in text for text in said)
        if trouble is not None and not isinstance(trouble, BrokerUnavailable):
            assert said
            assert hanging.tries < 10

    def test_a_producer_does_not_wait_for_it(self, hanging: Hanging, grid: Grid) -> None:
        producer = grid.producer()
        began = time.monotonic()
        for run in range(100):
            producer.submit({"run": run})
        producer.disconnect()
        assert time.monotonic() - began < 5
        assert grid.count() == {"ready": 100}

    def test_what_waits_to_be_written_is_bounded(
        self, hanging: Hanging, grid: Grid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(recorder, "_MOST", 10)
        monkeypatch.setattr(recorder, "_UTMOST", 20)
        hanging.trouble = AccessRefused("planted")
        hanging.open()
        box = recorder.Recorder(lambda: hanging)
        for number in range(100):
            box.put(Event("x", "s", 0.0, "", {}, is_progress=bool(number % 2)))
        until(lambda: hanging.tries > 0, "it was tried")
        assert len(box._events) <= 21
        box.close()

    def test_terminal_events_survive_a_lost_connection(self, grid: Grid, jobs: Jobs) -> None:
        consumer = grid.consumer()
        flaky = grid.flaky(consumer)
        job_id = grid.producer().submit({})

        def work(**_: Any) -> None:
            flaky.break_connection()

        consumer.poll_message(work)
        grid.crash_holders()
        consumer.poll_message(work)
        (job,) = jobs.wait([job_id], timeout=30)
        assert known(job).state == "succeeded"


class TestForm:
    def test_of_an_event(self, grid: Grid) -> None:
        grid.producer().submit({}, job_id="run-1")
        recorder.flush_all(5)
        (entry,) = grid.client().replay("events")
        found = json.loads(entry.data)
        assert set(found) == {"specversion", "id", "source", "type", "time", "subject", "data"}
        assert (found["specversion"], found["type"]) == ("1.0", "synmanager.job.submitted")
        assert found["data"]["ids"] == ["run-1"]

    @pytest.mark.parametrize(
        "data", [b"", b"{}", b"[]", b"\xff", b'{"type": 1, "data": {}}', b'{"type":"x","data":{}}']
    )
    def test_what_is_nothing_of_ours_is_passed_over(self, data: bytes, grid: Grid) -> None:
        grid.client().record("events", [data])
        grid.client().record("marks", [data])
        job_id = grid.producer().submit({})
        grid.consumer().poll_message(lambda **_: None)
        with Jobs(url=grid.url) as jobs:
            assert known(jobs.get(job_id)).state == "succeeded"

    def test_a_batch_is_one_event(self, grid: Grid) -> None:
        grid.producer().submit_many([{} for _ in range(100)])
        assert types(grid) == ["job.submitted"]

    def test_many_events_share_an_entry(self, grid: Grid) -> None:
        grid.put(*[{"run": run} for run in range(500)])
        grid.consumer().listen_message(lambda run: None, max_jobs=500)
        assert types(grid).count("job.succeeded") == 500
        assert len(grid.client().replay("events")) < 100

    def test_what_shares_an_entry_is_in_order_and_bounded(self) -> None:
        told = [Event("x", "s", 1.0, "", {"number": n, "text": "x" * n * 300}) for n in range(250)]
        told[7] = Event("x", "s", 1.0, "", {"number": float("nan")})  # which JSON cannot write
        entries = list(together(told))
        numbers = [event.data["number"] for entry in entries for event in read(entry)]
        assert numbers == [n for n in range(250) if n != 7]
        assert max(map(len, entries)) < 80_000
        assert len(entries) < 200

    def test_it_comes_back_as_it_was(self) -> None:
        event = Event("job.started", "a/1/b", 1700000000.25, "train/x", {"id": "x"})
        (again,) = read(write(event))
        assert (again.type, again.source, again.time, again.subject, again.data) == (
            event.type, event.source, event.time, event.subject, event.data,
        )  # fmt: skip

    @pytest.mark.parametrize("endless", ["x" * 1001, ["x" * 1001], ["x"] * 1001, [["x"] * 600], {}])
    def test_names_of_strangers_that_have_no_end_are_none(self, endless: Any) -> None:
        for name in ("id", "ids", "phases", "sweep", "who"):
            entry = write(Event("x", "s", 1.0, "", {name: endless, "job": "x" * 1000}))
            assert read(entry) == [], name
        assert read(write(Event("x", "s" * 1001, 1.0, "", {}))) == []
        (event,) = read(write(Event("x", "s", 1.0, "", {"ids": ["x" * 1000], "job": "x" * 9000})))
        assert len(event.data["job"]) == 9000

    def test_of_what_strangers_say_no_more_is_kept_than_is_written_here(self) -> None:
        figures = {"x" * 1000: 1, "deep": [["x"] * 600], "loss": 0.5, "text": "x" * 900, "huge": {}}
        said = {"reason": "x" * 50_000, "text": 7, "figures": figures}
        (event,) = read(write(Event("x", "s", 1.0, "", said)))
        assert event.data["reason"] == "x" * 20_000
        assert event.data["text"] == 7
        assert event.data["figures"] == {
            "x" * 500: 1, "deep": str([["x"] * 600])[:500], "loss": 0.5, "text": "x" * 500,
            "huge": "{}",
        }  # fmt: skip
        many = {"figures": {f"figure{number}": number for number in range(1000)}}
        (event,) = read(write(Event("x", "s", 1.0, "", many)))
        assert list(event.data["figures"].items()) == [(f"figure{n}", n) for n in range(50)]
        assert len(event.whole["data"]["figures"]) == 1000


def _submitted(job_id: str, at: float, delay: float = 0.0) -> Event:
    data = {
        "ids": [job_id], "phase": "train", "submitted_at": at, "delay": delay, "rank": "normal",
    }  # fmt: skip
    return Event("job.submitted", "p/1/x", at, "train", data)


class TestFold:
    def test_what_has_ended_and_is_old_is_counted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("synmanager.journal.fold._MOST_ENDED", 10)
        fold = Fold()
        for number in range(100):
            data = {
                "id": f"{number}", "phase": "train", "submitted_at": 1.0, "attempt": 1,
                "rank": "normal",
            }  # fmt: skip
            fold.apply(Event("job.succeeded", "w/1/x", 2.0, "", data))
        assert len(fold.jobs) == 10
        assert fold.counts == {"succeeded": 90}
        assert fold.get("1") is None
        assert known(fold.get("99")).state == "succeeded"

    @pytest.mark.parametrize("odd", [1e308, -1.0, "soon", [], {}, True, None, float("nan")])
    def test_times_and_texts_that_cannot_be_any_are_none(self, odd: Any) -> None:
        fold = Fold()
        data = {
            "id": "run-1", "phase": "train", "submitted_at": odd, "attempt": 1, "rank": "normal",
            "started_at": odd, "due_at": odd, "reason": odd, "traceback": odd, "sweep": odd,
        }  # fmt: skip
        for _ in range(2):
            fold.apply(Event("job.retried", "w/1/x", 2.0, "", data))
        job = known(fold.get("run-1"))
        assert (job.submitted_at, job.started_at, job.due_at) == (None, None, None)
        assert all(isinstance(text, str | None) for text in (job.reason, job.traceback, job.sweep))

    @pytest.mark.parametrize("first", ["train", "evaluate"])
    def test_an_id_is_where_it_was_submitted_last(self, first: str) -> None:
        times = {"train": 1.0, "evaluate": 2.0}
        fold = Fold()
        for phase in (first, *times):  # in whatever order that is told
            data = {
                "ids": ["run-1"], "phase": phase, "submitted_at": times[phase], "delay": 0.0,
                "rank": "normal",
            }  # fmt: skip
            fold.apply(Event("job.submitted", "p/1/x", times[phase], phase, data))
        assert known(fold.get("run-1")).phase == "evaluate"
        fold.apply(
            Event(
                "job.submitted",
                "p/1/x",
                1.0,
                "train",
                {**data, "phase": "train", "submitted_at": 1.5},
            )
        )
        assert known(fold.get("run-1")).phase == "evaluate"

    def test_a_worker_that_says_nothing_is_taken_for_dead(self) -> None:
        fold, day = Fold(), 86_400.0
        about = {"id": "a", "phase": "train", "submitted_at": 1.0, "attempt": 1, "rank": "normal"}
        up = {"host": "h", "pid": 1, "phases": ["train"], "tags": [], "version": "1"}

        def there(now: float) -> set[str]:
            return {worker.id for worker in fold.workers.values() if worker.is_there(now)}

        fold.apply(Event("worker.up", "h/1/idle", 0.0, "", up))
        fold.apply(Event("worker.up", "h/1/killed", 0.0, "", up))
        fold.apply(Event("job.started", "h/1/busy", 0.0, "train/a", about))
        assert there(SIGN) == {"h/1/idle", "h/1/killed", "h/1/busy"}
        fold.apply(Event("worker.idle", "h/1/idle", 10 * day, "", {}))
        fold.apply(Event("job.renewed", "h/1/busy", 9.9 * day, "train/a", about))
        assert there(10 * day + SIGN) == {"h/1/idle", "h/1/busy"}
        assert fold.workers["h/1/idle"].since == 0.0
        fold.apply(Event("worker.leaving", "h/1/idle", 10 * day, "", {}))
        assert there(10 * day) == {"h/1/busy"}

    @pytest.mark.parametrize(
        ("submitted_at", "delay", "is_gone"), [(1.0, 0, True), (3.0, 0, False), (1.0, 60, False)]
    )
    def test_what_was_purged_before_it_was_told_is_gone(
        self, submitted_at: float, delay: float, is_gone: bool
    ) -> None:
        tally = Tally(Fold(), ("train",))
        about = {"who": "me", "number": 1, "queue": "train", "delayed": False}
        tally.apply(Event("action.purge_queue", "me", 2.0, "", about))
        tally.apply(_submitted("run-1", submitted_at, delay))
        state = at_time(known(tally.fold.get("run-1")), 100.0)
        assert state.state == ("cancelled" if is_gone else "queued")
        assert state.reason == ("purged from its queue by me" if is_gone else None)
        assert tally.ready(100.0) == ({} if is_gone else {("train", "normal"): 1})
        assert tally.submitted["train"] == 1
        assert tally.ended["train", "cancelled"] == int(is_gone)

    def test_a_delayed_one_goes_with_a_purge_that_takes_those(self) -> None:
        fold = Fold()
        about = {"who": "me", "number": 1, "queue": "train", "delayed": True}
        fold.apply(Event("action.purge_queue", "me", 2.0, "", about))
        fold.apply(_submitted("run-1", 1.0, 60.0))
        assert known(fold.get("run-1")).state == "cancelled"

    @pytest.mark.parametrize(("submitted_at", "state"), [(1.0, "cancelled"), (3.0, "queued")])
    def test_what_was_deleted_before_it_was_told_is_gone(
        self, submitted_at: float, state: str
    ) -> None:
        fold = Fold()
        fold.apply(Event("job.deleted", "me", 2.0, "", {"id": "run-1", "phase": "train"}))
        fold.apply(_submitted("run-1", submitted_at))
        fold.apply(_submitted("run-2", submitted_at))
        assert known(fold.get("run-1")).state == state
        assert known(fold.get("run-2")).state == "queued"
        started = {
            "id": "run-1", "phase": "train", "submitted_at": submitted_at, "attempt": 1,
            "rank": "normal",
        }  # fmt: skip
        fold.apply(Event("job.started", "w/1/x", 2.5, "train/run-1", started))
        assert known(fold.get("run-1")).state == "running"

    def test_removals_of_the_unknown_are_not_kept_without_end(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("synmanager.journal.fold._MOST_NOTES", 10)
        fold = Fold()
        for number in range(100):
            about = {"id": f"{number}", "phase": "train"}
            fold.apply(Event("job.deleted", "me", 2.0, "", about))
            fold.apply(Event("action.purge_queue", "me", 2.0, "", {"queue": f"{number}"}))
        assert (len(fold._deletions), len(fold._purges)) == (10, 10)

    def test_twice_is_once(self, grid: Grid) -> None:
        grid.producer().submit({}, job_id="run-1")
        grid.consumer().poll_message(lambda **_: None)
        found, once, twice = events(grid), Fold(), Fold()
        for event in found:
            once.apply(event)
        for event in found + found:
            twice.apply(event)
        assert once.get("run-1") == twice.get("run-1")


def test_who_waits_says_so_again(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "SIGN", 0.0)
    grid.consumer().listen_message(lambda **_: None, idle_timeout=3)
    first, *others, last = types(grid)
    assert (first, set(others), last) == ("worker.up", {"worker.idle"}, "worker.leaving")
    assert len(others) > 1


@pytest.mark.parametrize(
    ("job", "told"),
    [
        ({"lr": 0.5, "api_key": "sesame"}, '{"api_key": "(hidden)", "lr": 0.5}'),
        ({"text": "é" * 5000}, '{"text": "' + "é" * 1989 + "…"),
        ({"text": "x" * 70_000}, None),
        ({"deep": json.loads("[" * 60 + "]" * 60)}, "(too deep to be shown)"),
    ],
    ids=["secret", "long", "too long", "deep"],
)
@pytest.mark.parametrize("switch", ["on", "off"])
def test_what_a_job_was_given_is_told_while_it_runs(
    switch: str,
    job: dict[str, Any],
    told: str | None,
    grid: Grid,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SYNMANAGER_JOURNAL_PARAMETERS", switch)
    grid.producer().submit(job)
    begun: list[Event] = []
    grid.consumer().poll_message(
        lambda **_: begun.extend(each for each in events(grid) if each.type == "job.started")
    )
    (event,) = begun
    given = str(event.data.get("given"))
    if switch == "off" or told is None:
        assert "given" not in event.data
    else:
        assert given == told or told in given


def test_without_a_connection(grid: Grid) -> None:
    with pytest.raises(NotConnected):
        Jobs(url=grid.url).get("x")


def test_threads_end_when_nobody_needs_them(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synmanager.journal.aide._IDLE", 0.05)
    before = set(threading.enumerate())
    producer = grid.producer()
    producer.submit({})
    names = ("synmanager-journal", "synmanager-marks")
    until(
        lambda: not [t for t in set(threading.enumerate()) - before if t.name in names],
        "the threads end",
    )
    producer.submit({})
    with Jobs(url=grid.url) as jobs:
        assert len(jobs.recent()) == 2


def test_a_worker_that_runs_again_is_told_of_again(grid: Grid, jobs: Jobs) -> None:
    worker = Worker({"train": lambda run: None}, url=grid.url)
    for run in range(3):
        job_id = grid.producer().submit({"run": run})
        assert worker.run(burst=True) == 1
        assert known(jobs.get(job_id)).state == "succeeded"


def test_what_a_job_says_of_itself_is_told_without_secrets(grid: Grid) -> None:
    def train(**_: Any) -> None:
        the(current_job()).progress(
            1,
            total=2,
            text="token=sesame, step 1",
            password="sesame",
            loss=0.5,
            login="pin: sesame",
        )

    grid.producer().submit({})
    grid.consumer().poll_message(train)
    (event,) = (each for each in events(grid) if each.type == "job.progress")
    assert (event.data["done"], event.data["total"]) == (1, 2)
    assert event.data["text"] == "token=(hidden), step 1"
    assert event.data["figures"] == {
        "password": "(hidden)", "loss": 0.5, "login": "pin: (hidden)",
    }  # fmt: skip


def test_who_submits_when_the_interpreter_ends_is_not_held_up() -> None:
    """No thread that begins then ever runs."""
    code = (
        "from synmanager.train import TrainProducerOperator\n"
        "class Last:\n"
        "    def __init__(self):\n"
        "        self.producer = TrainProducerOperator(url='memory')\n"
        "        self.producer.connect()\n"
        "    def __del__(self):\n"
        "        print(bool(self.producer.submit({'lr': 1})))\n"
        "last = Last()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stdout == "True\n"

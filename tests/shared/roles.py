"""Rank, and the two roles of the cluster: what holds on every broker, in the words of users.

A suite gives ``grid``, where operators come from, and ``crew``, the workers that run beside it.
"""

from __future__ import annotations

import random
import time
from importlib import import_module
from typing import Any, Protocol

import pytest
from noting import Event
from ranking import Crew, run_thousand_jobs
from threads import in_thread, until

from synmanager import Archiver, Retry, Worker, current_job
from synmanager.errors import Unsupported
from synmanager.phases import WORK_PHASES

__all__ = ["Grid", "Roles", "consumer_class", "producer_class"]


def producer_class(phase: str) -> Any:
    return getattr(import_module(f"synmanager.{phase}"), f"{phase.capitalize()}ProducerOperator")


def consumer_class(phase: str) -> Any:
    return getattr(import_module(f"synmanager.{phase}"), f"{phase.capitalize()}ConsumerOperator")


class Grid(Protocol):
    """A broker without jobs, and connected operators on it."""

    url: str

    def producer(self, phase: str) -> Any: ...

    def consumer(self, phase: str) -> Any: ...


class Roles:
    #: Seconds of a job that is long beside all else. Half of it is "at once".
    long = 2.0

    def test_a_thousand_jobs(self, grid: Grid, crew: Crew) -> None:
        assert run_thousand_jobs(crew, grid.producer) > 100

    def test_each_job_starts_at_once_on_an_idle_worker(self, grid: Grid, crew: Crew) -> None:
        producers = {phase: grid.producer(phase) for phase in WORK_PHASES}
        names = ("a", "b", "c", "d")
        for name in names:
            crew.start(name)
        until(lambda: len(crew.events()) == 4, "four workers", within=30)
        chance = random.Random(4)
        for first in (0, 4):  # when they have just connected, and when each has run a job
            for key in range(first, first + 4):
                began = time.monotonic()
                producers[chance.choice(WORK_PHASES)].submit({"key": key, "seconds": self.long})
                assert self.await_event(crew, "started", key) - began < self.long / 2
            assert not self.of(crew, "finished", first), "the jobs are too short for this test"
            for key in range(first, first + 4):
                self.await_event(crew, "finished", key)
        for name in names:
            assert sum(e["worker"] == name for e in self.of(crew, "started")) == 2
        crew.stop()

    def test_busy_workers_hold_nothing_else(self, grid: Grid, crew: Crew) -> None:
        crew.start("a")
        crew.start("b")
        for phase in WORK_PHASES:
            jobs = [{"key": f"{phase} {n}", "seconds": self.long} for n in range(3)]
            grid.producer(phase).submit_many(jobs)
        until(lambda: len(self.of(crew, "started")) == 2, "two jobs start", within=30)
        consumers = [grid.consumer(phase) for phase in WORK_PHASES]
        # What came beside a job to who was waiting for all phases goes back in a moment.
        until(lambda: sum(each.check_message_count() for each in consumers) == 7, "all others")
        assert not self.of(crew, "finished"), "the jobs are too short for this test"
        assert sum(each.purge() for each in consumers) == 7
        crew.stop()  # each ends its job

    @staticmethod
    def of(crew: Crew, kind: str, key: Any = None) -> list[Event]:
        return [
            event
            for event in crew.events()
            if event["event"] == kind and key in (None, event["key"])
        ]

    def await_event(self, crew: Crew, kind: str, key: Any) -> float:
        until(lambda: self.of(crew, kind, key), f"job {key} {kind}")
        return float(self.of(crew, kind, key)[0]["at"])

    def test_jobs_that_submit_jobs(self, grid: Grid) -> None:
        """Through operators of the process, shared or of their own, to its own phase and others."""
        train, evaluate = grid.producer("train"), producer_class("evaluate")
        seen: list[tuple[str, int]] = []

        def do_train(run: int) -> dict[str, Any]:
            seen.append(("train", run))
            if run < 5:
                train.submit({"run": run + 1}, priority="high")
            with evaluate(url=grid.url) as producer:
                producer.process(run=run)
            return {"run": run}

        def do_evaluate(kwargs: dict[str, Any], host: str) -> None:
            seen.append(("evaluate", kwargs["run"]))

        train.process(run=0)
        worker = Worker({"train": do_train, "evaluate": do_evaluate}, url=grid.url)
        join = in_thread(worker.run, max_jobs=12)
        assert join() == 12
        assert seen == [(phase, run) for phase in ("train", "evaluate") for run in range(6)]
        assert grid.consumer("completed").check_message_count() == 6

    @pytest.mark.parametrize(
        ("rank", "expected"), [("high", [0, 1, 2]), ("normal", [1, 0, 2]), ("low", [1, 2, 0])]
    )
    def test_a_retry_keeps_its_rank(self, rank: str, expected: list[int], grid: Grid) -> None:
        producer, consumer = grid.producer("train"), grid.consumer("train")

        def again(run: int) -> None:
            raise Retry(delay=2.0)  # later than the next two are submitted

        job_id = producer.submit({"run": 0}, priority=rank)
        assert consumer.poll_message(again) is None
        producer.submit({"run": 1}, priority="normal")
        producer.submit({"run": 2}, priority="low")
        until(lambda: consumer.check_message_count() == 3, "the retry is due")
        jobs: list[Any] = []

        def note(run: int) -> int:
            jobs.append(current_job())
            return run

        assert [consumer.poll_message(note) for _ in range(3)] == expected
        (retried,) = [job for job in jobs if job.id == job_id]
        assert (retried.rank.name.lower(), retried.attempt) == (rank, 2)

    def test_a_delayed_job_appears_when_it_is_due_at_its_rank(self, grid: Grid) -> None:
        producer, consumer = grid.producer("train"), grid.consumer("train")
        begun = time.monotonic()
        producer.submit({"run": 0}, priority="high", delay=1.5)
        producer.submit({"run": 1})
        producer.submit({"run": 2}, priority="high")
        until(lambda: consumer.check_message_count() == 3, "the job is due")
        assert time.monotonic() - begun >= 1.5
        assert [consumer.poll_message(lambda run: run) for _ in range(3)] == [2, 0, 1]

    def test_subscribers(self, grid: Grid) -> None:
        """Each name gets every result from its first moment on; the unnamed share one queue."""
        got: dict[str | None, list[int]] = {None: [], "test-one": [], "test-two": []}

        def archiver(name: str | None) -> Archiver:
            return Archiver(lambda run: got[name].append(run), name, url=grid.url)

        producer = grid.producer("completed")
        producer.process(run=0)
        archiver("test-one").subscribe()
        producer.process(run=1)
        assert archiver("test-two").run(burst=True) == 0  # its first moment, and then it is away
        producer.submit_many([{"run": 2}, {"run": 3}])
        assert archiver("test-one").run(burst=True) == 3
        assert archiver("test-two").run(burst=True) == 2
        producer.process(run=4)
        for name in ("test-one", "test-two"):
            assert archiver(name).run(burst=True) == 1
        assert got == {None: [], "test-one": [1, 2, 3, 4], "test-two": [2, 3, 4]}
        # And 0.1.0's queue has them all, whoever else has read them.
        assert grid.consumer("completed").poll_message(lambda run: run) == 0
        shares = [in_thread(archiver(None).run, idle_timeout=0.5) for _ in range(2)]
        assert sum(join() for join in shares) == 4
        assert sorted(got[None]) == [1, 2, 3, 4]

    def test_delete(self, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SYNMANAGER_JOURNAL", "off")  # by which it may be cancelled instead
        producer, consumer = grid.producer("train"), grid.consumer("train")
        ids = producer.submit_many([{"run": run} for run in range(3)])
        if not producer.features.deletes:
            for operator in (producer, consumer):
                with pytest.raises(Unsupported):
                    operator.delete(ids[0])
            assert consumer.check_message_count() == 3
            return
        delayed = producer.submit({"run": 3}, delay=60)
        assert producer.delete(ids[1])
        assert not producer.delete(ids[1])
        assert consumer.delete(delayed)
        assert not producer.delete("never submitted")
        assert not grid.producer("evaluate").delete(ids[0])
        # What has started runs to its end.
        assert consumer.poll_message(lambda run: (run, producer.delete(ids[0]))) == (0, False)
        assert not producer.delete(ids[0])
        assert consumer.poll_message(lambda run: run) == 2
        assert consumer.poll_message(lambda run: run) is None

    def test_a_second_submission_of_a_job(self, grid: Grid) -> None:
        producer, consumer = grid.producer("train"), grid.consumer("train")

        def submit(delay: float = 0) -> None:
            producer.submit({"run": 1}, job_id="test-ranking", delay=delay)

        once = 1 if producer.features.deduplicates else 2
        submit()
        submit()
        if producer.features.deduplicates:  # else it would come to another test
            submit(delay=60)
        assert consumer.check_message_count() == once

        def run_it_again(run: int) -> int:
            submit()
            count: int = consumer.check_message_count()
            return count

        waiting = consumer.poll_message(run_it_again)
        assert waiting == (0 if producer.features.deduplicates else 2)
        consumer.purge()
        submit()  # it is done, and so this is another
        assert consumer.check_message_count() == 1

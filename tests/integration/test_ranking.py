"""Rank, and the two roles of the cluster, on real brokers; the workers are real processes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import noting
import pytest
import redis
from exchange import consumer_class, fresh_queues, producer_class
from noting import PHASES, Event
from ranking import run_thousand_jobs
from threads import in_thread, until
from wire import Wire

from synmanager import Archiver, Reject, Retry, Worker, current_job
from synmanager.errors import Unsupported

#: Seconds of a job that is long beside all else, and those in which a start was "at once".
LONG = 2.0
AT_ONCE = 0.5


class Processes:
    """Workers as processes; each writes what it notes to a file of its own."""

    def __init__(self, url: str, directory: Path) -> None:
        self._directory = directory
        self._environment = {
            **os.environ,
            "SYNMANAGER_BACKEND": url,
            "SYNMANAGER_LEASE": "2",  # seconds until what the dead one held is free
        }
        self._running: dict[str, subprocess.Popen[str]] = {}

    def start(self, name: str, *, hold_at: int | None = None) -> None:
        self._running[name] = subprocess.Popen(
            [sys.executable, noting.__file__, name, self._directory / name, str(hold_at or 0)],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def kill(self, name: str) -> None:
        process = self._running.pop(name)
        process.kill()
        process.communicate()

    def events(self) -> list[Event]:
        found: list[Event] = []
        for journal in self._directory.iterdir():
            whole, _, _ = journal.read_text().rpartition("\n")
            found += map(json.loads, whole.splitlines())
        return found

    def stop(self) -> None:
        for process in self._running.values():
            process.terminate()
        for name, process in self._running.items():
            output, _ = process.communicate(timeout=30)
            assert process.returncode == 0, f"{name}: {output}"
        self._running.clear()

    def end(self) -> None:
        for name in tuple(self._running):
            self.kill(name)


class Grid:
    """A broker, and what a test needs on it."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self.url = url
        self._stack = stack

    def producer(self, phase: str) -> Any:
        return self._stack.enter_context(producer_class(phase)(url=self.url))

    def consumer(self, phase: str) -> Any:
        return self._stack.enter_context(consumer_class(phase)(url=self.url))

    def purge(self) -> None:
        for phase in (*PHASES, "completed"):
            with consumer_class(phase)(url=self.url) as consumer:
                consumer.purge()
                consumer.purge_dead_letters()


class Roles:
    """What holds on every broker that is shared by processes."""

    @pytest.fixture
    def grid(self, url: str) -> Iterator[Grid]:
        with ExitStack() as stack:
            grid = Grid(url, stack)
            grid.purge()
            yield grid
            grid.purge()

    @pytest.fixture
    def crew(self, grid: Grid, tmp_path: Path) -> Iterator[Processes]:
        crew = Processes(grid.url, tmp_path)
        yield crew
        crew.end()

    def test_a_thousand_jobs(self, grid: Grid, crew: Processes) -> None:
        assert run_thousand_jobs(crew, grid.producer) > 100

    def test_each_job_starts_at_once_on_an_idle_worker(self, grid: Grid, crew: Processes) -> None:
        producers = {phase: grid.producer(phase) for phase in PHASES}
        names = ("a", "b", "c", "d")
        for name in names:
            crew.start(name)
        until(lambda: len(crew.events()) == 4, "four workers", within=30)
        chance = random.Random(4)
        for first in (0, 4):  # when they have just connected, and when each has run a job
            for key in range(first, first + 4):
                began = time.monotonic()
                producers[chance.choice(PHASES)].submit({"key": key, "seconds": LONG})
                assert self.await_event(crew, "started", key) - began < AT_ONCE
            assert not self.of(crew, "finished", first), "the jobs are too short for this test"
            for key in range(first, first + 4):
                self.await_event(crew, "finished", key)
        for name in names:
            assert sum(e["worker"] == name for e in self.of(crew, "started")) == 2
        crew.stop()

    def test_busy_workers_hold_nothing_else(self, grid: Grid, crew: Processes) -> None:
        crew.start("a")
        crew.start("b")
        for phase in PHASES:
            jobs = [{"key": f"{phase} {n}", "seconds": LONG} for n in range(3)]
            grid.producer(phase).submit_many(jobs)
        until(lambda: len(self.of(crew, "started")) == 2, "two jobs start", within=30)
        waiting = [grid.consumer(phase).check_message_count() for phase in PHASES]
        assert sum(waiting) == 7
        assert not self.of(crew, "finished"), "the jobs are too short for this test"
        grid.purge()
        crew.stop()  # each ends its job

    @staticmethod
    def of(crew: Processes, kind: str, key: Any = None) -> list[Event]:
        return [
            event
            for event in crew.events()
            if event["event"] == kind and key in (None, event["key"])
        ]

    def await_event(self, crew: Processes, kind: str, key: Any) -> float:
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
            raise Retry(delay=0.2)

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
        producer.submit({"run": 0}, priority="high", delay=0.5)
        producer.submit({"run": 1})
        producer.submit({"run": 2}, priority="high")
        assert consumer.check_message_count() == 2
        until(lambda: consumer.check_message_count() == 3, "the job is due")
        assert time.monotonic() - begun >= 0.5
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

    def test_delete(self, grid: Grid) -> None:
        producer, consumer = grid.producer("train"), grid.consumer("train")
        ids = producer.submit_many([{"run": run} for run in range(3)])
        delayed = producer.submit({"run": 3}, delay=60)
        if not producer.features.deletes:
            for operator in (producer, consumer):
                with pytest.raises(Unsupported):
                    operator.delete(ids[0])
            assert consumer.check_message_count() == 3
            return
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

    def test_one_connection_for_each_worker(self, grid: Grid) -> None:
        for phase in PHASES:
            grid.producer(phase).submit_many([{"run": run} for run in range(4)])

        def work(run: int) -> dict[str, int]:
            if run == 0:
                raise Reject("planted")
            if run == 1:
                raise Retry(delay=0.1)
            return {"run": run}

        with Wire(grid.url) as wire:
            worker = Worker(dict.fromkeys(PHASES, work), url=wire.url)
            assert worker.run(idle_timeout=0.05) >= 12
            assert wire.connections == 1
        assert grid.consumer("completed").check_message_count() == 6


class TestRabbitMQ(Roles):
    @pytest.fixture
    def url(self, amqp_url: str) -> Iterator[str]:
        with fresh_queues(amqp_url, "this project") as channel:
            yield amqp_url
            for name in ("test-one", "test-two"):
                for queue in (f"completed-{name}", f"completed-{name}.dead"):
                    channel.queue_delete(queue)


class TestRedis(Roles):
    @pytest.fixture
    def url(self, redis_url: str) -> Iterator[str]:
        yield f"{redis_url}?prefix=test-ranking"
        with redis.Redis.from_url(redis_url) as client:
            for key in client.scan_iter("{test-ranking}:*", count=1000):
                client.delete(key)

"""A job of hours in miniature, watched from elsewhere; and a sweep whose Director is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import marathon
import pytest
import redis
from exchange import fresh_queues
from threads import in_thread

from synmanager import Archiver, Jobs, Reject, Sweep, Worker, current_job
from synmanager.backends.rabbitmq.journal import stream
from synmanager.cli import main
from synmanager.errors import TopologyError
from synmanager.evaluate import EvaluateProducerOperator
from synmanager.journal import marks, recorder
from synmanager.journal.events import CHECKPOINTS, EVENTS, MARKS, PLACES, SWEEPS
from synmanager.journal.fold import State
from synmanager.phases import WorkPhase
from synmanager.train import TrainConsumerOperator, TrainProducerOperator

DIRECTOR = """
import sys, time
from synmanager.train import TrainProducerOperator
with TrainProducerOperator() as producer:
    jobs = [{"run": run, "poison": run in (7, 77, 177)} for run in range(200)]
    for number, done in enumerate(producer.sweep(jobs, name=sys.argv[1]).results()):
        print(done.id, flush=True)
        if number == 30:
            time.sleep(600)
"""


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 45
    while not condition():
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(0.05)


def reached(job: State) -> float:
    return (job.progress.done if job.progress else None) or 0.0


@pytest.fixture(autouse=True)
def _journal(monkeypatch: pytest.MonkeyPatch, patient_farewell: None) -> None:
    monkeypatch.setenv("SYNMANAGER_JOURNAL", "on")


class Crew:
    """Workers as processes."""

    def __init__(self, url: str) -> None:
        self._environment = {
            **os.environ,
            "SYNMANAGER_BACKEND": url,
            "SYNMANAGER_JOURNAL": "on",
            "SYNMANAGER_LEASE": "2",
        }
        self._running: list[subprocess.Popen[str]] = []

    def start(self, *command: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, *command],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._running.append(process)
        return process

    def worker(self, tag: str) -> subprocess.Popen[str]:
        return self.start(marathon.__file__, tag)

    def end(self) -> None:
        for process in self._running:
            process.kill()
            process.communicate()


class Story:
    @pytest.fixture
    def url(self) -> Iterator[str]:
        raise NotImplementedError

    @pytest.fixture
    def crew(self, url: str) -> Iterator[Crew]:
        crew = Crew(url)
        yield crew
        crew.end()

    def test_a_job_of_hours(self, url: str, crew: Crew) -> None:
        with TrainProducerOperator(url=url) as producer, Jobs(url=url) as jobs:
            job_id = producer.submit({"steps": 100_000})

            def now() -> State:
                job = jobs.get(job_id)
                assert job is not None
                return job

            until(lambda: jobs.get(job_id) is not None, "it is known")
            assert now().state == "queued"
            assert "no worker takes jobs of train" in jobs.why(job_id)
            first = crew.worker("site-a")
            until(lambda: reached(now()) > 0, "its progress is seen")
            job = now()
            assert (job.state, job.attempt) == ("running", 1)
            assert job.eta is not None
            (worker,) = jobs.workers()
            assert (worker.tags, worker.pid) == (("site-a",), first.pid)
            assert worker.id == job.worker

            before = reached(job)
            first.kill()
            second = crew.worker("site-b")
            until(lambda: now().attempt == 2 and reached(now()) > 0, "another one goes on")
            assert reached(now()) >= before
            assert [worker.tags for worker in jobs.workers()] == [("site-b",)]

            later = producer.submit({"steps": 1})
            jobs.cancel(later, job_id)
            for ended in jobs.wait([job_id, later], timeout=45):
                assert ended is not None
                assert ended.state == "cancelled"
            second.send_signal(signal.SIGTERM)
            second.communicate(timeout=30)
            assert jobs.workers() == []
        with TrainConsumerOperator(url=url) as consumer:
            assert consumer.check_message_count() == 0
            assert consumer.dead_letters() == []

    def test_a_sweep_whose_director_is_killed(self, url: str, crew: Crew) -> None:
        name = f"sweep-{time.time_ns():x}"
        director = crew.start("-c", DIRECTOR, name)
        crew.worker("site-a")
        crew.worker("site-b")
        assert director.stdout is not None
        seen = [director.stdout.readline().strip() for _ in range(31)]
        director.kill()
        with Sweep.attach(name, url=url) as sweep:
            rest = list(sweep.results(timeout=45))
            assert sweep.counts() == {"succeeded": 197, "dead": 3}
        # The last one was being worked at.
        assert sorted(seen[:30] + [done.id for done in rest]) == sorted(sweep.ids())
        failed = {done.job["run"] for done in rest if done.error} | {
            int(job_id.rpartition(".")[2]) for job_id in seen[:30]
        } & {7, 77, 177}
        assert failed == {7, 77, 177}
        with TrainConsumerOperator(url=url) as consumer:
            assert len(consumer.dead_letters()) == 3
            consumer.purge_dead_letters()

    def test_a_sweep_whose_queue_is_purged(self, url: str) -> None:
        with (
            TrainProducerOperator(url=url) as producer,
            TrainConsumerOperator(url=url) as consumer,
            producer.sweep([{"run": run} for run in range(6)]) as sweep,
        ):
            consumer.poll_message(lambda run: {"run": run})
            recorder.flush_all(45)  # it has ended before, also in the journal
            assert consumer.purge() == 5
            ended = list(sweep.results(timeout=45))
            assert sweep.counts() == {"succeeded": 1, "cancelled": 5}
        assert [done.result for done in ended if done.error is None] == [{"run": 0}]
        (error,) = {done.error for done in ended if done.error is not None}
        assert error.startswith("cancelled: purged from its queue by ")

    def test_a_subscriber_is_told_of_failures_mends_its_own_and_leaves(
        self, url: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def cli(*words: str) -> str:
            capsys.readouterr()
            assert main([*words, "--backend", url]) == 0
            return capsys.readouterr().out

        told: list[tuple[str, str]] = []

        def archive(run: int) -> None:
            raise Reject("the archive is full")

        def subscriber(name: str = "director") -> Archiver:
            return Archiver(
                archive, name, url=url, on_failure=lambda each: told.append((each.phase, each.id))
            )

        for name in ("director", "staying"):
            subscriber(name).unsubscribe()  # what another test left there
            subscriber(name).subscribe()
        with TrainProducerOperator(url=url) as producer:
            producer.submit({"poison": 1}, job_id="poison")
            producer.submit({"run": 1}, job_id="sound")

        def work(run: int) -> dict[str, int]:
            return {"run": run}

        Worker({"train": work}, url=url).run(burst=True)

        following = subscriber()
        thread = threading.Thread(target=following.run)
        thread.start()
        until(lambda: len(told) == 2, "both are told")
        following.stop()
        thread.join()
        assert [phase for phase, _ in sorted(told)] == ["completed-director", "train"]
        assert ("train", "poison") in told
        subscriber().run(burst=True)
        assert len(told) == 2

        (letter,) = following.dead_letters()
        assert letter.reason == "the archive is full"
        listed = cli("dead", "list", "--subscriber", "director", "--json", "--each")
        assert [each["id"] for each in json.loads(listed)] == [letter.message.id]
        cli("dead", "redrive", letter.message.id, "--yes", "--subscriber", "director")
        assert following.dead_letters() == []

        cli("dead", "redrive", "poison", "--yes")
        with Jobs(url=url) as jobs:
            job = jobs.get("poison")
            assert job is not None
            assert (job.state, (job.reason or "")[:11]) == ("queued", "put back by")

        assert following.unsubscribe() == 1
        with TrainProducerOperator(url=url) as producer:
            producer.submit({"run": 2})
        Worker({"train": work}, url=url).run(burst=True)
        with pytest.raises(TopologyError):
            following.dead_letters()
        assert subscriber("staying").run(burst=True) == 2
        assert subscriber("staying").unsubscribe() == 2
        with TrainConsumerOperator(url=url) as consumer:
            assert consumer.purge_dead_letters() == 1

    def test_a_phase_that_is_paused(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """Train ranks above evaluate: who did not obey would run it first."""
        monkeypatch.setattr(marks, "PATIENCE", 10.0)  # on a busy machine a look takes longer
        monkeypatch.setattr(marks, "_FIRST", 30.0)
        monkeypatch.setattr(marks, "_WAITS", 0.1)
        ran: list[str] = []

        def train(**_: Any) -> None:
            job = current_job()
            assert job is not None
            ran.append(f"train {job.attempt}")

        @contextmanager
        def working() -> Iterator[None]:
            handlers: dict[WorkPhase, Any] = {
                "train": train,
                "evaluate": lambda **_: ran.append("evaluate"),
            }
            worker = Worker(handlers, url=url)
            join = in_thread(worker.run)
            try:
                yield
            finally:
                worker.stop()
                join()

        with (
            TrainProducerOperator(url=url) as trains,
            EvaluateProducerOperator(url=url) as evaluates,
            Jobs(url=url) as jobs,
        ):

            def another() -> None:
                (job,) = jobs.wait([evaluates.submit({})], timeout=45)
                assert job is not None
                assert job.state == "succeeded"

            with working():
                another()
                made = jobs.pause("train", who="ada")
                held = trains.submit({})
                another()
            with working():  # one that begins meanwhile
                another()
                assert ran == ["evaluate"] * 3
                assert jobs.paused() == {"train": made}
                assert "train has been paused for" in jobs.why(held)
                jobs.resume("train")
                jobs.wait([held], timeout=45)
                assert ran[3:] == ["train 1"]


class TestSQLite(Story):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/jobs.db"


class TestRedis(Story):
    @pytest.fixture
    def url(self, redis_url: str) -> Iterator[str]:
        yield f"{redis_url}?prefix=test-journal"
        with redis.Redis.from_url(redis_url) as client:
            for key in client.scan_iter("{test-journal}:*", count=1000):
                client.delete(key)


class TestRabbitMQ(Story):
    @pytest.fixture
    def url(self, amqp_url: str) -> Iterator[str]:
        with fresh_queues(amqp_url, "this project") as channel:
            # What other tests left there: workers that were killed, say.
            for log in (EVENTS, MARKS, CHECKPOINTS, PLACES, SWEEPS):
                channel.queue_delete(stream(log))
            yield amqp_url

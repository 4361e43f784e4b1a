"""Rank, and the two roles of the cluster, on real brokers; the workers are real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import noting
import pytest
import redis
from exchange import fresh_queues
from noting import Event
from roles import Roles, consumer_class, producer_class
from wire import Wire

from synmanager import Reject, Retry, Worker, current_job
from synmanager.phases import WORK_PHASES


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


class SharedGrid:
    """A broker, and what a test needs on it."""

    def __init__(self, url: str, stack: ExitStack) -> None:
        self.url = url
        self._stack = stack

    def producer(self, phase: str) -> Any:
        return self._stack.enter_context(producer_class(phase)(url=self.url))

    def consumer(self, phase: str) -> Any:
        return self._stack.enter_context(consumer_class(phase)(url=self.url))

    def purge(self) -> None:
        for phase in (*WORK_PHASES, "completed"):
            with consumer_class(phase)(url=self.url) as consumer:
                consumer.purge()
                consumer.purge_dead_letters()


class RolesAcrossProcesses(Roles):
    long = 10.0  # half of it is for a process that is ready and has yet to connect

    @pytest.fixture
    def grid(self, url: str) -> Iterator[SharedGrid]:
        with ExitStack() as stack:
            grid = SharedGrid(url, stack)
            grid.purge()
            yield grid
            grid.purge()

    @pytest.fixture
    def crew(self, grid: SharedGrid, tmp_path: Path) -> Iterator[Processes]:
        crew = Processes(grid.url, tmp_path)
        yield crew
        crew.end()

    def test_one_connection_for_each_worker(
        self, grid: SharedGrid, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SYNMANAGER_JOURNAL", "off")  # which has another, beside the jobs
        for phase in WORK_PHASES:
            grid.producer(phase).submit_many([{"run": run} for run in range(4)])

        def work(run: int) -> dict[str, int]:
            job = current_job()
            assert job is not None
            if run == 0:
                raise Reject("planted")
            if run == 1 and job.attempt == 1:
                raise Retry(delay=0.1)
            return {"run": run}

        with Wire(grid.url) as wire:
            worker = Worker(dict.fromkeys(WORK_PHASES, work), url=wire.url)
            assert worker.run(max_jobs=15) == 15
            assert wire.connections == 1
        assert grid.consumer("completed").check_message_count() == 9


class TestRabbitMQ(RolesAcrossProcesses):
    @pytest.fixture
    def url(self, amqp_url: str) -> Iterator[str]:
        with fresh_queues(amqp_url, "this project") as channel:
            yield amqp_url
            for name in ("test-one", "test-two"):
                for queue in (f"completed-{name}", f"completed-{name}.dead"):
                    channel.queue_delete(queue)


class TestRedis(RolesAcrossProcesses):
    @pytest.fixture
    def url(self, redis_url: str) -> Iterator[str]:
        yield f"{redis_url}?prefix=test-ranking"
        with redis.Redis.from_url(redis_url) as client:
            for key in client.scan_iter("{test-ranking}:*", count=1000):
                client.delete(key)

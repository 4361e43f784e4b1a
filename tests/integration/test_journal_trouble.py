"""A journal that is deleted, forbidden, or whose place is taken: jobs run as before."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
from exchange import fresh_queues

from synmanager import Jobs, Worker
from synmanager.backends.rabbitmq.journal import stream
from synmanager.journal.events import EVENTS, MARKS
from synmanager.train import TrainConsumerOperator, TrainProducerOperator

JOBS = 20


def go(url: str, spoil: Callable[[], object] = lambda: None, *, again: int = 0) -> list[int]:
    """Submit jobs and run them; one of them spoils something. Which have run.

    Args:
        again: how many may be lost at their end, and come once more to be settled.
    """
    with TrainProducerOperator(url=url) as producer:
        producer.submit_many([{"run": run} for run in range(JOBS)])
    ran = []

    def work(run: int) -> dict[str, int]:
        ran.append(run)
        if run == JOBS // 2:
            spoil()
        return {"run": run}

    assert JOBS <= Worker({"train": work}, url=url).run(burst=True) <= JOBS + again
    with TrainConsumerOperator(url=url) as consumer:
        assert consumer.check_message_count() == 0
        assert consumer.dead_letters() == []
    return ran


@pytest.mark.usefixtures("patient_farewell")
class Trouble:
    #: Whether the jobs' connection outlives the end of a log that is read or written just then.
    keeps_the_connection = True

    @pytest.fixture
    def delete(self, url: str) -> Callable[[], object]:
        """Deletes the logs."""
        raise NotImplementedError

    def test_deleted_meanwhile(
        self, url: str, delete: Callable[[], object], caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, "synmanager"):
            ran = go(url, delete, again=0 if self.keeps_the_connection else JOBS)
        assert ran == list(range(JOBS))
        assert "no longer ours" not in caplog.text or not self.keeps_the_connection
        with TrainProducerOperator(url=url) as producer:
            job_id = producer.submit({"run": 0})
        assert Worker({"train": lambda run: None}, url=url).run(burst=True) == 1
        with Jobs(url=url) as jobs:
            (job,) = jobs.wait([job_id], timeout=30)
            assert job is not None
            assert job.state == "succeeded"


def assert_said_once_each(caplog: pytest.LogCaptureFixture) -> None:
    """Once by the producer, and once by the worker."""
    assert [record.getMessage()[:27] for record in caplog.records] == [
        "the journal does not work (",
        "the journal does not work (",
    ]


class TestRedis(Trouble):
    @pytest.fixture
    def server(self, redis_url: str) -> Iterator[redis.Redis]:
        with redis.Redis.from_url(redis_url) as client:
            yield client
            for key in client.scan_iter("{test-trouble}:*", count=1000):
                client.delete(key)

    @pytest.fixture
    def url(self, redis_url: str, server: redis.Redis) -> str:
        return f"{redis_url}?prefix=test-trouble"

    @pytest.fixture
    def delete(self, url: str, server: redis.Redis) -> Callable[[], object]:
        return lambda: server.delete(
            *(f"{{test-trouble}}:journal:{log}" for log in (EVENTS, MARKS))
        )

    def test_its_place_is_taken(
        self, url: str, server: redis.Redis, caplog: pytest.LogCaptureFixture
    ) -> None:
        for log in (EVENTS, MARKS):
            server.set(f"{{test-trouble}}:journal:{log}", "no stream")
        with caplog.at_level(logging.WARNING, "synmanager"):
            assert go(url) == list(range(JOBS))
        assert_said_once_each(caplog)

    def test_forbidden(
        self, url: str, server: redis.Redis, caplog: pytest.LogCaptureFixture
    ) -> None:
        keys = [
            f"~{{test-trouble}}:{name}" for name in ("exchanges", "queues", "queue:*", "route:*")
        ]
        acl: Any = partial(server.execute_command, "ACL")
        acl("SETUSER", "trouble", "reset", "on", ">secret", "+@all", *keys)
        try:
            with caplog.at_level(logging.WARNING, "synmanager"):
                assert go(url.replace("://", "://trouble:secret@")) == list(range(JOBS))
        finally:
            acl("DELUSER", "trouble")
        assert_said_once_each(caplog)


class TestRabbitMQ(Trouble):
    keeps_the_connection = False  # RabbitMQ ends it, now and then, see README.md

    @pytest.fixture
    def url(self, amqp_url: str) -> Iterator[str]:
        with fresh_queues(amqp_url, "this project"):
            yield amqp_url

    @pytest.fixture
    def delete(self, amqp_url: str) -> Iterator[Callable[[], object]]:
        with fresh_queues(amqp_url, "this project") as channel:
            yield lambda: [channel.queue_delete(stream(log)) for log in (EVENTS, MARKS)]


class TestSQLite(Trouble):
    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/jobs.db"

    @pytest.fixture
    def delete(self, tmp_path: Path) -> Callable[[], object]:
        def drop() -> None:
            db = sqlite3.connect(tmp_path / "jobs.db", timeout=30)
            for log in (EVENTS, MARKS):
                db.execute(f"DROP TABLE IF EXISTS journal_{log}")
            db.close()

        return drop

"""What tools that watch are told: a trace over several sites, and an exporter's metrics."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import released
import traced
from exchange import fresh_queues
from threads import until

from synmanager import Reject, Worker
from synmanager.backends.rabbitmq.journal import stream
from synmanager.completed import CompletedConsumerOperator
from synmanager.journal.events import CHECKPOINTS, EVENTS, MARKS, SWEEPS
from synmanager.lookout import Lookout
from synmanager.metrics import Collector
from synmanager.settings import load_settings
from synmanager.train import TrainConsumerOperator, TrainProducerOperator


def run_traced(url: str, file: Path, what: str, site: str, *rest: str) -> None:
    subprocess.run(
        [sys.executable, traced.__file__, what, site, str(file), *rest],
        env={**os.environ, "SYNMANAGER_BACKEND": url},
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=120,
    )


class Span:
    """One that was exported."""

    def __init__(self, line: str) -> None:
        told = json.loads(line)
        self.name: str = told["name"]
        self.id: str = told["context"]["span_id"]
        self.trace: str = told["context"]["trace_id"]
        self.parent: str | None = told["parent_id"]
        self.links = [link["context"]["span_id"] for link in told["links"]]
        self.about: dict[str, Any] = told["attributes"]
        self.site: str = told["resource"]["attributes"]["service.name"]


def read(file: Path) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = defaultdict(list)
    for span in map(Span, file.read_text().splitlines()):
        found[span.name].append(span)
    return found


class Story:
    system = ""

    @pytest.fixture
    def url(self) -> Iterator[str]:
        raise NotImplementedError

    def test_a_trace_read_back_in_full(self, url: str, tmp_path: Path) -> None:
        file = tmp_path / "spans"
        run_traced(url, file, "direct", "director")
        run_traced(url, file, "work", "site-a", "1")
        run_traced(url, file, "work", "site-b")
        with TrainConsumerOperator(url=url) as consumer:
            assert consumer.redrive() == 1
        run_traced(url, file, "work", "site-c")
        spans = read(file)
        assert {name: len(found) for name, found in spans.items()} == {
            "send train": 3,
            "process train": 6,
            "send completed": 4,
        }
        everything = [span for found in spans.values() for span in found]
        assert {span.about["messaging.system"] for span in everything} == {self.system}
        sent = {
            span.about.get("messaging.message.id", "batch"): span for span in spans["send train"]
        }
        assert sent["batch"].about["messaging.batch.message_count"] == 2
        runs = [
            (
                span.about["messaging.message.id"],
                span.about["synmanager.attempt"],
                span.site,
                span.about.get("error.type", "").rpartition(".")[2],
            )
            for span in spans["process train"]
        ]
        assert sorted(runs) == [
            ("fine-1", 1, "site-b", ""),
            ("fine-2", 1, "site-b", ""),
            ("flaky", 1, "site-a", "Retry"),
            ("flaky", 2, "site-b", ""),
            ("poison", 1, "site-b", "Reject"),
            ("poison", 1, "site-c", ""),
        ]
        for span in spans["process train"]:
            of = sent.get(span.about["messaging.message.id"], sent["batch"])
            assert span.links == [of.id]
            assert (span.parent, span.trace == of.trace) == (None, False)
        succeeded = {span.id for span in spans["process train"] if "error.type" not in span.about}
        assert {span.parent for span in spans["send completed"]} == succeeded
        bodies: list[dict[str, Any]] = []

        def archive(**body: Any) -> dict[str, Any]:
            bodies.append(body)
            return body

        with CompletedConsumerOperator(url=url) as archiver:
            while archiver.poll_message(archive):
                pass
        assert all(list(body) == ["run"] for body in bodies)
        assert len(bodies) == 4

    @pytest.mark.usefixtures("patient_farewell")
    def test_an_exporter_knows_what_becomes_of_jobs(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SYNMANAGER_JOURNAL", "on")
        monkeypatch.setattr("synmanager.lookout._BETWEEN", 0.1)
        with TrainProducerOperator(url=url) as producer:
            producer.submit({"run": 0})
        said: list[str] = []
        lookout = Lookout(load_settings(url=url), (), said.append)
        lookout.start()
        try:

            def value(name: str, **labels: str) -> float | None:
                for family in Collector(lookout).collect():
                    for sample in family.samples:
                        if (sample.name, sample.labels) == (f"synmanager_{name}", labels):
                            return float(sample.value)
                return None

            until(lambda: value("journal_up") == 1, "the journal is heard")
            assert value("ready_jobs", phase="train", rank="normal") == 1

            def train(run: int) -> None:
                if run == 2:
                    raise Reject("no")

            with TrainProducerOperator(url=url) as producer:
                producer.submit_many([{"run": run} for run in range(1, 5)])
            Worker({"train": train}, url=url).run(burst=True)

            def ended() -> float | None:
                return value("jobs_ended_total", phase="train", outcome="succeeded")

            until(lambda: ended() == 4, "jobs have succeeded")
            until(lambda: value("jobs", phase="train", state="dead") == 1, "one is dead")
            # Also where the broker does not say it.
            until(lambda: value("jobs", phase="train", state="running") == 0, "none runs")
            until(lambda: value("jobs", phase="train", state="delayed") == 0, "none is delayed")
            until(lambda: value("jobs_submitted_total", phase="train") == 4, "four were submitted")
            assert value("broker_up") == 1
            assert said == []
        finally:
            lookout.stop()
        with TrainConsumerOperator(url=url) as consumer:
            consumer.purge_dead_letters()


class TestSQLite(Story):
    system = "sqlite"

    @pytest.fixture
    def url(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/jobs.db"


class TestRedis(Story):
    system = "redis"

    @pytest.fixture
    def url(self, redis_url: str) -> Iterator[str]:
        yield f"{redis_url}?prefix=test-monitoring"
        with redis.Redis.from_url(redis_url) as client:
            for key in client.scan_iter("{test-monitoring}:*", count=1000):
                client.delete(key)


class TestRabbitMQ(Story):
    system = "rabbitmq"

    @pytest.fixture
    def url(self, amqp_url: str) -> Iterator[str]:
        with fresh_queues(amqp_url, "this project") as channel:
            for log in (EVENTS, MARKS, CHECKPOINTS, SWEEPS):  # of other tests
                channel.queue_delete(stream(log))
            yield amqp_url

    def test_0_1_0_takes_what_is_traced(self, url: str, tmp_path: Path) -> None:
        run_traced(url, tmp_path / "spans", "direct", "director")
        consumer = released.Consumer(url, "train")
        consumer.connect()
        taken: list[dict[str, Any]] = []
        until(lambda: consumer.check_message_count() == 4)
        for _ in range(4):
            consumer.poll_message(lambda **job: taken.append(job))
        consumer.disconnect()
        assert sorted(job["run"] for job in taken) == ["fine", "fine", "flaky", "poison"]
        assert all(re.fullmatch("[a-z]+", job["run"]) and len(job) == 1 for job in taken)

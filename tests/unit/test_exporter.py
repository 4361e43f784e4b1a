"""``synmanager exporter``, and what it says of a broker, or rather not."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import util
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from grid import Grid, in_thread, until

from synmanager import Reject, Worker, current_job, lookout
from synmanager.backends import Counts
from synmanager.backends.memory import MemoryBackend
from synmanager.cli import main
from synmanager.errors import AccessRefused, BrokerUnavailable
from synmanager.journal import recorder
from synmanager.journal.desk import Report
from synmanager.journal.events import EVENTS, Event, write
from synmanager.lookout import Lookout
from synmanager.metrics import serve
from synmanager.settings import load_settings


@pytest.fixture(autouse=True)
def _journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNMANAGER_JOURNAL", "on")
    monkeypatch.setattr(lookout, "_WAIT", 0.05)
    monkeypatch.setattr(lookout, "_BETWEEN", 0.02)


class Exporter:
    """One in this process, and what it serves."""

    def __init__(self, url: str, *queues: str) -> None:
        self.said: list[str] = []
        self.lookout = Lookout(load_settings(url=url), queues, self.said.append)
        self.lookout.start()
        try:
            self.port, self._end = serve(self.lookout, "127.0.0.1", 0)
        except BaseException:
            self.lookout.stop()
            raise

    def close(self) -> None:
        self._end()
        self.lookout.stop()

    def scrape(self) -> str:
        with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    def value(self, series: str) -> float | None:
        """Of a series as it is written, such as ``workers{state="idle"}``."""
        found = re.search(rf"^synmanager_{re.escape(series)} (.*)$", self.scrape(), re.MULTILINE)
        return None if found is None else float(found[1])

    def until(self, series: str, wanted: float | None) -> None:
        until(lambda: self.value(series) == wanted, f"{series} is {wanted}")


@pytest.fixture
def export() -> Iterator[Callable[..., Exporter]]:
    made: list[Exporter] = []

    def make(url: str, *queues: str) -> Exporter:
        made.append(Exporter(url, *queues))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_worker_s_day(grid: Grid, export: Callable[..., Exporter]) -> None:
    begun, go = threading.Event(), threading.Event()

    def train(run: int) -> None:
        if run == 1:
            raise Reject("no")
        begun.set()
        assert go.wait(30)

    exporter = export(grid.url)
    exporter.until("journal_up", 0)
    producer = grid.producer()
    producer.submit({"run": 1}, priority="high")
    producer.submit({"run": 2})
    producer.submit({"run": 3}, priority="low")
    producer.submit({"run": 4}, delay=3600)
    exporter.until('ready_jobs{phase="train",rank="high"}', 1)
    worker = Worker({"train": train}, url=grid.url)
    join = in_thread(worker.run)
    assert begun.wait(30)
    exporter.until('workers{state="busy"}', 1)
    exporter.until('jobs_ended_total{outcome="dead",phase="train"}', 1)
    for state in ("ready", "running", "delayed", "dead"):
        exporter.until(f'jobs{{phase="train",state="{state}"}}', 1)
    exporter.until('ready_jobs{phase="train",rank="high"}', 0)
    exporter.until('ready_jobs{phase="train",rank="low"}', 1)
    exporter.until('jobs_submitted_total{phase="train"}', 4)
    for age in ("oldest_ready_job_age_seconds", "running_job_silence_seconds"):
        seconds = exporter.value(f'{age}{{phase="train"}}')
        assert seconds is not None
        assert 0 <= seconds < 60
    go.set()
    exporter.until('job_running_seconds_count{outcome="succeeded",phase="train"}', 2)
    exporter.until('job_waiting_seconds_count{outcome="started",phase="train"}', 3)
    worker.stop()
    join()
    exporter.until('workers{state="idle"}', 0)
    exporter.until('running_job_silence_seconds{phase="train"}', None)
    # Of results, which are no jobs, the journal does not tell.
    assert exporter.value('ready_jobs{phase="completed",rank="normal"}') is None
    assert exporter.said == [exporter.said[0]]
    assert "SYNMANAGER_JOURNAL=off" in exporter.said[0]


def test_what_was_before_is_known_and_not_counted(
    grid: Grid, export: Callable[..., Exporter]
) -> None:
    grid.producer().submit_many([{"run": run} for run in range(3)], priority="low")
    Worker({"train": lambda run: None}, url=grid.url).run(burst=True, max_jobs=1)
    recorder.flush_all(5)
    exporter = export(grid.url)
    exporter.until("journal_up", 1)
    exporter.until('ready_jobs{phase="train",rank="low"}', 2)
    assert exporter.value('jobs_ended_total{outcome="succeeded",phase="train"}') == 0
    grid.client().purge("train")
    exporter.until('ready_jobs{phase="train",rank="low"}', 0)
    exporter.until('oldest_ready_job_age_seconds{phase="train"}', None)


def test_a_renewal_that_comes_late_is_told(grid: Grid, export: Callable[..., Exporter]) -> None:
    exporter = export(grid.url)
    exporter.until("journal_up", 0)

    def train(run: int) -> None:
        job = current_job()
        assert job is not None
        report = job.reporter
        assert isinstance(report, Report)
        report.renewed()  # in time
        report._kept_at -= 31  # seconds, of a lease of 60
        report.renewed()
        report.renewed()

    grid.producer().process(run=1)
    Worker({"train": train}, url=grid.url, lease=60).run(burst=True)
    exporter.until('jobs_ended_total{outcome="succeeded",phase="train"}', 1)
    assert exporter.value('job_late_renewals_total{phase="train"}') == 1


def test_without_a_journal_what_it_would_tell_is_left_out(
    grid: Grid, export: Callable[..., Exporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryBackend, "features", replace(MemoryBackend.features, journal=False))
    monkeypatch.setattr(
        MemoryBackend, "count", lambda *_: Counts(ready=3, leased=None, delayed=None, dead=1)
    )
    exporter = export(grid.url)
    text = exporter.scrape()
    names = set(re.findall(r"^synmanager_(\w+)", text, re.MULTILINE))
    assert names == {"build_info", "broker_up", "journal_up", "jobs"}
    assert set(re.findall(r'phase="train",state="(\w+)"', text)) == {"ready", "dead"}
    assert "memory keeps no journal" in exporter.said[0]


def test_where_the_broker_cannot_count_what_runs_the_journal_does(
    grid: Grid, export: Callable[..., Exporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        MemoryBackend, "count", lambda *_: Counts(ready=3, leased=None, delayed=None, dead=1)
    )
    grid.producer().submit({"run": 1}, delay=3600)
    exporter = export(grid.url)
    exporter.until('jobs{phase="train",state="delayed"}', 1)
    assert exporter.value('jobs{phase="train",state="running"}') == 0
    assert exporter.value('jobs{phase="completed",state="running"}') is None


def test_a_broker_that_is_away(
    grid: Grid, export: Callable[..., Exporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "_PAUSE", 0.05)
    grid.producer().submit({"run": 1})
    recorder.flush_all(5)
    exporter = export(grid.url)
    exporter.until("journal_up", 1)
    refused = AccessRefused("not you")

    def refuse(*_: Any, **__: Any) -> Any:
        raise refused

    with monkeypatch.context() as away:
        away.setattr(MemoryBackend, "count", refuse)
        away.setattr(MemoryBackend, "replay", refuse)
        exporter.until("broker_up", 0)
        exporter.until("journal_up", 0)
        assert exporter.value('jobs{phase="train",state="ready"}') is None
        assert exporter.value('ready_jobs{phase="train",rank="normal"}') is None
    exporter.until("broker_up", 1)
    exporter.until('ready_jobs{phase="train",rank="normal"}', 1)
    assert exporter.said == ["AccessRefused: not you"]


def test_an_idle_one_asks_the_broker_next_to_nothing(
    grid: Grid, export: Callable[..., Exporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    calls: list[str] = []
    for name in ("count", "replay", "facts"):
        real = getattr(MemoryBackend, name)

        def noted(*args: Any, name: str = name, real: Any = real, **kwargs: Any) -> Any:
            calls.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(MemoryBackend, name, noted)
    grid.client()
    exporter = export(grid.url)
    until(lambda: "replay" in calls)
    calls.clear()
    began = time.monotonic()
    for _ in range(30):
        exporter.scrape()
        time.sleep(0.05)
    took = time.monotonic() - began
    assert calls.count("count") <= 1 + took / 2
    assert calls.count("replay") <= 2 + took


def test_one_that_nobody_looks_at_counts_nothing_until_somebody_does(
    grid: Grid, export: Callable[..., Exporter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "_UNWATCHED", 0.3)
    monkeypatch.setattr(lookout, "_FIRST", 10.0)
    counted: list[str] = []
    real = MemoryBackend.count

    def count(self: MemoryBackend, queue: str) -> Counts:
        counted.append(queue)
        return real(self, queue)

    monkeypatch.setattr(MemoryBackend, "count", count)
    producer = grid.producer()
    exporter = export(grid.url)

    def is_quiet() -> bool:
        before = len(counted)
        time.sleep(1.0)
        return len(counted) == before

    until(is_quiet, "nothing is counted")
    producer.submit({"run": 1})
    assert exporter.value('jobs{phase="train",state="ready"}') == 1


def test_a_scrape_of_a_great_many_jobs(grid: Grid, export: Callable[..., Exporter]) -> None:
    client = grid.client()
    for begin in range(0, 20_000, 500):
        data = {
            "phase": "train", "ids": [f"j{number}" for number in range(begin, begin + 500)],
            "rank": "low", "submitted_at": begin / 1000, "delay": 0,
        }  # fmt: skip
        client.record(EVENTS, [write(Event("job.submitted", "d/1/x", 1.0, "train", data))])
    grid.put(*[{"run": 1}] * 3)
    exporter = export(grid.url)
    exporter.until('ready_jobs{phase="train",rank="low"}', 20_000)
    best = 1.0
    for _ in range(5):
        began = time.perf_counter()
        exporter.scrape()
        best = min(best, time.perf_counter() - began)
    assert best < 0.25  # 0.01 on a machine of its own


class TestCommand:
    def test_it_serves_until_it_is_told_to_end(self, tmp_path: Path) -> None:
        url = f"sqlite:///{tmp_path}/jobs.db"
        process = subprocess.Popen(
            [sys.executable, "-m", "synmanager", "exporter", "--port", "0", "--backend", url],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(lookout.__file__).parents[1],
        )
        try:
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", address)
            with urlopen(address, timeout=10) as answer:
                assert b"synmanager_broker_up 1.0" in answer.read()
            process.terminate()
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
            process.communicate()
        assert process.returncode == 143
        assert errors.splitlines()[0].startswith("broker: sqlite://")
        with pytest.raises(URLError):
            urlopen(address, timeout=10)

    def test_without_the_package_it_says_what_to_install(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], grid: Grid
    ) -> None:
        find = util.find_spec
        monkeypatch.setattr(
            "synmanager.cli.exporter.find_spec",
            lambda name: None if name == "prometheus_client" else find(name),
        )
        assert main(["exporter", "--backend", grid.url]) == 1
        assert "pip install prometheus-client" in capsys.readouterr().err

    def test_a_port_that_is_taken(
        self, grid: Grid, export: Callable[..., Exporter], capsys: pytest.CaptureFixture[str]
    ) -> None:
        port = str(export(grid.url).port)
        assert main(["exporter", "--backend", grid.url, "--port", port]) == 1
        assert "in use" in capsys.readouterr().err

    def test_a_broker_that_does_not_answer(
        self, grid: Grid, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def away(_: MemoryBackend) -> None:
            raise BrokerUnavailable("nobody is there")

        monkeypatch.setattr(MemoryBackend, "open", away)
        assert main(["exporter", "--backend", grid.url, "--port", "0"]) == 1
        assert "nobody is there" in capsys.readouterr().err

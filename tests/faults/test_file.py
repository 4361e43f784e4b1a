"""Rows: disk full under SQLite; contended, read-only, damaged, deleted; an idle consumer."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.director import Director
from harness.processes import Processes
from harness.sqlite_file import SQLiteFile
from harness.waiting import wait_until

from synmanager.errors import AccessRefused, PublishRefused, TopologyError
from synmanager.train import TrainConsumerOperator, TrainProducerOperator

pytestmark = pytest.mark.only("sqlite")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "synmanager-faults", str(directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this user may not mount a file system")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


def test_disk_full(
    small_disk: Path,
    processes: Processes,
    figures: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A clear error, old jobs intact; a worker with a finished job waits until there is room."""
    monkeypatch.setenv("SYNMANAGER_RECONNECT", "2")
    processes.url = f"sqlite:///{small_disk}/jobs.db"
    (small_disk / "ballast").write_bytes(b"x" * 1_500_000)
    director = Director(processes.url, processes.journal)
    keys = director.submit([{"key": "long", "work": 6}])  # until the disk is full
    keys |= director.submit({"key": f"old-{n}"} for n in range(100))
    worker = processes.worker("worker", results=False, env={"SYNMANAGER_RECONNECT": "inf"})
    processes.await_event("started", 30)
    with TrainProducerOperator(url=processes.url) as producer:
        filler = {"work": 0, "x": "x" * 200_000}
        with pytest.raises(PublishRefused, match="disk is full"):
            _fill(producer, filler)
        with pytest.raises(PublishRefused, match="disk is full"):
            _fill(producer, {})
        processes.await_event("finished", 30, count=1)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 2, 3, "the disk has been full for a while")
        assert worker.status is None
        (small_disk / "ballast").unlink()
        producer.process(key="after")
    processes.await_done(keys | {"after"}, 60)
    history = processes.history()
    assert keys | {"after"} <= history.done
    assert len(history.runs_of("long")) == 1
    figures("refused while full; then all old jobs ran once")


def _fill(producer: TrainProducerOperator, job: dict[str, object]) -> None:
    for number in range(2000):
        producer.process(key=f"filler-{number}-{len(job)}", **job)


@pytest.mark.parametrize("what", ["file", "directory"])
def test_read_only(what: str, broker: SQLiteFile, director: Director, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a directory read-only")
    director.submit([{"key": "kept"}])
    target = broker.file if what == "file" else broker.file.parent
    for command in (
        ["mount", "--bind", str(target), str(target)],
        ["mount", "-o", "remount,bind,ro", str(target)],
    ):
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            pytest.skip("this user may not mount anything")
    try:
        with pytest.raises(AccessRefused, match=str(broker.file)):
            TrainProducerOperator(url=broker.url()).connect()
    finally:
        subprocess.run(["umount", "--lazy", str(target)], check=True)
    assert director.counts().ready == 1


def test_damaged(broker: SQLiteFile, director: Director, processes: Processes) -> None:
    """A worker ends with an error that names the file, and leaves it as it is."""
    director.submit({"key": f"job-{n}"} for n in range(200))
    size = broker.file.stat().st_size
    content = bytearray(broker.file.read_bytes())
    content[4096 * 4 : size // 2] = os.urandom(size // 2 - 4096 * 4)
    broker.file.write_bytes(content)
    worker = processes.worker("worker")
    assert worker.wait(30) != 0
    assert "is damaged" in worker.output
    assert str(broker.file) in worker.output
    with pytest.raises(TopologyError, match="damaged"):
        director.counts()
    assert broker.file.read_bytes() == content


def test_a_machine_where_every_process_dies(
    broker: SQLiteFile, director: Director, processes: Processes
) -> None:
    """``kill -9`` of everybody at once: the log is replayed by whoever comes next."""
    env = {"SYNMANAGER_LEASE": "2"}
    everybody = [
        *(processes.producer(f"p{n}", keys=[0, 5000], log="WARNING", env=env) for n in range(2)),
        *(processes.worker(f"w{n}", log="WARNING", env=env) for n in range(2)),
    ]
    processes.await_event("finished", 30, count=30)
    for process in everybody:
        process.kill()
    assert broker.file.with_name("jobs.db-wal").exists()
    processes.worker("heir", log="WARNING", env=env)
    wait_until(
        lambda: processes.history().confirmed and director.counts().ready == 0, 60, "all have run"
    )
    wait_until(lambda: director.counts().leased == 0, 30, "and are acknowledged")
    history = processes.history()
    history.check_nothing_lost()
    history.check_extra_runs()


def test_an_idle_consumer(
    director: Director, processes: Processes, figures: Callable[[str], None]
) -> None:
    """Costs next to nothing, and wakes up within 50 ms."""
    director.submit([{"key": "first"}])
    worker = processes.worker("worker", log="WARNING", results=False)
    processes.await_event("acked", 30)  # and so it has loaded all that it needs
    waits = []
    before, began = _cpu(worker.pid), time.monotonic()
    wait_until(lambda: time.monotonic() - began > 3, 4, "it has been idle")
    busy = (_cpu(worker.pid) - before) / (time.monotonic() - began)
    with TrainProducerOperator(url=processes.url) as producer:
        for number in range(10):
            producer.process(key=f"job-{number}")
            confirmed = time.monotonic()
            started = processes.await_event("started", 30, key=f"job-{number}")
            waits.append(max(0.0, started - confirmed))
            processes.await_event("acked", 30, count=number + 2)
    figures(f"busy {busy:.2%}; starts {sorted(waits)[5] * 1e3:.0f} ms after the submit, median")
    assert busy < 0.02
    assert min(waits) < 0.05
    assert sorted(waits)[5] < 0.25  # who is not rung for would find it within a second


def _cpu(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_deleted_file_is_made_anew(
    broker: SQLiteFile, director: Director, processes: Processes
) -> None:
    """By a worker that waits, while the queues are declared again."""
    processes.worker("worker", log="WARNING")
    processes.await_event("ready", 30)
    broker.delete_queue("train")
    keys = director.submit([{"key": "after"}])
    processes.await_done(keys, 30)
    with TrainConsumerOperator(url=broker.url()) as consumer:
        assert consumer.check_message_count() == 0

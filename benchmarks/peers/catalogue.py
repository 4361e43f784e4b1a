"""The peers that are compared, and how each one's worker is started."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["OURS", "PEERS", "Peer"]

#: Where the processes start, to find this package.
_ROOT = Path(__file__).parent.parent.parent

#: Seconds in which a worker has to be done with its jobs.
_WITHIN = 1800.0


@dataclass(frozen=True)
class Peer:
    """A job queue as it is compared: one process, one thread that runs jobs.

    Attributes:
        module: its ``*_app``.
        schemes: of the brokers that it is compared on.
        worker: the command that runs its worker, after ``python -m``.
        prefetch: how many jobs its worker may hold; None for what it does by default.
        needs: the modules that it takes.
        note: what a reader of the figures should know.
    """

    name: str
    module: str
    schemes: tuple[str, ...]
    worker: tuple[str, ...]
    prefetch: int | None = 1
    needs: tuple[str, ...] = ()
    note: str = ""

    @property
    def missing(self) -> list[str]:
        return [name for name in self.needs if importlib.util.find_spec(name) is None]

    def fill(self, url: str, count: int) -> list[str]:
        """Submit jobs; return the settings, as lines to show."""
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.peers.filling", self.module, str(count)],
            env=self._environment(url),
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=True,
        )
        settings = json.loads(done.stdout.splitlines()[-1])
        return [
            "python -m " + " ".join(self.worker),
            ", ".join(f"{name}={value}" for name, value in settings.items()),
        ]

    def drain(self, url: str, count: int) -> float:
        """Run the worker until it has handled so many jobs; return jobs per second.

        Raises:
            RuntimeError: the worker ended before.
            TimeoutError: it did not get done.
        """
        with tempfile.TemporaryDirectory() as directory:
            report = Path(directory) / "report"
            output = Path(directory) / "output"
            environment = self._environment(url)
            environment |= {"BENCHMARK_JOBS": str(count), "BENCHMARK_REPORT": str(report)}
            with output.open("wb") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", *self.worker],
                    env=environment,
                    cwd=_ROOT,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            try:
                deadline = time.monotonic() + _WITHIN
                while not report.exists():
                    if process.poll() is not None:
                        raise RuntimeError(f"{self.name}'s worker ended:\n{output.read_text()}")
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"{self.name}'s worker:\n{output.read_text()}")
                    time.sleep(0.1)
                figures = json.loads(report.read_text())
            finally:
                _end(process)
        return float((figures["jobs"] - 1) / figures["seconds"])

    def _environment(self, url: str) -> dict[str, str]:
        environment = {**os.environ, "BENCHMARK_BROKER": url, "RQ_REDIS_URL": url}
        if self.prefetch is not None:
            environment["BENCHMARK_PREFETCH"] = str(self.prefetch)
            environment["dramatiq_queue_prefetch"] = str(self.prefetch)
        return environment


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a worker in its own way, so that it settles what it ran; by force after a while."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()


_BOTH = ("amqp", "redis")

OURS = Peer(
    "synmanager Worker",
    "benchmarks.peers.synmanager_app",
    _BOTH,
    ("benchmarks.peers.synmanager_app",),
)

_CELERY = (
    *("celery", "-A", "benchmarks.peers.celery_app", "worker", "--concurrency=1"),
    *("--loglevel=WARNING", "--without-gossip", "--without-mingle"),
)
_DRAMATIQ = ("dramatiq", "benchmarks.peers.dramatiq_app", "--processes", "1", "--threads", "1")
_TASKIQ = (
    *("taskiq", "worker", "benchmarks.peers.taskiq_app:broker", "--workers", "1"),
    *("--max-async-tasks", "1", "--max-prefetch", "0", "--log-level", "WARNING"),
)
_RQ = ("rq.cli", "worker", "--worker-class", "rq.SimpleWorker", "--quiet")
_HUEY = (
    *("huey.bin.huey_consumer", "benchmarks.peers.huey_app.huey", "--workers", "1"),
    *("--worker-type", "thread", "--quiet", "--no-periodic"),
)

_CELERY_PEER = Peer(
    "Celery",
    "benchmarks.peers.celery_app",
    _BOTH,
    (*_CELERY, "--pool=solo"),  # the only one that needs neither a process nor a thread besides
    needs=("celery",),
)
_DRAMATIQ_PEER = Peer(
    "Dramatiq", "benchmarks.peers.dramatiq_app", _BOTH, _DRAMATIQ, needs=("dramatiq",)
)
_TASKIQ_PEER = Peer(
    "taskiq",
    "benchmarks.peers.taskiq_app",
    _BOTH,
    _TASKIQ,
    needs=("taskiq", "taskiq_aio_pika", "taskiq_redis"),
)


def _with_its_own_prefetch(peer: Peer, holds: str) -> Peer:
    return replace(
        peer,
        name=f"{peer.name}, its own prefetch",
        prefetch=None,
        note=f"holds {holds} while it runs one",
    )


PEERS = (
    replace(
        _CELERY_PEER,
        schemes=("amqp",),
        worker=(*_CELERY, "--pool=threads"),
        note="not its solo pool, which at this prefetch waits for two seconds now and then",
    ),
    replace(_CELERY_PEER, schemes=("redis",)),
    _with_its_own_prefetch(_CELERY_PEER, "four jobs"),
    _DRAMATIQ_PEER,
    _with_its_own_prefetch(_DRAMATIQ_PEER, "two jobs"),
    _TASKIQ_PEER,
    _with_its_own_prefetch(_TASKIQ_PEER, "ten jobs (RabbitMQ) or a hundred (Redis)"),
    Peer("RQ", "benchmarks.peers.rq_app", ("redis",), _RQ, needs=("rq",)),
    Peer(
        "Huey",
        "benchmarks.peers.huey_app",
        ("redis",),
        _HUEY,
        needs=("huey",),
        note="removes a job before it runs it: at most once",
    ),
)

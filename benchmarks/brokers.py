"""The brokers to measure on: given by environment variables, else started here.

They are started as the fault suite starts its own: processes (or containers) with ports and
directories of their own, and with settings by which what is confirmed is on disk.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import pika

from synmanager.phases import PHASES

if TYPE_CHECKING:
    from cluster import Cluster
    from harness.brokers import Broker
    from harness.redis_group import RedisGroup

__all__ = ["AMQP_VARIABLE", "RABBITMQ", "REDIS", "REDIS_VARIABLE", "BrokerMissing", "Brokers"]

AMQP_VARIABLE = "SYNMANAGER_TEST_AMQP_URL"
REDIS_VARIABLE = "SYNMANAGER_TEST_REDIS_URL"

#: What can be started, by the names that the fault suite has for them; the first is the default.
RABBITMQ = ("rabbitmq-3.10", "rabbitmq-4.0", "rabbitmq-4.3")
REDIS = ("redis-7", "redis-8", "valkey-8", "valkey-9")

_ROOT = Path(__file__).parent.parent
_FAULT_SUITE, _INTEGRATION, _SHARED = (
    _ROOT / "tests" / suite for suite in ("faults", "integration", "shared")
)

#: Of the nodes of a cluster; the base is what scripts/build-base-images makes.
_IMAGE, _BASE = "synergos_mq:benchmark", "synmanager-base:forky"


class BrokerMissing(Exception):
    """There is no broker, and none can be started; says what to do."""


class Brokers:
    """Starts each broker when it is first asked for. A context manager that ends what it began.

    Args:
        rabbitmq, redis: which to start, where no URL is given.
        directory: where they keep their data; by default the system's temporary directory.
            ``/dev/shm`` takes the disk out of the figures.
    """

    def __init__(
        self, rabbitmq: str = RABBITMQ[0], redis: str = REDIS[0], directory: Path | None = None
    ) -> None:
        self._rabbitmq = rabbitmq
        self._redis = redis
        self._parent = directory
        self._data: Path | None = None
        self._urls: dict[str, str] = {}
        self._started: list[Broker] = []
        self._groups = ExitStack()
        self._replicated: dict[str, str] = {}  # what was used, for the report

    @property
    def amqp(self) -> str:
        """The URL of a RabbitMQ server.

        Raises:
            BrokerMissing: there is none.
        """
        return self._url(self._rabbitmq, AMQP_VARIABLE, _require_empty_rabbitmq)

    @property
    def redis(self) -> str:
        """The URL of a server that speaks Redis.

        Raises:
            BrokerMissing: there is none.
        """
        return self._url(self._redis, REDIS_VARIABLE, _require_empty_redis)

    @property
    def sqlite(self) -> str:
        """The URL of a new file, where the brokers keep their data."""
        if "sqlite" not in self._urls:
            self._urls["sqlite"] = self._start("sqlite", "nothing")
        return self._urls["sqlite"]

    @cached_property
    def redis_group(self) -> RedisGroup:
        """A primary with two replicas and three Sentinels.

        Raises:
            BrokerMissing: there is no redis-server.
        """
        _find(_FAULT_SUITE)
        from harness.redis_sentinels import SentinelGroup

        if shutil.which("redis-server") is None:
            raise BrokerMissing("install redis-server (Debian: apt-get install redis-server)")
        group = SentinelGroup(self._directory("redis-group"))
        self._groups.callback(group.destroy)
        group.start()
        version = group.primary.command("INFO", "server")["redis_version"]
        self._replicated["Redis with failover"] = (
            f"{version}, two replicas, appendfsync always on all; three Sentinels"
        )
        return group

    @cached_property
    def rabbitmq_cluster(self) -> Cluster:
        """Three nodes in containers.

        Raises:
            BrokerMissing: there is no Docker, or no base image.
        """
        _find(_INTEGRATION)
        from cluster import Cluster

        build = ["docker", "build", "--quiet", "--tag", _IMAGE, "--file", "Dockerfile_mq"]
        try:
            subprocess.run(
                [*build, "--build-arg", f"BASE_IMAGE={_BASE}", "."],
                cwd=_ROOT,
                check=True,
                capture_output=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", b"").decode().strip() or str(error)
            raise BrokerMissing(
                f"no image for the nodes: {said}; scripts/build-base-images makes {_BASE}"
            ) from None
        cluster = self._groups.enter_context(Cluster(_IMAGE))
        self._replicated["RabbitMQ's cluster"] = "4.3 of Debian forky, three nodes in containers"
        return cluster

    def restart(self, url: str) -> None:
        """Kill a broker, start it, and return when it lets a client in.

        Raises:
            BrokerMissing: it was not started here.
        """
        for broker in self._started:
            if broker.url() == url:
                broker.restart_after_kill()
                return
        raise BrokerMissing("a broker that was not started here is not killed either")

    def describe(self) -> dict[str, str]:
        """The brokers that were used, with their versions and what matters of their settings."""
        described = {}
        if self._rabbitmq in self._urls:
            described["RabbitMQ"] = _describe_rabbitmq(self._urls[self._rabbitmq])
        if self._redis in self._urls:
            described["Redis"] = _describe_redis(self._urls[self._redis])
        if "sqlite" in self._urls:
            described["SQLite"] = f"{sqlite3.sqlite_version}, WAL, synchronous FULL"
        described.update(self._replicated)
        if self._data is not None:
            described["the brokers' data"] = f"on {_file_system(self._data)}"
        return described

    def __enter__(self) -> Brokers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._groups.close()
        for broker in self._started:
            broker.destroy()
        if self._data is not None:
            shutil.rmtree(self._data, ignore_errors=True)

    def _url(self, name: str, variable: str, check: Callable[[str], None]) -> str:
        if name not in self._urls:
            given = os.environ.get(variable)
            if given:
                check(given)
            self._urls[name] = given or self._start(name, variable)
        return self._urls[name]

    def _start(self, name: str, variable: str) -> str:
        _find(_FAULT_SUITE)
        from harness.catalogue import Missing, make_broker

        try:
            broker = make_broker(name, self._directory(name))
        except Missing as error:
            raise BrokerMissing(
                f"{error}; or point {variable} at a server that holds nothing but tests"
            ) from None
        self._started.append(broker)
        broker.start()
        url: str = broker.url()
        return url

    def _directory(self, name: str) -> Path:
        """A new one, for the data of a broker."""
        if self._data is None:
            self._data = Path(tempfile.mkdtemp(prefix="benchmarks-", dir=self._parent))
            self._data.chmod(0o755)
        directory = self._data / name
        directory.mkdir()
        return directory


def _find(suite: Path) -> None:
    """Let the modules of a suite be imported, and those that all suites share."""
    sys.path += [each for each in (str(suite), str(_SHARED)) if each not in sys.path]


def _require_empty_rabbitmq(url: str) -> None:
    """Refuse a server with jobs in it: the benchmark empties the queues that it uses."""
    connection = pika.BlockingConnection(pika.URLParameters(url))
    for phase in PHASES.values():
        channel = connection.channel()
        try:
            waiting = channel.queue_declare(phase.queue, passive=True).method.message_count
        except pika.exceptions.ChannelClosedByBroker:
            continue
        if waiting:
            raise BrokerMissing(
                f"{AMQP_VARIABLE} names a server with {waiting:,} jobs in {phase.queue!r}; the "
                "benchmark would remove them: purge the queue, or name another server"
            )
    connection.close()


def _require_empty_redis(url: str) -> None:
    import redis

    with redis.Redis.from_url(url) as client:
        keys = client.dbsize()
    if keys:
        raise BrokerMissing(
            f"{REDIS_VARIABLE} names a database with {keys:,} keys in it; the benchmark empties "
            "its database: flush it, or name another (redis://host/1)"
        )


def _describe_rabbitmq(url: str) -> str:
    connection = pika.BlockingConnection(pika.URLParameters(url))
    version = connection._impl.server_properties["version"]
    connection.close()
    return f"{version}, as its packagers left it; durable queues, persistent messages"


def _describe_redis(url: str) -> str:
    import redis

    with redis.Redis.from_url(url) as client:
        about = client.info("server")
        options = {name: client.config_get(name)[name] for name in ("appendonly", "appendfsync")}
    return f"{about['redis_version']}, " + ", ".join(
        f"{name} {value}" for name, value in options.items()
    )


def _file_system(path: Path) -> str:
    """The type of the file system that holds a path, the longest mount point that matches."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [(m, t) for m, t in mounts if path.is_relative_to(m)]
    return max(holding, key=lambda pair: len(pair[0]))[1]

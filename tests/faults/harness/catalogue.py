"""Which brokers there are on this machine, and how to make each."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from harness.brokers import Broker
from harness.rabbitmq import RabbitMQ
from harness.redis_server import RedisServer
from harness.sqlite_file import SQLiteFile

# What scripts/build-base-images makes.
_TRIXIE = "synmanager-base:trixie"
_FORKY = "synmanager-base:forky"


class Missing(Exception):
    """A broker is not on this machine; the message says what to install."""


def make_broker(name: str, directory: Path) -> Broker:
    """Make one of :data:`BROKERS`, not started yet.

    Raises:
        Missing: it is not on this machine.
    """
    return BROKERS[name](directory)


def brokers_are_required() -> bool:
    """Whether a missing broker is a failure, rather than a reason to skip."""
    return any(
        os.environ.get(name, "").lower() not in ("", "0", "false")
        for name in ("CI", "SYNMANAGER_REQUIRE_BROKERS")
    )


def _redis_7(directory: Path) -> Broker:
    _need("redis-server", "install redis-server 7 (Debian: apt-get install redis-server)")
    return RedisServer("redis-7", "redis-server", directory)


def _rabbitmq_3(directory: Path) -> Broker:
    _need("/usr/lib/rabbitmq/bin/rabbitmq-server", "apt-get install rabbitmq-server")
    return RabbitMQ("rabbitmq-3.10", directory)


def _redis_in(image: str, name: str, program: str) -> Callable[[Path], Broker]:
    def make(directory: Path) -> Broker:
        _need_image(image)
        return RedisServer(name, program, directory, image=image)

    return make


def _rabbitmq_in(image: str, name: str) -> Callable[[Path], Broker]:
    def make(directory: Path) -> Broker:
        _need_image(image)
        return RabbitMQ(name, directory, image=image)

    return make


#: By the name that a test's id shows.
BROKERS: Mapping[str, Callable[[Path], Broker]] = {
    "redis-7": _redis_7,
    "redis-8": _redis_in(_FORKY, "redis-8", "redis-server"),
    "valkey-8": _redis_in(_TRIXIE, "valkey-8", "valkey-server"),
    "valkey-9": _redis_in(_FORKY, "valkey-9", "valkey-server"),
    "rabbitmq-3.10": _rabbitmq_3,
    "rabbitmq-4.0": _rabbitmq_in(_TRIXIE, "rabbitmq-4.0"),
    "rabbitmq-4.3": _rabbitmq_in(_FORKY, "rabbitmq-4.3"),
    "sqlite": SQLiteFile,
}

#: The oldest and the newest of each kind of backend; the long form takes all.
SHORT = ("redis-7", "valkey-9", "rabbitmq-3.10", "rabbitmq-4.3", "sqlite")

#: Those that are no server: there is nothing to crash, to freeze, to log in to or to cut off.
SERVERLESS = frozenset({"sqlite"})


def _need(program: str, remedy: str) -> None:
    if shutil.which(program) is None:
        raise Missing(f"there is no {program}: {remedy}")


def _need_image(image: str) -> None:
    if shutil.which("docker") is None:
        raise Missing("there is no docker command")
    found = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False)
    if found.returncode != 0:
        raise Missing(f"there is no image {image}, or no Docker daemon: scripts/build-base-images")

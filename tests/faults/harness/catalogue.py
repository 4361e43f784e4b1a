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

_TRIXIE = "synmanager-base:trixie"  # what scripts/build-base-images makes


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


def _redis(directory: Path) -> Broker:
    _need("redis-server", "install redis-server 7 (Debian: apt-get install redis-server)")
    return RedisServer("redis-7", "redis-server", directory)


def _valkey(directory: Path) -> Broker:
    if shutil.which("valkey-server"):
        return RedisServer("valkey-8", "valkey-server", directory)
    _need_image(_TRIXIE)
    return RedisServer("valkey-8", "valkey-server", directory, image=_TRIXIE)


def _rabbitmq_3(directory: Path) -> Broker:
    _need("/usr/lib/rabbitmq/bin/rabbitmq-server", "apt-get install rabbitmq-server")
    return RabbitMQ("rabbitmq-3.10", directory)


def _rabbitmq_4(directory: Path) -> Broker:
    _need_image(_TRIXIE)
    return RabbitMQ("rabbitmq-4", directory, image=_TRIXIE)


#: By the name that a test's id shows.
BROKERS: Mapping[str, Callable[[Path], Broker]] = {
    "redis-7": _redis,
    "valkey-8": _valkey,
    "rabbitmq-3.10": _rabbitmq_3,
    "rabbitmq-4": _rabbitmq_4,
}


def _need(program: str, remedy: str) -> None:
    if shutil.which(program) is None:
        raise Missing(f"there is no {program}: {remedy}")


def _need_image(image: str) -> None:
    if shutil.which("docker") is None:
        raise Missing("there is no docker command")
    found = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=False)
    if found.returncode != 0:
        raise Missing(f"there is no image {image}, or no Docker daemon: scripts/build-base-images")

"""The brokers of the integration tests, as URLs.

They run in containers (``docker-compose.yml``), or where ``SYNMANAGER_TEST_AMQP_URL`` and
``SYNMANAGER_TEST_REDIS_URL`` say; then Docker is not touched. Where there is neither, the tests
are skipped with the reason, or fail, if ``CI`` or ``SYNMANAGER_REQUIRE_BROKERS`` is set.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pika
import pytest
from containers import amqp_answers, run, wait_for
from pytest_docker.plugin import Services

HERE = Path(__file__).parent

# Parameter id: (compose service, port in the container)
AMQP_BROKERS = {"rabbitmq-4": ("rabbitmq", 5672), "rabbitmq-3.10": ("rabbitmq310", 5672)}
REDIS_BROKERS = {"redis-7": ("redis", 6379), "valkey-8": ("valkey", 6379)}

# The variables of docker-compose.yml: (image of a registry, what scripts/build-base-images makes)
IMAGES = {
    "SYNMANAGER_TEST_RABBITMQ_IMAGE": ("rabbitmq:4-management", "synmanager-base:trixie"),
    "SYNMANAGER_TEST_RABBITMQ310_IMAGE": ("rabbitmq:3.10", "synmanager-base:bookworm"),
    "SYNMANAGER_TEST_REDIS_IMAGE": ("redis:7.0", "synmanager-base:bookworm"),
    "SYNMANAGER_TEST_VALKEY_IMAGE": ("valkey/valkey:8", "synmanager-base:trixie"),
}

AMQP_URL = os.environ.get("SYNMANAGER_TEST_AMQP_URL")
REDIS_URL = os.environ.get("SYNMANAGER_TEST_REDIS_URL")


def brokers_are_required() -> bool:
    return any(
        os.environ.get(name, "").lower() not in ("", "0", "false")
        for name in ("CI", "SYNMANAGER_REQUIRE_BROKERS")
    )


def no_broker(reason: str) -> NoReturn:
    """End the test for want of a broker: as a failure where brokers are required."""
    if brokers_are_required():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def _amqp_answers(url: str) -> bool:
    return amqp_answers(pika.URLParameters(url))


def _redis_answers(url: str) -> bool:
    """Whether a server answers PING, which it refuses while it loads its data."""
    import redis

    with redis.Redis.from_url(url, socket_timeout=5) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


@pytest.fixture(scope="session")
def docker() -> str:
    """The docker command, with a daemon behind it."""
    command = shutil.which("docker")
    if command is None:
        no_broker("there is no docker command; install Docker or set SYNMANAGER_TEST_*_URL")
    if run(command, "version").returncode != 0:
        no_broker("the Docker daemon does not answer; start it or set SYNMANAGER_TEST_*_URL")
    return command


@pytest.fixture(scope="session")
def docker_compose_command(docker: str) -> str:
    if run(docker, "compose", "version").returncode == 0:
        return "docker compose"
    if shutil.which("docker-compose") is None:
        no_broker("there is neither `docker compose` nor docker-compose")
    return "docker-compose"


@pytest.fixture(scope="session")
def docker_compose_file() -> str:
    return str(HERE / "docker-compose.yml")


@pytest.fixture(scope="session")
def docker_setup(docker: str) -> list[str]:
    for variable, (from_registry, built_here) in IMAGES.items():
        if variable in os.environ:
            continue
        if run(docker, "image", "inspect", built_here).returncode == 0:
            os.environ[variable] = built_here
        elif run(docker, "image", "inspect", from_registry).returncode != 0:
            pulled = run(docker, "pull", "--quiet", from_registry, timeout=600)
            if pulled.returncode != 0:
                no_broker(
                    f"the image {from_registry} cannot be pulled; build the images from Debian "
                    f"packages instead: scripts/build-base-images\n{pulled.stdout.strip()}"
                )
    return ["up --build --detach"]


class Brokers:
    """The containers, each known by the id of its parameter."""

    def __init__(self, services: Services, compose: list[str]) -> None:
        self._services = services
        self._compose = compose

    def url(
        self, scheme: str, service: str, port: int, answers: Callable[[str], bool], login: str = ""
    ) -> str:
        """Wait until the service answers at its free port, and return its URL."""
        url = f"{scheme}://{login}127.0.0.1:{self._services.port_for(service, port)}"
        try:
            wait_for(lambda: answers(url), f"{service} answers")
        except TimeoutError as error:
            log = run(*self._compose, "logs", "--tail=40", service).stdout
            pytest.fail(f"{error}; the end of its log:\n{log}", pytrace=False)
        return url


@pytest.fixture(scope="session")
def brokers(
    request: pytest.FixtureRequest,
    docker_compose_command: str,
    docker_compose_file: str,
    docker_compose_project_name: str,
) -> Brokers:
    compose = [*docker_compose_command.split(), "-f", docker_compose_file]
    compose += ["-p", docker_compose_project_name]
    try:
        services: Services = request.getfixturevalue("docker_services")
    except Exception:  # pytest-docker's own class for "the command failed"
        run(*compose, "down", "-v")
        raise
    return Brokers(services, compose)


@pytest.fixture(scope="session", params=["given"] if AMQP_URL else list(AMQP_BROKERS))
def amqp_url(request: pytest.FixtureRequest) -> str:
    """A RabbitMQ server, as a URL with its login."""
    if AMQP_URL:
        if not _amqp_answers(AMQP_URL):
            pytest.fail("no AMQP broker answers at SYNMANAGER_TEST_AMQP_URL", pytrace=False)
        return AMQP_URL
    brokers: Brokers = request.getfixturevalue("brokers")
    return brokers.url("amqp", *AMQP_BROKERS[request.param], _amqp_answers, login="guest:guest@")


@pytest.fixture(scope="session", params=["given"] if REDIS_URL else list(REDIS_BROKERS))
def redis_url(request: pytest.FixtureRequest) -> str:
    """A server that speaks Redis, as a URL."""
    if REDIS_URL:
        if not _redis_answers(REDIS_URL):
            pytest.fail("no server answers at SYNMANAGER_TEST_REDIS_URL", pytrace=False)
        return REDIS_URL
    brokers: Brokers = request.getfixturevalue("brokers")
    return brokers.url("redis", *REDIS_BROKERS[request.param], _redis_answers)


@pytest.fixture(scope="session")
def mq_image(request: pytest.FixtureRequest) -> str:
    """The image that ``Dockerfile_mq`` builds."""
    if AMQP_URL:
        pytest.skip("SYNMANAGER_TEST_AMQP_URL is set, so no image is built")
    request.getfixturevalue("brokers")
    return "synergos_mq:test"

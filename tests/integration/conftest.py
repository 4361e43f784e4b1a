"""The brokers of the integration tests, as URLs.

They run in containers (``docker-compose.yml``, a project for each process of the tests), or where
``SYNMANAGER_TEST_AMQP_URL`` and ``SYNMANAGER_TEST_REDIS_URL`` say; then Docker is not touched.
Where there is neither, the tests are skipped with the reason, or fail, if ``CI`` or
``SYNMANAGER_REQUIRE_BROKERS`` is set.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pika
import pytest
import ran
import redis
from containers import amqp_answers, no_broker, run, wait_for
from pytest_docker.plugin import Services

from synmanager.backends.rabbitmq import RabbitMQBackend
from synmanager.settings import parse_url

HERE = Path(__file__).parent

# The images of docker-compose.yml: (of a registry, what scripts/build-base-images makes)
IMAGES = {
    "rabbitmq-3.10": ("rabbitmq:3.10", "synmanager-base:bookworm"),
    "rabbitmq-4.0": ("rabbitmq:4.0-management", "synmanager-base:trixie"),
    "rabbitmq-4.3": ("rabbitmq:4.3-management", "synmanager-base:forky"),
    "redis-7": ("redis:7.0", "synmanager-base:bookworm"),
    "redis-8": ("redis:8", "synmanager-base:forky"),
    "valkey-8": ("valkey/valkey:8", "synmanager-base:trixie"),
    "valkey-9": ("valkey/valkey:9", "synmanager-base:forky"),
}

AMQP_URL = os.environ.get("SYNMANAGER_TEST_AMQP_URL")
REDIS_URL = os.environ.get("SYNMANAGER_TEST_REDIS_URL")

#: What the fixtures are made for: services of docker-compose.yml, or a server that is given.
SERVICES = {
    "amqp_url": ["rabbitmq-3.10", "rabbitmq-4.0", "rabbitmq-4.3"],
    "redis_url": ["redis-7", "valkey-8", "redis-8", "valkey-9"],
    "mq_image": ["rabbitmq-4.0", "rabbitmq-4.3"],
}
if AMQP_URL:
    SERVICES["amqp_url"] = ["given"]
if REDIS_URL:
    SERVICES["redis_url"] = ["given"]

#: Neither the oldest nor the newest: for the long form.
BETWEEN = ("rabbitmq-4.0", "valkey-8")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: for the long form alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--long"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if not item.get_closest_marker("long")]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    is_long = metafunc.config.getoption("--long")
    for fixture, services in SERVICES.items():
        if fixture in metafunc.fixturenames:
            # With pytest-xdist, one process starts a broker and has all its tests.
            brokers = [
                pytest.param(service, marks=pytest.mark.xdist_group(f"{fixture} {service}"))
                for service in services
                if is_long or service not in BETWEEN
            ]
            metafunc.parametrize(fixture, brokers, indirect=True, scope="session")


def needs(module: str) -> None:
    """End the test for want of a package, as for want of a broker."""
    if importlib.util.find_spec(module) is None:
        no_broker(f"{module} is not installed")


def _amqp_answers(url: str) -> bool:
    return amqp_answers(pika.URLParameters(url))


def _redis_answers(url: str) -> bool:
    """Whether a server answers PING, which it refuses while it loads its data."""
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
def docker_setup() -> list[str]:
    return []  # each broker is started by whoever wants it first


class Brokers:
    """The containers of this process, each known by the name of its service."""

    def __init__(self, docker: str, services: Services, compose: list[str]) -> None:
        self._docker = docker
        self._services = services
        self._compose = compose

    def url(
        self, scheme: str, service: str, port: int, answers: Callable[[str], bool], login: str = ""
    ) -> str:
        """Start the service, wait until it answers at its free port, and return its URL."""
        self.prepare(service, "up", "--detach", "--build")
        url = f"{scheme}://{login}127.0.0.1:{self._services.port_for(service, port)}"
        try:
            wait_for(lambda: answers(url), f"{service} answers")
        except TimeoutError as error:
            log = run(*self._compose, "logs", "--tail=40", service).stdout
            pytest.fail(f"{error}; the end of its log:\n{log}", pytrace=False)
        return url

    def prepare(self, service: str, *command: str) -> None:
        """Run a command of compose for the service, once its image is there."""
        self.find_image(service)
        done = run(*self._compose, *command, service, timeout=600)
        if done.returncode != 0:
            pytest.fail(f"{' '.join(command)} {service}:\n{done.stdout}", pytrace=False)

    def find_image(self, service: str) -> str:
        """The name of the service's image, once that is there."""
        name = service.upper().replace("-", "").replace(".", "")
        variable = f"SYNMANAGER_TEST_{name}_IMAGE"
        from_registry, built_here = IMAGES[service]
        if variable in os.environ:
            return os.environ[variable]
        if run(self._docker, "image", "inspect", built_here).returncode == 0:
            os.environ[variable] = built_here
        elif run(self._docker, "image", "inspect", from_registry).returncode != 0:
            pulled = run(self._docker, "pull", "--quiet", from_registry, timeout=600)
            if pulled.returncode != 0:
                no_broker(
                    f"{service}: there is no image {built_here}, which scripts/build-base-images "
                    f"makes of Debian packages, and {from_registry} cannot be pulled\n"
                    f"{pulled.stdout.strip()}"
                )
        return os.environ.get(variable, from_registry)


@pytest.fixture(scope="session")
def brokers(
    docker: str,
    docker_compose_command: str,
    docker_compose_file: str,
    docker_compose_project_name: str,
    docker_services: Services,
) -> Brokers:
    compose = [*docker_compose_command.split(), "-f", docker_compose_file]
    compose += ["-p", docker_compose_project_name]  # one for each process
    return Brokers(docker, docker_services, compose)


@pytest.fixture(scope="session")
def amqp_url(request: pytest.FixtureRequest) -> str:
    """A RabbitMQ server, as a URL with its login."""
    if not AMQP_URL:
        brokers: Brokers = request.getfixturevalue("brokers")
        url = brokers.url("amqp", request.param, 5672, _amqp_answers, login="guest:guest@")
    elif _amqp_answers(AMQP_URL):
        url = AMQP_URL
    else:
        pytest.fail("no AMQP broker answers at SYNMANAGER_TEST_AMQP_URL", pytrace=False)
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        ran.note("RabbitMQ", connection._impl.server_properties["version"])
    ran.note("pika", pika.__version__)
    return url


@pytest.fixture
def plain(amqp_url: str) -> Iterator[Any]:
    """A channel of plain pika."""
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    yield connection.channel()
    if connection.is_open:
        connection.close()


def version(plain: Any) -> tuple[int, ...]:
    """Major and minor number of the RabbitMQ behind a channel of plain pika."""
    said = plain.connection._impl.server_properties["version"]
    return tuple(map(int, said.split(".")[:2]))


def stranded(plain: Any) -> list[str]:
    """The ids of what was due when its queue was gone, whatever other tests have left there."""
    channel = plain.connection.channel()
    ids = []
    while (got := channel.basic_get("synmanager.delay.stranded"))[0] is not None:
        ids.append(got[1].message_id)
    channel.basic_nack(0, multiple=True)  # closing gives it back as well, but some time later
    channel.close()
    return ids


@pytest.fixture
def patient_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all written to the journal before who says it disconnects, also on a busy machine.

    It gets a second, and before that somebody may have to make the log.
    """
    for module in ("base", "journal.desk", "journal.failures"):
        monkeypatch.setattr(f"synmanager.{module}.FAREWELL", 30.0)


@contextmanager
def connecting(url: str) -> Iterator[Callable[[], RabbitMQBackend]]:
    """Opens as many clients as are asked for, and closes them."""
    made: list[RabbitMQBackend] = []

    def connect_one() -> RabbitMQBackend:
        made.append(RabbitMQBackend(parse_url(url)))
        made[-1].open()
        return made[-1]

    yield connect_one
    for client in made:
        client.close()


@pytest.fixture
def client(amqp_url: str) -> Iterator[RabbitMQBackend]:
    """A client of RabbitMQ, open."""
    made = RabbitMQBackend(parse_url(amqp_url))
    made.open()
    yield made
    made.close()


@pytest.fixture(scope="session")
def redis_url(request: pytest.FixtureRequest) -> str:
    """A server that speaks Redis, as a URL."""
    if not REDIS_URL:
        brokers: Brokers = request.getfixturevalue("brokers")
        url = brokers.url("redis", request.param, 6379, _redis_answers)
    elif _redis_answers(REDIS_URL):
        url = REDIS_URL
    else:
        pytest.fail("no server answers at SYNMANAGER_TEST_REDIS_URL", pytrace=False)
    with redis.Redis.from_url(url) as client:
        server = client.info("server")
    kind = "Valkey" if "valkey_version" in server else "Redis"
    ran.note(kind, server[f"{kind.lower()}_version"])
    ran.note("redis-py", redis.__version__)
    return url


@pytest.fixture(scope="session")
def mq_image(request: pytest.FixtureRequest) -> str:
    """The image that ``Dockerfile_mq`` builds."""
    if AMQP_URL:
        pytest.skip("SYNMANAGER_TEST_AMQP_URL is set, so no image is built")
    brokers: Brokers = request.getfixturevalue("brokers")
    brokers.prepare(request.param, "build")
    return f"synergos_mq:test-{request.param.removeprefix('rabbitmq-')}"

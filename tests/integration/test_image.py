"""What the image of ``Dockerfile_mq`` promises."""

from __future__ import annotations

import base64
import json
import logging
import urllib.request
import uuid
from collections.abc import Iterator

import pika
import pika.exceptions
import pytest
from containers import Container, amqp_answers, run, wait_for

from synmanager import Archiver, Failure, Reject, Worker, checks
from synmanager.backends.rabbitmq import management as api
from synmanager.backends.registry import create_backend
from synmanager.checks import Seen, Severity, findings, look
from synmanager.phases import PHASES, Phase
from synmanager.settings import load_settings
from synmanager.train import TrainConsumerOperator, TrainProducerOperator

USERNAME = 'grid "admin" \\ é'
PASSWORD = 'it\'s a "$PATH" \\n `id` %41 @:/#? пароль 日本 '
CREDENTIALS = {"SYNMANAGER_USERNAME": USERNAME, "SYNMANAGER_PASSWORD": PASSWORD}
GUEST = ("guest", "guest")
PERSISTENT = pika.BasicProperties(delivery_mode=2)

phases = pytest.mark.parametrize("phase", PHASES.values(), ids=PHASES)


@pytest.fixture(scope="module")
def development(mq_image: str) -> Iterator[Container]:
    """Started as the README says, without credentials."""
    with Container(mq_image) as container:
        container.wait_until_answering()
        yield container


@pytest.fixture(scope="module")
def production(mq_image: str) -> Iterator[Container]:
    """Started with credentials."""
    with Container(mq_image, CREDENTIALS) as container:
        container.wait_until_answering(USERNAME, PASSWORD)
        yield container


@pytest.fixture
def volume(docker: str) -> Iterator[str]:
    name = f"synmanager-{uuid.uuid4().hex}"
    yield name
    assert run(docker, "volume", "rm", name).returncode == 0


@pytest.fixture
def channel(
    development: Container,
) -> Iterator[pika.adapters.blocking_connection.BlockingChannel]:
    connection = pika.BlockingConnection(development.parameters(*GUEST))
    channel = connection.channel()
    channel.confirm_delivery()
    yield channel
    connection.close()


def management(container: Container, path: str, login: tuple[str, str]) -> bytes:
    request = urllib.request.Request(f"http://127.0.0.1:{container.port(15672)}{path}")
    token = base64.b64encode(":".join(login).encode()).decode()
    request.add_header("Authorization", f"Basic {token}")
    with urllib.request.urlopen(request, timeout=10) as answer:
        body: bytes = answer.read()
    return body


def seen(url: str) -> Seen:
    """What doctor and the dashboard learn of a broker."""
    backend = create_backend(load_settings(url=url).address)
    backend.open()
    try:
        return look(backend, 3600.0)
    finally:
        backend.close()


def users(container: Container) -> dict[str, list[str]]:
    listed = container.execute("rabbitmqctl", "-q", "--formatter=json", "list_users")
    return {user["user"]: user["tags"] for user in json.loads(listed)}


def put(container: Container, body: bytes, login: tuple[str, str] = GUEST) -> None:
    with pika.BlockingConnection(container.parameters(*login)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        train = PHASES["train"]
        channel.basic_publish(
            train.exchange.name, train.routing_key, body, PERSISTENT, mandatory=True
        )


def take(container: Container, login: tuple[str, str] = GUEST) -> bytes | None:
    with pika.BlockingConnection(container.parameters(*login)) as connection:
        _, _, body = connection.channel().basic_get(PHASES["train"].queue, auto_ack=True)
        taken: bytes | None = body
    return taken


class TestEveryStart:
    def test_becomes_healthy(self, development: Container) -> None:
        wait_for(lambda: development.health == "healthy", "the container is healthy")

    @phases
    def test_routes_each_phase_to_its_queue(
        self, channel: pika.adapters.blocking_connection.BlockingChannel, phase: Phase
    ) -> None:
        channel.basic_publish(
            phase.exchange.name, phase.routing_key, b"{}", PERSISTENT, mandatory=True
        )
        _, properties, body = channel.basic_get(phase.queue, auto_ack=True)
        assert body == b"{}"
        assert properties.delivery_mode == 2

    @phases
    def test_queues_rank_and_have_dead_letter_queues(
        self, channel: pika.adapters.blocking_connection.BlockingChannel, phase: Phase
    ) -> None:
        # Declared as someone who needs them just so would: anything else is refused with 406.
        channel.queue_declare(phase.queue, durable=True, arguments={"x-max-priority": 9})
        channel.queue_declare(f"{phase.queue}.dead", durable=True)
        channel.exchange_declare(phase.exchange.name, phase.exchange.type, durable=True)

    def test_has_these_bindings_and_no_others(self, development: Container) -> None:
        exported = json.loads(management(development, "/api/definitions", GUEST))
        bindings = {
            (binding["source"], binding["routing_key"], binding["destination"])
            for binding in exported["bindings"]
        }
        assert bindings == {
            (phase.exchange.name, phase.routing_key, phase.queue) for phase in PHASES.values()
        }

    @pytest.fixture
    def forbidden(self, development: Container) -> Iterator[str]:
        """The URL of a user who may do everything but touch the journal."""
        allowed = r"^(?!synmanager\.journal\.).*"
        ctl = ("rabbitmqctl", "-q")
        development.execute(*ctl, "add_user", "worker", "secret")
        development.execute(*ctl, "set_permissions", "worker", allowed, ".*", allowed)
        yield f"amqp://worker:secret@127.0.0.1:{development.port(5672)}/"
        development.execute(*ctl, "delete_user", "worker")

    @pytest.mark.usefixtures("patient_farewell")
    def test_a_user_who_is_forbidden_the_journal_works_as_before(
        self, forbidden: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        url = forbidden
        ran: list[int] = []
        told: list[Failure] = []

        def work(run: int) -> dict[str, int]:
            ran.append(run)
            if run == 1:
                raise Reject("no")
            return {"run": run}

        with caplog.at_level(logging.WARNING, "synmanager"):
            with TrainProducerOperator(url=url) as producer:
                producer.submit_many([{"run": run} for run in range(20)])
            caplog.clear()
            assert Worker({"train": work}, url=url).run(burst=True) == 20
        assert ran == list(range(20))
        said = [record.getMessage() for record in caplog.records]
        assert len([line for line in said if "the journal does not work" in line]) == 1
        caplog.clear()
        archived: list[int] = []
        archiver = Archiver(lambda run: archived.append(run), url=url, on_failure=told.append)
        assert archiver.run(burst=True) == 19
        assert (len(archived), told) == (19, [])
        said = [record.getMessage() for record in caplog.records]
        assert len([line for line in said if "failures are not told" in line]) == 1
        with TrainConsumerOperator(url=url) as consumer:
            assert consumer.purge_dead_letters() == 1

    def test_lets_a_job_run_for_days(self, development: Container) -> None:
        environment = development.execute("rabbitmq-diagnostics", "-q", "environment")
        week = 7 * 24 * 60 * 60 * 1000
        assert f"{{consumer_timeout,{week}}}" in environment.replace(" ", "")

    def test_shows_the_management_pages(self, development: Container) -> None:
        assert b"RabbitMQ Management" in management(development, "/", GUEST)

    def test_tells_how_near_it_is_to_accepting_nothing(
        self, development: Container, forbidden: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        port = development.port(15672)
        monkeypatch.setattr(api, "_PORTS", {"amqp": ("http", port)})
        monkeypatch.setattr(checks, "_PATIENCE", 30.0)  # a busy broker takes longer
        guest = f"amqp://guest:guest@127.0.0.1:{development.port(5672)}/"
        wait_for(lambda: bool(seen(guest).nodes), "its figures are there")
        (node,) = seen(guest).nodes
        assert 0 < node.memory < node.memory_limit
        assert 0 < node.disk_limit < node.disk_free
        told = seen(guest).pressure
        assert (list(told), told["alarms"]) == (["memory", "disk", "alarms"], "none")
        assert seen(forbidden).pressure == {}
        assert any(
            "whether an alarm has gone off" in each.what for each in findings(seen(forbidden))
        )

        watermark = ("rabbitmqctl", "-q", "set_vm_memory_high_watermark", "absolute")
        development.execute(*watermark, "1")
        try:
            wait_for(lambda: seen(guest).pressure.get("alarms") == "memory", "the alarm")
            (told_of,) = (each for each in findings(seen(guest)) if "gone off" in each.what)
            assert told_of.severity is Severity.DANGER
            assert f"{node.name} accepts no jobs and no results" in told_of.what
        finally:
            development.execute(*watermark, str(node.memory_limit))
        wait_for(lambda: seen(guest).pressure.get("alarms") == "none", "the alarm's end")

    def test_runs_without_root(self, development: Container) -> None:
        processes = ("/proc/1", "/proc/self/")  # the slash: not the owner of the link
        owners = development.execute("stat", "--format=%U", *processes).split()
        assert owners == ["rabbitmq", "rabbitmq"]

    def test_makes_an_erlang_cookie_of_its_own(
        self, development: Container, production: Container
    ) -> None:
        show = ("cat", "/var/lib/rabbitmq/.erlang.cookie")
        assert development.execute(*show) != production.execute(*show)


class TestWithoutCredentials:
    def test_lets_guest_in_and_warns(self, development: Container) -> None:
        assert amqp_answers(development.parameters(*GUEST))
        assert "WARNING: development default" in development.logs()

    def test_knows_guest_alone(self, development: Container) -> None:
        assert users(development) == {"guest": ["administrator"]}


class TestWithCredentials:
    def test_has_that_administrator_and_no_guest(self, production: Container) -> None:
        assert users(production) == {USERNAME: ["administrator"]}

    @pytest.mark.parametrize(
        "login", [GUEST, (USERNAME, PASSWORD.strip()), (USERNAME, "")], ids=repr
    )
    def test_refuses_everyone_else(self, production: Container, login: tuple[str, str]) -> None:
        with pytest.raises(pika.exceptions.ProbableAuthenticationError):
            pika.BlockingConnection(production.parameters(*login))

    def test_shows_them_the_management_pages(self, production: Container) -> None:
        me = json.loads(management(production, "/api/whoami", (USERNAME, PASSWORD)))
        assert me["name"] == USERNAME

    def test_warns_of_nothing(self, production: Container) -> None:
        assert "development default" not in production.logs()

    def test_shows_the_password_nowhere(self, production: Container) -> None:
        places = {
            "its log": production.logs(),
            "arguments": production.execute("sh", "-c", "cat /proc/[0-9]*/cmdline"),
            "environment": production.execute("cat", "/proc/1/environ"),
            "its data": production.execute("sh", "-c", "cat /var/lib/rabbitmq/definitions/*"),
        }
        for place, text in places.items():
            assert PASSWORD not in text, place
            assert "пароль" not in text, place


@pytest.mark.parametrize(
    "environment",
    [
        {"SYNMANAGER_USERNAME": "grid"},
        {"SYNMANAGER_PASSWORD": "secret"},
        {"SYNMANAGER_USERNAME": "grid", "SYNMANAGER_PASSWORD": ""},
        {"SYNMANAGER_USERNAME": "", "SYNMANAGER_PASSWORD": ""},
        {"SYNMANAGER_USERNAME": "guest", "SYNMANAGER_PASSWORD": "secret"},
        {"SYNMANAGER_USERNAME": "two\nlines", "SYNMANAGER_PASSWORD": "secret"},
    ],
    ids=["no password", "no username", "blank password", "both blank", "guest", "control"],
)
def test_half_given_or_useless_credentials_are_refused(
    mq_image: str, environment: dict[str, str]
) -> None:
    with Container(mq_image, environment) as container:
        wait_for(lambda: container.exit_code is not None, "the container refuses to start")
        assert container.exit_code == 1
        assert "SYNMANAGER_USERNAME" in container.logs()
        assert "secret" not in container.logs()


def test_a_container_that_cannot_start_is_not_left_behind(mq_image: str) -> None:
    container = Container(mq_image, {"PATH": "/nowhere"})
    with pytest.raises(AssertionError, match="executable file not found"), container:
        pass
    assert run("docker", "inspect", container.id).returncode != 0


class TestPersistence:
    def test_a_stop_is_clean_and_loses_nothing(self, mq_image: str) -> None:
        with Container(mq_image) as container:
            container.wait_until_answering()
            put(container, b"kept")
            container.stop()
            assert container.exit_code == 0  # else Docker had to kill it
            container.start()
            container.wait_until_answering()
            assert take(container) == b"kept"

    def test_a_kill_loses_nothing_that_was_confirmed(self, mq_image: str) -> None:
        with Container(mq_image) as container:
            container.wait_until_answering()
            put(container, b"kept")
            container.kill()
            container.start()
            container.wait_until_answering()
            assert take(container) == b"kept"

    def test_a_volume_outlives_its_container_and_guest(self, mq_image: str, volume: str) -> None:
        with Container(mq_image, volume=volume) as container:
            container.wait_until_answering()
            put(container, b"kept")
            container.stop()

        with Container(mq_image, CREDENTIALS, volume) as container:
            container.wait_until_answering(USERNAME, PASSWORD)
            assert not amqp_answers(container.parameters(*GUEST))
            assert take(container, (USERNAME, PASSWORD)) == b"kept"
            wait_for(lambda: "guest" not in users(container), "guest is deleted")
            container.stop()

        # Forgetting the credentials must not open what they have closed.
        with Container(mq_image, volume=volume) as container:
            container.wait_until_answering(USERNAME, PASSWORD)
            assert users(container) == {USERNAME: ["administrator"]}

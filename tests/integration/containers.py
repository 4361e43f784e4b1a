"""Containers of one test, and how to wait for what is in them."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from typing import NoReturn

import pika
import pika.exceptions
import pytest

__all__ = ["Container", "amqp_answers", "no_broker", "run", "wait_for"]


def brokers_are_required() -> bool:
    return any(
        os.environ.get(name, "").lower() not in ("", "0", "false")
        for name in ("CI", "SYNMANAGER_REQUIRE_BROKERS")
    )


def no_broker(reason: str) -> NoReturn:
    """End the test for want of a broker, or of a tool: as a failure where brokers are required."""
    if brokers_are_required():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def run(*command: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output, both streams in one, is in ``stdout``."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


def wait_for(condition: Callable[[], bool], what: str, within: float = 120) -> None:
    """Wait until ``condition`` holds; raise TimeoutError, saying ``what``, when it does not.

    A cold broker on a busy machine takes about 10 of the seconds ``within``.
    """
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within:.0f} s")
        time.sleep(0.1)


def amqp_answers(parameters: pika.connection.Parameters) -> bool:
    """Whether a broker completes the AMQP handshake, login included."""
    parameters.socket_timeout = parameters.stack_timeout = 5
    logger = logging.getLogger("pika")
    level = logger.level
    # Refusals are what is waited through here, and pika logs a page at ERROR for each.
    logger.setLevel(logging.CRITICAL)
    try:
        pika.BlockingConnection(parameters).close()
    except (pika.exceptions.AMQPError, OSError):
        return False
    finally:
        logger.setLevel(level)
    return True


class Container:
    """A container of one image, with its ports published on the loopback; a context manager.

    Args:
        image: what to run.
        environment: variables for its entrypoint.
        volume: the name of a volume for its data; by default one of its own.
    """

    def __init__(
        self, image: str, environment: Mapping[str, str] | None = None, volume: str | None = None
    ) -> None:
        options = ["--publish=127.0.0.1::5672", "--publish=127.0.0.1::15672"]
        # Often enough to be waited for, and not so often that the checks are the load.
        options += ["--health-interval=5s"]
        options += [f"--env={name}={value}" for name, value in (environment or {}).items()]
        if volume:
            options.append(f"--volume={volume}:/var/lib/rabbitmq")
        self.id = self._docker("create", *options, image).splitlines()[-1]

    def __enter__(self) -> Container:
        try:
            self.start()
        except BaseException:
            self.__exit__()  # what could not start is there all the same
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._docker("rm", "--force", "--volumes", self.id)

    def port(self, port: int) -> int:
        """The port of the loopback that leads to this one; another after each start."""
        return int(self._docker("port", self.id, str(port)).strip().rpartition(":")[2])

    def parameters(self, username: str, password: str) -> pika.ConnectionParameters:
        login = pika.PlainCredentials(username, password)
        return pika.ConnectionParameters("127.0.0.1", self.port(5672), credentials=login)

    def wait_until_answering(self, username: str = "guest", password: str = "guest") -> None:
        try:
            wait_for(
                lambda: (
                    self.exit_code is not None or amqp_answers(self.parameters(username, password))
                ),
                "the broker answers",
            )
        except TimeoutError as error:
            raise AssertionError(f"{error}; its log:\n{self.logs()}") from None
        assert self.exit_code is None, self.logs()

    def execute(self, *command: str) -> str:
        """Run a command in it, as its user, and return what it prints."""
        return self._docker("exec", self.id, *command)

    def logs(self) -> str:
        return self._docker("logs", self.id)

    @property
    def health(self) -> str:
        return self._inspect("{{.State.Health.Status}}")

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        running, _, code = self._inspect("{{.State.Running}} {{.State.ExitCode}}").partition(" ")
        return None if running == "true" else int(code)

    def stop(self) -> None:
        # Its own way takes more than Docker's 10 s on a busy machine.
        self._docker("stop", "--time=40", self.id)

    def kill(self) -> None:
        self._docker("kill", self.id)

    def start(self) -> None:
        self._docker("start", self.id)

    def _inspect(self, template: str) -> str:
        return self._docker("inspect", f"--format={template}", self.id).strip()

    @staticmethod
    def _docker(*arguments: str) -> str:
        done = run("docker", *arguments)
        assert done.returncode == 0, done.stdout
        return done.stdout

"""docker/cluster's compose file, as docs/clusters.md and README.md use it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from cluster import NODES, is_whole
from conftest import AMQP_URL, Brokers
from containers import run, wait_for
from test_examples import run_a_cycle

#: With the other tests of that image, in one process.
pytestmark = [pytest.mark.long, pytest.mark.xdist_group("mq_image rabbitmq-4.3")]

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "docker" / "cluster" / "docker-compose.yml"

#: What README.md's handlers do, who are the reader's own.
HANDLERS = """
mq_host = "localhost"
def align(**kwargs): ...
def train(lr): return {"lr": lr}
evaluate = align
def archive(lr): print(lr, flush=True)
"""


@pytest.fixture
def compose(
    docker_compose_command: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., str]]:
    """Runs a command of compose for the three nodes, which are up."""
    if AMQP_URL:
        pytest.skip("SYNMANAGER_TEST_AMQP_URL is set, so no image is built")
    brokers: Brokers = request.getfixturevalue("brokers")
    monkeypatch.setenv("BASE_IMAGE", brokers.find_image("rabbitmq-4.3"))
    whole = [*docker_compose_command.split(), "-f", str(COMPOSE)]
    whole += ["-p", f"synmanager-{uuid4().hex[:8]}"]  # the reader's own cluster stays

    def compose(*command: str) -> str:
        done = run(*whole, *command, timeout=600)
        assert done.returncode == 0, done.stdout
        return done.stdout

    try:
        compose("up", "--detach", "--build")
        yield compose
    finally:
        compose("down", "--volumes")


def test_what_the_pages_say_works_on_the_three_nodes(
    compose: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait_until_whole() -> None:
        nodes = [partial(compose, "exec", "-T", node) for node in NODES]
        wait_for(lambda: all(is_whole(node, 8) for node in nodes), "three nodes with 8 queues")

    wait_until_whole()
    (url,) = re.findall("SYNMANAGER_BACKEND='(.*)'", COMPOSE.read_text())
    assert f"export SYNMANAGER_BACKEND='{url}'" in (ROOT / "docs" / "clusters.md").read_text()
    monkeypatch.setenv("SYNMANAGER_BACKEND", url)

    pages = (ROOT / "README.md").read_text()
    submit, listen, work, archive = re.findall(r"```python\n(.*?)```", pages, re.DOTALL)
    done = run(sys.executable, "-c", submit)
    assert done.returncode == 0, done.stdout
    says = tmp_path / "says"
    with running(listen, says):
        told = "{'project_id': 'test_project'} localhost\n"
        wait_for(lambda: says.read_text() == told, "the job is done", 30)
    with running(HANDLERS + work, tmp_path / "worker"), running(HANDLERS + archive, says):
        wait_for(lambda: says.read_text() == "0.1\n0.01\n0.001\n", "results are archived", 30)

    compose("kill", "mq1")
    run_a_cycle(url, tmp_path / "results.jsonl")
    compose("up", "--detach", "mq1")
    wait_until_whole()


@contextmanager
def running(program: str, says: Path) -> Iterator[None]:
    """A program that runs until it is told to stop; what it prints goes to a file."""
    with says.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-uc", program], stdin=subprocess.DEVNULL, stdout=out
        )
    try:
        yield
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()

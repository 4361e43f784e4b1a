"""The snippets of the user's README, executed as they are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from grid import Grid, in_thread, until

from synmanager.engine.service import Service

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

SUBMIT = """
from synmanager.preprocess import PreprocessProducerOperator

##################
# Job Submission #
##################

# Instantiate Producer Operator object
mq_host = "localhost"  # or IP of VM hosting message exchange instance
ppp_operator = PreprocessProducerOperator(host=mq_host)

# Connect to message exchange
ppp_operator.connect()

preprocess_kwarg = {'project_id': "test_project"}
ppp_operator.process(**preprocess_kwarg)

# Terminate connection with message exchange
ppp_operator.disconnect()
"""

RETRIEVE = '''
from synmanager.preprocess import PreprocessConsumerOperator

#############
# Functions #
#############

def perform_action(kwargs, host):
    """ Function that handles the preprocess job 
    
    Args:
        kwargs: Mandatory parameter to receive kwargs from Synergos MQ
        host: Mandatory parameter to receive IP of MQ for job redirection
    """
    ...
    return True

#################
# Job Retrieval #
#################

# Instantiate Producer Operator object
mq_host = "localhost"  # or IP of VM hosting message exchange instance
ppc_operator = PreprocessConsumerOperator(host=mq_host)

# Connect to message exchange
ppc_operator.connect()

ppc_operator.listen_message(process_callback=perform_action)
'''  # noqa: W291, W293 - as the user wrote it

AFTERWARDS = """
# Terminate connection with message exchange (if necessary)
ppc_operator.disconnect()
"""

PHASES = ["preprocess", "train", "evaluate", "completed"]


def of_phase(snippet: str, phase: str) -> str:
    """The same for another phase."""
    return snippet.replace("synmanager.preprocess", f"synmanager.{phase}").replace(
        "PreprocessProducer" if "PreprocessProducer" in snippet else "PreprocessConsumer",
        f"{phase.capitalize()}{'Producer' if 'PreprocessProducer' in snippet else 'Consumer'}",
    )


@pytest.mark.parametrize("phase", PHASES)
def test_the_two_snippets(phase: str, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNMANAGER_BACKEND", grid.url)
    submitting: dict[str, Any] = {}
    exec(of_phase(SUBMIT, phase), submitting)
    assert not submitting["ppp_operator"].is_connected()
    assert grid.count(phase) == {"ready": 1}

    seen: list[Any] = []
    retrieving: dict[str, Any] = {"seen": seen}
    watched = of_phase(RETRIEVE, phase).replace("    ...\n", "    seen.append((kwargs, host))\n")
    listening = in_thread(exec, watched, retrieving)
    until(lambda: seen and not grid.count(phase), "the job is done")
    retrieving["ppc_operator"].stop()
    listening()
    assert seen == [({"project_id": "test_project"}, "localhost")]
    exec(AFTERWARDS, retrieving)
    assert not retrieving["ppc_operator"].is_connected()


def test_the_snippets_of_this_repository_s_readme(
    grid: Grid, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SYNMANAGER_BACKEND", grid.url)
    submit, run, work, archive = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    exec(submit, {})
    namespace: dict[str, Any] = {}
    listening = in_thread(exec, run, namespace)
    until(lambda: "ppc_operator" in namespace and not grid.count("preprocess"), "the job is done")
    namespace["ppc_operator"].stop()
    listening()
    assert "{'project_id': 'test_project'} localhost" in capsys.readouterr().out

    # The two roles; in a reader's program they run until they are stopped.
    endless: Callable[..., int] = Service.run
    monkeypatch.setattr(Service, "run", lambda self: endless(self, burst=True))
    monkeypatch.setenv("SYNMANAGER_JOURNAL", "off")  # whose last words would be waited for
    handlers: dict[str, Any] = dict.fromkeys(("align", "train", "evaluate"), lambda lr: {"lr": lr})
    archived: list[float] = []
    names = {**handlers, "mq_host": "localhost", "archive": lambda lr: archived.append(lr)}
    exec(archive, names)
    assert grid.count("train") == {"ready": 3, "delayed": 1}
    exec(work, names)
    exec(archive, names)
    assert archived == [0.1, 0.01, 0.001]


def test_the_table_of_versions_names_what_is_tested() -> None:
    """``scripts/tested-on`` makes it of what ran; here is what was to run."""
    compose = (ROOT / "tests/integration/docker-compose.yml").read_text()
    expected = re.findall(r"^  (rabbitmq|redis|valkey)-([\d.]+):", compose, re.MULTILINE)
    assert len(expected) >= 7
    classifiers = (ROOT / "pyproject.toml").read_text()
    expected += [("cpython", minor) for minor in re.findall(r"Python :: (3\.\d+)", classifiers)]
    tox = (ROOT / "tox.ini").read_text()
    expected += [("pika", version) for version in re.findall(r" pika==([\d.]+)", tox)]
    expected += [("redis-py", version) for version in re.findall(r" redis==([\d.]+)", tox)]
    rows = re.findall(r"^\| ([\w-]+) \| ([\d., ]+) \|$", README.read_text(), re.MULTILINE)
    table = {product.lower(): versions.split(", ") for product, versions in rows}
    for product, wanted in expected:
        found = [
            version for version in table.get(product, []) if f"{version}.".startswith(f"{wanted}.")
        ]
        assert found, f"{product} {wanted} is not in README.md's table: scripts/tested-on"
        table[product].remove(found[0])
    assert len(table.pop("pika")) == len(table.pop("redis-py")) == 1  # the newest
    assert not any(table.values()), "README.md's table names what is no longer tested"

"""What ``help()`` says of everything that a user imports, and what mypy refuses."""

from __future__ import annotations

import doctest
import importlib
import inspect
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import synmanager
from synmanager.backends import memory

#: The modules whose classes a user imports from there.
MODULES = ("preprocess", "train", "evaluate", "completed", "base", "abstract", "testkit")


def public() -> dict[str, Any]:
    """Every class and function that a user imports, by the name that it is imported by."""
    found = {f"synmanager.{name}": getattr(synmanager, name) for name in synmanager.__all__}
    for name in MODULES:
        module = importlib.import_module(f"synmanager.{name}")
        found |= {f"{module.__name__}.{each}": getattr(module, each) for each in module.__all__}
    return {
        name: value
        for name, value in found.items()
        if inspect.isclass(value) or inspect.isfunction(value)
    }


PUBLIC = public()

#: What is only read: made by others, and shown in their examples.
READ = {f"synmanager.testkit.{name}" for name in ("Outcome", "Progress", "Waiting")}
READ |= {"synmanager.Failure"}

#: What users do not call, or with what any exception takes.
NOT_CALLED = READ | {f"synmanager.{name}" for name in ("Cancelled", "Reject", "Rank", "Sweep")}
NOT_CALLED |= {"synmanager.abstract.AbstractOperator"}

RAISES_NOTHING = {f"synmanager.testkit.{name}" for name in ("FakeBroker", "TravellingClock")}
RAISES_NOTHING |= {"synmanager.Job"}  # its methods do


def what_makes_it(value: Any) -> str:
    """The documentation of what is called: a class's own, and its ``__init__``'s."""
    return f"{inspect.getdoc(value)}\n{inspect.getdoc(value.__init__)}"


def test_there_is_something_to_look_at() -> None:
    assert {"synmanager.Worker", "synmanager.current_job", "synmanager.Retry"} <= set(PUBLIC)
    assert "synmanager.train.TrainProducerOperator" in PUBLIC
    assert len(PUBLIC) > 20


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - NOT_CALLED))
def test_it_says_what_each_takes_and_raises(name: str) -> None:
    text = what_makes_it(PUBLIC[name])
    told, raises, _ = text.partition("Raises:")
    arguments = told.partition("Args:")[2] or told.partition("Attributes:")[2]
    parameters = [each for each in inspect.signature(PUBLIC[name]).parameters if each[0] != "_"]
    assert not [each for each in parameters if each not in arguments]
    assert raises or name in RAISES_NOTHING


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_it_says_what_each_is(name: str) -> None:
    assert inspect.getdoc(PUBLIC[name])


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - READ))
def test_its_example_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_brokers", {})
    monkeypatch.setenv("SYNMANAGER_JOURNAL", "on")
    value = PUBLIC[name]
    module = importlib.import_module(value.__module__)
    example = doctest.DocTestParser().get_doctest(
        inspect.getdoc(value) or "", dict(vars(module)), name, None, None
    )
    assert example.examples, "it has no example"
    told: list[str] = []
    failed, _ = doctest.DocTestRunner(verbose=False).run(example, out=told.append)
    assert not failed, "".join(told)


# A program of a user's: each line is well typed, or has a mark that says what is wrong with it.
PROGRAM = """
from typing import Any
from synmanager import Rank, Worker, current_job
from synmanager.phases import WorkPhase
from synmanager.testkit import FakeBroker, run_job
from synmanager.train import TrainProducerOperator

def train(**kwargs: Any) -> None:
    job = current_job()
    job.progress(1, 2)
    current_job().check()

Worker({"train": train, "evaluate": lambda **kwargs: None})
Worker({"tarin": train})  # [dict-item]
HANDLERS: dict[WorkPhase, Any] = {"train": train}
Worker(HANDLERS)
with TrainProducerOperator() as producer:
    producer.submit({}, priority="high")
    producer.submit({}, priority=Rank.LOW)
    producer.submit({}, priority="hihg")  # [arg-type]
    producer.submit_many([{}], priority="urgent")  # [arg-type]
    producer.sweep([{}], priority=2.5)  # [arg-type]
run_job(train, {}, phase="train")
run_job(train, {}, phase="tarin")  # [arg-type]
with FakeBroker() as broker:
    broker.fail("publish", ValueError)
    broker.fail("pubish", ValueError)  # [arg-type]
"""


@pytest.mark.skipif(find_spec("mypy") is None, reason="mypy is not installed")
def test_a_wrong_phase_or_priority_is_caught_by_mypy(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    root = Path(synmanager.__file__).parents[1]
    is_installed = root.name == "site-packages"  # where mypy finds it, and wants no path to it
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-incremental",
         "--cache-dir", str(tmp_path), "--follow-imports=silent", program.name],
        cwd=tmp_path,
        env={} if is_installed else {"MYPYPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip
    found = {
        (int(line.split(":")[1]), line.rpartition(" ")[2])
        for line in done.stdout.splitlines()
        if ": error: " in line
    }
    expected = {
        (number, line.rpartition(" ")[2])
        for number, line in enumerate(PROGRAM.splitlines(), 1)
        if line.endswith("]") and "  # [" in line
    }
    assert found == expected, done.stdout + done.stderr

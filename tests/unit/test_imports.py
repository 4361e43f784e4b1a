"""The arrows of the architecture point one way."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import synmanager

PACKAGE = Path(synmanager.__file__).parent
SOURCE = PACKAGE.parent

#: Client libraries, each at home in one driver.
HOMES = {"pika": "rabbitmq", "redis": "redis", "kombu": "kombu"}

#: What observability tools bring, each known to one module.
WATCHERS = {"opentelemetry": "spans", "prometheus_client": "metrics"}

#: What only the command line needs.
OF_THE_COMMAND = {"click", "rich"}

#: What only the dashboard needs.
OF_THE_DASHBOARD = {"starlette", "uvicorn", "jinja2", "markupsafe"}

#: From the ground up: a module imports its own floor's and lower ones', see ARCHITECTURE.md.
FLOORS = (
    {"errors", "clock", "interrupts", "redact", "sockets", "stacks", "terminal", "trust", "words"},
    {"config", "text"},
    {"values"},
    {"message"},
    {"backends.base", "backends.urls", "job"},
    {"backends.native", "backends.options", "backends.tls"},  # what drivers share
    {"backends"},  # the registry and the drivers
    {"phases", "settings", "abstract"},
    {"spans"},
    {"tracing"},
    {"logs"},
    {"engine", "journal"},
    {"jobs", "checks", "letters", "lookout", "metrics"},
    {"sweep"},
    {"base"},
    {"preprocess", "train", "evaluate", "completed", "worker", "archiver"},
    {"demo", "testkit"},
    {"web"},
    {"cli"},
    {"__main__"},
)

#: The rooms of the engine and of the journal, from the ground up as well.
ENGINE = (
    {"engine", "engine.callbacks", "engine.ear", "engine.retry"},
    {"engine.shutdown"},
    {"engine.forks", "engine.limits"},
    {"engine.outcomes", "engine.results"},
    {"engine.kept", "engine.session"},
    {"engine.leases"},
    {"journal.events", "journal"},
    {"journal.actions", "journal.aide"},
    {"journal.recorder"},
    {"journal.marks"},
    {"journal.desk"},
    {"journal.fold"},
    {"journal.tally"},
    {"journal.failures", "journal.names", "journal.reader"},
    {"engine.runner"},
    {"engine.service"},
)

#: What decides about jobs, or is for users. No driver knows it.
POLICY = {"engine", "base", "worker", "archiver", "settings", "phases", "abstract", "job"} | {
    "journal", "jobs", "sweep", "preprocess", "train", "evaluate", "completed", "demo", "cli",
    "terminal", "testkit",
}  # fmt: skip


def name_of(path: Path) -> str:
    """``backends.redis.keys`` for ``backends/redis/keys.py``; a package is its folder's name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


#: What any driver may use.
SHARED = ("base", "native", "options", "registry", "tls", "urls")

MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def is_for_type_checkers(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Everything that runs: not what only type checkers read."""
    for child in ast.iter_child_nodes(tree):
        if not is_for_type_checkers(child):
            yield child
            yield from nodes(child)


def imports(name: str) -> set[str]:
    """What a module imports, anywhere in it: full names, of modules and of what is in them."""
    found: set[str] = set()
    for node in nodes(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            assert node.module is not None
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def own_imports(name: str) -> set[str]:
    """The modules of the package that a module imports, without the package's name."""
    found = (full.removeprefix("synmanager.") for full in imports(name))
    return {module for module in found if module in MODULES}


def floor(name: str) -> int | None:
    """The floor that a module is on: its own, or its package's."""
    for level, names in enumerate(FLOORS):
        if name in names:
            return level
    return floor(name.rpartition(".")[0]) if "." in name else None


def drivers() -> dict[str, str]:
    """The modules of the drivers, and which driver each belongs to."""
    parts = {name: name.split(".") for name in MODULES if name.startswith("backends.")}
    return {name: path[1] for name, path in parts.items() if path[1] not in SHARED}


def test_there_is_something_to_look_at() -> None:
    assert {"", "engine.runner", "backends.base", "backends.memory", "testing"} <= set(MODULES)
    assert own_imports("engine.runner") >= {"errors", "message", "engine.retry", "engine.session"}


@pytest.mark.parametrize("name", sorted(drivers()))
def test_a_driver_knows_neither_policy_nor_a_sibling(name: str) -> None:
    driver = drivers()[name]
    for imported in own_imports(name):
        assert imported.split(".")[0] not in POLICY, imported
        assert drivers().get(imported, driver) == driver, imported
        assert imported != "backends.registry"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_client_library_is_imported_in_its_own_driver_only(name: str) -> None:
    for imported in imports(name):
        library = imported.split(".")[0]
        if library in HOMES:
            assert drivers().get(name) == HOMES[library], imported


@pytest.mark.parametrize("name", sorted(MODULES))
def test_the_tools_that_watch_are_known_to_one_module_each(name: str) -> None:
    for imported in imports(name):
        assert WATCHERS.get(imported.split(".")[0], name) == name, imported


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.split(".")[0] != "cli"))
def test_what_the_command_line_needs_is_imported_there_only(name: str) -> None:
    assert not {imported.split(".")[0] for imported in imports(name)} & OF_THE_COMMAND


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.split(".")[0] != "web"))
def test_what_the_dashboard_needs_is_imported_there_only(name: str) -> None:
    assert not {imported.split(".")[0] for imported in imports(name)} & OF_THE_DASHBOARD


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"settings"}))
def test_the_environment_is_read_in_settings_only(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("environ", "environb", "getenv", "getenvb"), node.lineno
    assert not {"os.environ", "os.getenv", "os.environb"} & imports(name)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_nobody_imports_the_names_of_0_1_0(name: str) -> None:
    assert not [imported for imported in imports(name) if imported.endswith("_operations")]


def test_the_leaves_know_nobody() -> None:
    assert own_imports("errors") == set()
    assert (
        own_imports("clock")
        == own_imports("sockets")
        == own_imports("interrupts")
        == own_imports("trust")
        == set()
    )
    assert own_imports("message") == {"errors", "interrupts", "text", "values"}


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name))
def test_nobody_imports_a_higher_floor(name: str) -> None:
    if name.endswith("_operations") or name.split(".")[0] == "testing":
        return  # the first are names for others, the second a guest who sees the interface only
    here = floor(name)
    assert here is not None, f"{name} has no floor yet"
    for imported in own_imports(name):
        there = floor(imported)
        assert there is not None
        assert there <= here, imported


@pytest.mark.parametrize(
    "name", sorted(n for n in MODULES if n.startswith(("engine.", "journal.")))
)
def test_the_engine_has_floors_of_its_own(name: str) -> None:
    levels = {room: level for level, rooms in enumerate(ENGINE) for room in rooms}
    for imported in own_imports(name):
        if imported.startswith(("engine.", "journal.")):
            assert levels[imported] <= levels[name], imported


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("testing")))
def test_the_contract_suite_sees_the_interface_only(name: str) -> None:
    for imported in own_imports(name):
        top = imported.split(".")[0]
        assert top in ("backends", "errors", "message", "testing", "clock", "stacks"), imported
        assert imported not in drivers(), imported


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=SOURCE,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout


# Every name that a user imports, and a whole job.
USE = """
import sys
from synmanager import *
import synmanager.preprocess_operations, synmanager.train_operations
import synmanager.evaluate_operations, synmanager.completed_operations
from synmanager.train import TrainConsumerOperator, TrainProducerOperator
with TrainProducerOperator(url="memory") as producer:
    producer.process(run=1)
with TrainConsumerOperator(url="memory") as consumer:
    consumer.poll_message(lambda run: run)
"""


@pytest.mark.parametrize("code", ["import sys, synmanager", USE], ids=["imported", "used"])
def test_neither_drivers_nor_test_tools_are_loaded(code: str) -> None:
    loaded = set(run(f"{code}\nprint(*sys.modules)").split())
    assert "synmanager" in loaded
    assert not loaded & {"pika", "redis", "fakeredis", "kombu", "hypothesis", "pytest"}
    assert not loaded & set(WATCHERS)
    assert not loaded & (OF_THE_COMMAND | OF_THE_DASHBOARD)


@pytest.mark.parametrize("code", ["import sys, synmanager", USE], ids=["imported", "used"])
def test_logging_is_the_application_s(code: str) -> None:
    look = """
import logging
def state():
    names = [None, *logging.root.manager.loggerDict]
    loggers = [logging.getLogger(name) for name in names if name is None or "synm" in name]
    return [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
before = state()
"""
    after = (
        "after = state()\nprint(after[0] == before[0], all(s == ([], 0, True) for s in after[1:]))"
    )
    assert run(f"{look}\n{code}\n{after}") == "True True\n"


def test_reading_no_environment_at_import() -> None:
    code = """
import os
class Spy(dict):
    def __getitem__(self, name): seen.append(name); return super().__getitem__(name)
    def get(self, name, default=None): seen.append(name); return super().get(name, default)
    def __contains__(self, name): seen.append(name); return super().__contains__(name)
seen, os.environ = [], Spy(os.environ)
import synmanager.cli, synmanager.preprocess, synmanager.worker, synmanager.archiver
print([name for name in seen if isinstance(name, str) and name.startswith("SYN")])
"""
    assert run(code) == "[]\n"

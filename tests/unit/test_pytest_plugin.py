"""The plugin: the contract by an option, and nothing for runs without it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import synmanager
from synmanager.settings import parse_url
from synmanager.testing.installed import BrokerAtURL

SOURCES = str(Path(synmanager.__file__).parent.parent)


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A pytest of a stranger's, in a directory of his."""
    path = os.pathsep.join(filter(None, [SOURCES, os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-pno:cacheprovider", "-ppytest_synmanager", *arguments],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
        check=False,
    )


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    (tmp_path / "test_theirs.py").write_text(
        "import sys\n"
        "def test_theirs():\n"
        "    assert 'pytest_synmanager' in sys.modules\n"
        "    assert not [name for name in sys.modules if name.partition('.')[0] == 'synmanager']\n"
    )
    return tmp_path


def test_a_run_without_the_option_imports_nothing_of_synmanager(theirs: Path) -> None:
    done = run("-q", cwd=theirs)
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout


def test_the_option_runs_the_contract_and_reports_what_it_cannot_test(theirs: Path) -> None:
    done = run("-q", "--synmanager-backend", "memory:///x", "-k", "told or settling", cwd=theirs)
    assert done.returncode == 0, done.stdout
    assert "NOT TESTED BY THE CONTRACT" in done.stdout
    assert "refused: the URL names no password" in done.stdout
    assert "theirs" not in done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize(
    ("url", "is_lacking"),
    [
        ("redis://:secret@a:1", False),
        ("redis+cluster://:secret@a:1,b:2", True),  # where another one is found behind a proxy
        ("amqp://user:secret@a:1,b:2", True),
        ("amqp://user:secret@a:1", False),
    ],
)
def test_what_needs_a_proxy_is_not_tested_where_hosts_are_several(
    url: str, is_lacking: bool
) -> None:
    broker = BrokerAtURL(parse_url(url))
    for ability in ("freeze", "requests", "cut_round_trip", "dead"):
        said = "the URL names no one host and port" if is_lacking else ""
        assert broker.lacks(ability) == said


@pytest.mark.parametrize("url", ["nosuch://host", "memory://?no=1", ""])
def test_an_address_that_cannot_work_is_an_error_of_usage(theirs: Path, url: str) -> None:
    done = run("--synmanager-backend", url, cwd=theirs)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR, done.stdout
    assert "--synmanager-backend: " in done.stdout

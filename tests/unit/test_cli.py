"""The ``synmanager`` command."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from grid import Grid

import synmanager
from synmanager import demo
from synmanager.cli import main
from synmanager.errors import ConfigurationError

SOURCE = Path(synmanager.__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "synmanager", *arguments],
        capture_output=True,
        text=True,
        cwd=SOURCE,
        timeout=60,
        check=False,
    )


def test_help_has_examples() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert "examples:" in done.stdout
    assert "synmanager demo --backend redis://localhost:6379/0" in done.stdout
    assert "synmanager status" in done.stdout


@pytest.mark.parametrize("command", ["demo", "status"])
def test_each_command_s_help_lists_the_backends(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    for scheme in ("amqp://", "amqps://", "redis://", "rediss://", "memory://"):
        assert scheme in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"synmanager {synmanager.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["demo", "--runs", "0"],
        ["demo", "--runs", "many"],
        ["demo", "--runs", "-1"],
        ["demo", "--runs", "²"],
        ["demo", "--ttps", "100000"],
        ["demo", "--speed", "1"],
        ["status", "here"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    assert "usage: synmanager" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["demo", "status"])
def test_an_unknown_backend_is_one_clear_line(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--backend", "kafka://host"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(r"synmanager: no backend is known for 'kafka'.*amqp://.*\n", shown.err)


def test_and_no_traceback_from_the_shell() -> None:
    done = run("status", "--backend", "kafka")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("synmanager: kafka is neither a URL nor a backend's name")
    assert "Traceback" not in done.stderr


class TestStatus:
    def test_counts_the_four_queues(self, grid: Grid, capsys: pytest.CaptureFixture[str]) -> None:
        grid.put({}, {}, {}, phase="train")
        grid.client().receive(["train"], 0)
        grid.producer("preprocess").submit({}, delay=60)
        assert main(["status", "--backend", grid.url]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert lines == [
            ["queue", "ready", "leased", "delayed", "dead"],
            ["preprocess", "0", "0", "1", "0"],
            ["train", "2", "1", "0", "0"],
            ["evaluate", "0", "0", "0", "0"],
            ["completed", "0", "0", "0", "0"],
        ]

    def test_creates_nothing(self, grid: Grid, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["status", "--backend", grid.url]) == 0
        assert capsys.readouterr().out.count("not there yet") == 4
        assert grid.broker.queues == {}

    def test_by_default_of_the_environment_s_backend(
        self, grid: Grid, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SYNMANAGER_BACKEND", grid.url)
        grid.put({})
        assert main(["status"]) == 0
        assert re.search(r"train +1 ", capsys.readouterr().out)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretended jobs that take no time."""
    monkeypatch.setattr(demo, "_WORK", dict.fromkeys(demo._WORK, 0.001))


@pytest.mark.usefixtures("quick")
class TestDemo:
    def test_is_a_whole_cycle(self, grid: Grid, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["demo", "--backend", grid.url, "--runs", "3", "--ttps", "2"]) == 0
        shown = capsys.readouterr().out
        assert "submitted 3 training runs, then 1 alignment" in shown
        progress = re.findall(r"^\[.*\] (\d+)/7  ttp-\d: (\w+)", shown, re.MULTILINE)
        assert [int(done) for done, _ in progress] == list(range(1, 8))
        kinds = [kind for _, kind in progress]
        assert sorted(kinds) == ["align"] + ["evaluate"] * 3 + ["train"] * 3
        for kind, jobs in (("align", 1), ("train", 3), ("evaluate", 3)):
            row = re.search(rf"^{kind} +(\d+)(.*) s", shown, re.MULTILINE)
            assert row is not None
            assert int(row[1]) == jobs
        assert "7 results archived" in shown
        assert all(grid.count(phase) == {} for phase in ("preprocess", "train", "completed"))

    def test_begins_with_the_alignment_though_it_was_submitted_last(
        self, grid: Grid, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["demo", "--backend", grid.url, "--runs", "2", "--ttps", "1"]) == 0
        order = re.findall(r"ttp-1: (\w+)", capsys.readouterr().out)
        assert order[0] == "align"

    def test_leaves_real_jobs_alone(self, grid: Grid, capsys: pytest.CaptureFixture[str]) -> None:
        grid.put({"run": 1})
        assert main(["demo", "--backend", grid.url]) == 1
        assert "1 jobs wait in 'train'" in capsys.readouterr().err
        assert grid.count() == {"ready": 1}

    def test_says_what_failed(
        self, grid: Grid, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*args: Any, **kwargs: Any) -> int:
            raise ConfigurationError("planted")

        monkeypatch.setattr("synmanager.service.Service.run", fail)
        assert main(["demo", "--backend", grid.url, "--runs", "1"]) == 1
        assert capsys.readouterr().err == "synmanager: planted\n"

    def test_gives_up_when_nothing_comes(
        self, grid: Grid, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(demo, "_PATIENCE", 0.05)
        monkeypatch.setattr("synmanager.service.Service.run", lambda *args, **kwargs: 0)
        assert main(["demo", "--backend", grid.url, "--runs", "1"]) == 1
        assert "no result came" in capsys.readouterr().err

    def test_ctrl_c(self, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(self: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(demo.Demo, "_await_results", interrupt)
        assert main(["demo", "--backend", grid.url, "--runs", "1"]) == 130


def test_the_demo_from_the_shell() -> None:
    done = run("demo", "--runs", "1", "--ttps", "1")
    assert done.returncode == 0, done.stderr
    assert "3 results archived" in done.stdout
    assert done.stderr == ""

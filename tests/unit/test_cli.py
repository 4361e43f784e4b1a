"""The ``synmanager`` command."""

from __future__ import annotations

import json
import os
import pty
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grid import Grid

import synmanager
from synmanager import demo
from synmanager.archiver import Archiver
from synmanager.cli import main
from synmanager.cli.app import COMMANDS
from synmanager.cli.output import table
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


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"move", "completion", "dead"}))
def test_each_command_s_help_lists_the_backends(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    for scheme in ("amqp://", "amqps://", "redis://", "rediss://", "memory://"):
        assert scheme in shown


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"synmanager {synmanager.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["dance"],
        ["demo", "--runs", "0"],
        ["demo", "--runs", "many"],
        ["demo", "--runs", "-1"],
        ["demo", "--runs", "²"],
        ["demo", "--ttps", "100000"],
        ["demo", "--speed", "1"],
        ["status", "here"],
        ["submit", "train"],
        ["submit", "dance", "{}"],
        ["submit", "train", "x"],
        ["submit", "train", "a=1", "--delay", "soon"],
        ["work", "jobs"],
        ["dead", "redrive"],
        ["dead", "purge", "--yes"],
        ["dead", "redrive", "--all", "--phase", "train"],
        ["move", "--from", "memory"],
        ["move", "--from", "memory", "--to", "memory"],
        ["purge", "train", "--subscriber", "x"],
    ],
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Usage: synmanager" in shown.err
    assert "--help'" in shown.err


@pytest.mark.parametrize(("group", "command"), [([], "status"), (["dead"], "redrive")])
def test_a_group_alone_is_answered_with_its_help(
    group: list[str], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(group) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.search(rf"^  {command} ", shown.err, re.MULTILINE)
    assert shown.err.count("Usage:") == 1
    assert "\\n" not in shown.err


def test_a_missing_phase_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit"]) == 2
    assert "Choose from: preprocess, train, evaluate, completed\n" in capsys.readouterr().err


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
            ["queue", "ready", "running", "delayed", "dead", "consumers"],
            ["preprocess", "0", "0", "1", "0", "-"],
            ["train", "2", "1", "0", "0", "-"],
            ["evaluate", "0", "0", "0", "0", "-"],
            ["completed", "0", "0", "0", "0", "-"],
        ]

    def test_as_json(self, grid: Grid, capsys: pytest.CaptureFixture[str]) -> None:
        grid.put({}, {})
        assert main(["status", "--backend", grid.url, "--json"]) == 0
        queues = json.loads(capsys.readouterr().out)["queues"]
        assert queues["train"] == {
            "ready": 2, "running": 0, "delayed": 0, "dead": 0, "consumers": None,
        }  # fmt: skip

    def test_shows_subscribers(self, grid: Grid, capsys: pytest.CaptureFixture[str]) -> None:
        Archiver(print, "audit", url=grid.url).subscribe()
        grid.put({}, phase="completed")
        assert main(["status", "--backend", grid.url, "--subscriber", "other"]) == 0
        shown = capsys.readouterr().out
        assert re.search(r"^completed-audit +1 ", shown, re.MULTILINE)
        assert shown.endswith("not there yet: completed-other\n")

    def test_watches_until_it_is_told_to_end(
        self, grid: Grid, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        grid.put({})
        looks: list[float] = []

        def sleep(seconds: float) -> None:
            looks.append(seconds)
            if len(looks) == 3:
                raise KeyboardInterrupt
            grid.put({})

        monkeypatch.setattr("synmanager.cli.status.time.sleep", sleep)
        watch = ["status", "--backend", grid.url, "--watch", "--every", "7"]
        assert main([*watch, "--json"]) == 130
        shown = capsys.readouterr()
        seen = [json.loads(line)["queues"]["train"]["ready"] for line in shown.out.splitlines()]
        assert seen == [1, 2, 3]
        assert looks == [7, 7, 7]
        assert shown.err.endswith("synmanager: interrupted\n")
        looks.clear()
        assert main(watch) == 130
        assert re.findall(r"train +(\d)", capsys.readouterr().out) == ["3", "4", "5"]

    def test_watches_in_place(self) -> None:
        here, there = pty.openpty()
        process = start("status", "--backend", "memory", "--watch", "--every", "0.1", stdout=there)
        os.close(there)
        shown = ""
        while shown.count("Ctrl-C ends it") < 2:
            shown += os.read(here, 4096).decode()
        process.send_signal(signal.SIGINT)
        status, _, error = end(process)
        os.close(here)
        assert status == 130
        assert error.endswith("synmanager: interrupted\n")
        assert "\x1b[" in shown

    def test_creates_nothing(self, grid: Grid, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["status", "--backend", grid.url]) == 0
        ended = "not there yet: preprocess, train, evaluate, completed\n"
        assert capsys.readouterr().out.endswith(ended)
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

        monkeypatch.setattr("synmanager.engine.service.Service.run", fail)
        assert main(["demo", "--backend", grid.url, "--runs", "1"]) == 1
        assert capsys.readouterr().err == f"broker: {grid.url}\nsynmanager: planted\n"

    def test_gives_up_when_nothing_comes(
        self, grid: Grid, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(demo, "_PATIENCE", 0.05)
        monkeypatch.setattr("synmanager.engine.service.Service.run", lambda *args, **kwargs: 0)
        assert main(["demo", "--backend", grid.url, "--runs", "1"]) == 1
        assert "no result came" in capsys.readouterr().err

    def test_ctrl_c(self, grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupt(self: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(demo.Demo, "_await_results", interrupt)
        assert main(["demo", "--backend", grid.url, "--runs", "5"]) == 130
        queues = ("preprocess", "train", "evaluate", "completed")
        assert [grid.count(queue) for queue in queues] == [{}, {}, {}, {}]

    def test_takes_the_environment_s_broker(
        self, grid: Grid, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SYNMANAGER_BACKEND", grid.url)
        assert main(["demo", "--runs", "1"]) == 0
        assert capsys.readouterr().err == f"broker: {grid.url}\n"
        assert set(grid.broker.queues) == {"preprocess", "train", "evaluate", "completed"}

    def test_removes_its_own_jobs_only(
        self, grid: Grid, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(self: object) -> None:
            grid.put({"run": 1}, {"run": 2})
            raise KeyboardInterrupt

        monkeypatch.setattr("synmanager.engine.service.Service.run", lambda *args, **kwargs: 0)
        monkeypatch.setattr(demo.Demo, "_await_results", interrupt)
        assert main(["demo", "--backend", grid.url, "--runs", "5"]) == 130
        assert [message.body for message in grid.ready("train")] == [b'{"run": 1}', b'{"run": 2}']
        assert grid.count() == {"ready": 2}


def test_the_demo_from_the_shell() -> None:
    done = run("demo", "--runs", "1", "--ttps", "1")
    assert done.returncode == 0, done.stderr
    assert "3 results archived" in done.stdout
    assert done.stderr == "broker: memory://\n"


def test_a_narrow_terminal_gets_paragraphs() -> None:
    head, rows = ("queue", "ready", "dead"), [("train", "12", "-"), ("preprocess", "3", "4")]
    assert table(head, rows, width=40).splitlines() == [
        "queue       ready  dead",
        "train          12     -",
        "preprocess      3     4",
    ]
    assert table(head, rows, width=22).splitlines() == [
        "train", "  ready  12", "  dead   -", "preprocess", "  ready  3", "  dead   4",
    ]  # fmt: skip


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_complete_it(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert f"_SYNMANAGER_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_what_a_shell_completes() -> None:
    environment = {
        **ENVIRONMENT, "_SYNMANAGER_COMPLETE": "bash_complete",
        "COMP_WORDS": "synmanager submit pre", "COMP_CWORD": "2",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "synmanager"],
        capture_output=True, text=True, cwd=SOURCE, env=environment, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "plain,preprocess\n"


@pytest.mark.parametrize(
    ("arguments", "most"),
    [(["--version"], 330), (["--help"], 400), (["status", "--backend", "memory"], 400)],
    ids=["version", "help", "status"],
)
def test_it_starts_with_little(arguments: list[str], most: int) -> None:
    """A start takes as long as what it imports; modules can be counted on any machine."""
    code = """
import sys
before = set(sys.modules)
from synmanager.cli import main
main(sys.argv[1:])
print(*set(sys.modules) - before, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, cwd=SOURCE, timeout=60, check=True,
    )  # fmt: skip
    loaded = set(done.stderr.splitlines()[-1].split())
    assert not loaded & {"rich", "pika", "redis", "kombu", "sqlite3", "logging.handlers", "asyncio"}
    assert len(loaded) < most


ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def start(*arguments: str, redirect: str = "", **streams: Any) -> subprocess.Popen[str]:
    """The command in a shell's redirection, such as ``>&-``, which closes its output."""
    command = [sys.executable, "-m", "synmanager", *arguments]
    return subprocess.Popen(
        ["sh", "-c", f'exec "$@" {redirect}', "sh", *command],
        text=True,
        cwd=SOURCE,
        env=ENVIRONMENT,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams},
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, error = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out or "", error or ""


@pytest.fixture
def unread() -> Iterator[int]:
    """A pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def said(arguments: list[str]) -> str:
    """What a command says of its broker on standard error."""
    return "" if arguments == ["--help"] else "broker: memory://\n"


STATUS = ["status", "--backend", "memory"]
DEMO = ["demo", "--runs", "1", "--ttps", "1"]


@pytest.mark.parametrize("arguments", [STATUS, DEMO, ["--help"]], ids=["status", "demo", "help"])
def test_it_ends_quietly_where_nobody_reads(arguments: list[str], unread: int) -> None:
    assert end(start(*arguments, stdout=unread)) == (141, "", said(arguments))


def test_it_ends_quietly_when_its_reader_leaves() -> None:
    process = start("demo", "--runs", "200")
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Director")
    process.stdout.close()
    process.stdout = None  # so that communicate() leaves it alone
    assert end(process) == (141, "", said(DEMO))


@pytest.mark.parametrize("redirect", [">&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("arguments", [STATUS, DEMO], ids=["status", "demo"])
def test_it_does_its_work_where_its_output_is_closed(arguments: list[str], redirect: str) -> None:
    expected = "" if "2>&-" in redirect else said(arguments)
    assert end(start(*arguments, redirect=redirect)) == (0, "", expected)


@pytest.mark.parametrize(
    "arguments",
    [["status", "--backend", "nope"], ["dance"], ["demo", "--runs", "0"], ["submit", "train", "x"]],
)
def test_its_errors_do_not_go_to_its_output(arguments: list[str], unread: int) -> None:
    status = 1 if arguments[0] == "status" else 2
    assert end(start(*arguments, redirect="2>&-")) == (status, "", "")
    assert end(start(*arguments, stderr=unread)) == (status, "", "")


def test_a_full_disk_is_one_clear_line() -> None:
    for arguments in (STATUS, DEMO):
        status, _, error = end(start(*arguments, redirect="> /dev/full"))
        assert status == 1
        assert error == f"{said(arguments)}synmanager: No space left on device\n"


def test_ctrl_c_from_the_shell() -> None:
    process = start("demo", "--runs", "200")
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    status, _, error = end(process)
    assert (status, error) == (130, "broker: memory://\nsynmanager: interrupted\n")


def test_an_error_is_one_line_whatever_it_holds(
    grid: Grid, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise ConfigurationError("two\nlines \x1b[2J")

    monkeypatch.setattr("synmanager.cli.broker.load_settings", fail)
    assert main(["status"]) == 1
    assert capsys.readouterr().err == "synmanager: two\\nlines \\x1b[2J\n"


@pytest.mark.usefixtures("quick")
def test_what_strangers_call_themselves_does_not_reach_the_terminal(
    grid: Grid, capsys: pytest.CaptureFixture[str]
) -> None:
    show = demo.Demo(grid.url, runs=1)
    show._archive_result(
        {"kind": "align", "run": 0, "ttp": "\x1b[2J\n", "waited": 0.0, "worked": 0.0}, "localhost"
    )
    assert "\\x1b[2J\\n: align\n" in capsys.readouterr().out


def test_its_page_is_current() -> None:
    root = Path(__file__).parents[2]  # the package may be an installed one
    script = runpy.run_path(str(root / "scripts" / "write-cli-docs"))
    page = (root / "docs" / "cli.md").read_text("utf-8")
    assert page == script["document"](), "run scripts/write-cli-docs"


@pytest.mark.parametrize(
    ("end", "status", "said"),
    [(EOFError, 1, "no answer; nothing was changed"), (KeyboardInterrupt, 130, "interrupted")],
)
def test_a_question_that_is_not_answered(
    end: type[BaseException],
    status: int,
    said: str,
    grid: Grid,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ask(prompt: str) -> str:
        raise end

    monkeypatch.setattr("click.termui.visible_prompt_func", ask)
    grid.put({})
    assert main(["purge", "train", "--backend", grid.url]) == status
    assert f"\n\nsynmanager: {said}" in capsys.readouterr().err
    assert grid.count()["ready"] == 1

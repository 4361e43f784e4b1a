"""``synmanager submit``, ``work``, ``archive`` and ``purge``."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grid import Grid

from synmanager.archiver import Archiver
from synmanager.cli import main
from synmanager.errors import PublishInterrupted
from synmanager.message import Rank
from synmanager.worker import Worker

Captured = pytest.CaptureFixture[str]


class TestSubmit:
    def test_an_object(self, grid: Grid, capsys: Captured) -> None:
        assert main(["submit", "train", '{"run": 1, "lr": 0.01}', "--backend", grid.url]) == 0
        (message,) = grid.ready("train")
        assert json.loads(message.body) == {"run": 1, "lr": 0.01}
        shown = capsys.readouterr()
        assert shown.out == f"{message.id}\n"
        assert shown.err == f"broker: {grid.url}\n"

    def test_keys_and_values(self, grid: Grid) -> None:
        words = ["run=1", "model=res=net", "deep=[1]", "nothing=null", "text=", 'quoted="1"']
        options = ["--priority", "high", "--id", "mine", "--time-limit", "2h"]
        assert main(["submit", "train", *words, *options, "--backend", grid.url]) == 0
        (message,) = grid.ready("train")
        assert json.loads(message.body) == {
            "run": 1, "model": "res=net", "deep": [1], "nothing": None, "text": "", "quoted": "1",
        }  # fmt: skip
        assert (message.id, message.rank) == ("mine", Rank.HIGH)
        assert message.headers == {"time-limit": "7200.0"}

    def test_an_id_that_is_in_use(self, grid: Grid, capsys: Captured) -> None:
        command = ["submit", "train", "run=1", "--id", "mine", "--backend", grid.url]
        assert main(command) == 0
        capsys.readouterr()
        assert main(command) == 1
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.endswith("synmanager: 'mine' was not queued: its id is in use\n")
        assert grid.count() == {"ready": 1}

    @pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("15m", 900), ("1.5h", 5400)])
    def test_a_delay(self, text: str, seconds: float, grid: Grid) -> None:
        assert main(["submit", "train", "run=1", "--delay", text, "--backend", grid.url]) == 0
        assert grid.count() == {"delayed": 1}
        grid.clock.advance(seconds - 60)
        assert grid.count() == {"delayed": 1}
        grid.clock.advance(61)
        assert grid.count() == {"ready": 1}

    def test_a_file(self, grid: Grid, tmp_path: Path, capsys: Captured) -> None:
        file = tmp_path / "jobs.ndjson"
        file.write_text("".join(f'{{"run": {run}}}\n\n' for run in range(450)))
        assert main(["submit", "train", "--file", str(file), "--backend", grid.url]) == 0
        assert [json.loads(each.body)["run"] for each in grid.ready("train")] == list(range(450))
        shown = capsys.readouterr()
        assert shown.out.split() == [each.id for each in grid.ready("train")]
        assert shown.err.endswith("450 jobs queued\n")

    def test_standard_input_as_json(
        self, grid: Grid, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stdin = io.TextIOWrapper(io.BytesIO(b'{"run": 1}\n{"run": 2}\n'))
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["submit", "train", "--file", "-", "--json", "--backend", grid.url]) == 0
        ids = [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()]
        assert ids == [each.id for each in grid.ready("train")]

    def test_a_wrong_line_says_where_and_how_to_go_on(
        self, grid: Grid, tmp_path: Path, capsys: Captured
    ) -> None:
        file = tmp_path / "jobs.ndjson"
        lines = [f'{{"run": {run}}}' for run in range(300)]
        file.write_text("\n".join([*lines[:250], "[1]", *lines[250:]]))
        command = ["submit", "train", "--file", str(file), "--backend", grid.url]
        assert main(command) == 1
        error = capsys.readouterr().err
        assert "line 251 is a JSON list, and no object" in error
        assert "200 jobs queued; to go on: --skip 200" in error
        file.write_text("\n".join([*lines[:250], "{}", *lines[250:]]))
        assert main([*command, "--skip", "200"]) == 0
        assert len(grid.ready("train")) == 301

    def test_what_is_in_doubt_is_said(
        self, grid: Grid, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(self: object, *args: Any, **options: Any) -> list[str]:
            raise PublishInterrupted("gone", grid.put({}, phase="evaluate"))

        monkeypatch.setattr("synmanager.base.ProducerOperator.submit_many", fail)
        file = tmp_path / "jobs.ndjson"
        file.write_text("{}\n")
        assert main(["submit", "train", "--file", str(file), "--backend", grid.url]) == 1
        error = capsys.readouterr().err
        assert "1 job of the last batch may be missing" in error
        assert "--skip 0" in error

    @pytest.mark.parametrize(
        "job", ["{", '{"run": NaN', '{"run": "\\ud800"}'], ids=["cut", "nan", "surrogate"]
    )
    def test_what_is_no_job(self, job: str, grid: Grid, capsys: Captured) -> None:
        assert main(["submit", "train", job, "--backend", grid.url]) == 1
        assert capsys.readouterr().err.splitlines()[-1].startswith("synmanager: ")
        assert grid.broker.queues == {} or grid.count() == {}


MODULE = """
SEEN = []

def train(run):
    SEEN.append(run)
    return {"run": run, "loss": 0.1}

def write(**result):
    SEEN.append(result)

HANDLERS = {"train": train}
ONE = train

class Settings:
    handlers = HANDLERS
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the working directory."""
    name = "cl_jobs_of_a_test"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("logging.basicConfig", lambda **options: None)
    yield name
    sys.modules.pop(name, None)


class TestWork:
    @pytest.mark.parametrize("name", ["HANDLERS", "Settings.handlers"])
    def test_runs_what_there_is(self, name: str, module: str, grid: Grid, capsys: Captured) -> None:
        grid.put({"run": 1}, {"run": 2})
        assert main(["work", f"{module}:{name}", "--burst", "--backend", grid.url]) == 0
        assert sys.modules[module].SEEN == [1, 2]
        assert [json.loads(each.body)["run"] for each in grid.ready("completed")] == [1, 2]
        assert capsys.readouterr().err == f"broker: {grid.url}\n2 jobs run\n"

    def test_ends_after_so_many(self, module: str, grid: Grid, capsys: Captured) -> None:
        grid.put({"run": 1}, {"run": 2})
        command = ["work", f"{module}:HANDLERS", "--max-jobs", "1", "--backend", grid.url]
        assert main(command) == 0
        assert grid.count() == {"ready": 1}
        assert capsys.readouterr().err.endswith("1 job run\n")

    @pytest.mark.parametrize(
        ("name", "error"),
        [
            ("no_such_module:HANDLERS", "there is no module 'no_such_module'"),
            ("{}:NONE", "has no 'NONE'"),
            ("{}:ONE", "must be a mapping of phase to callable"),
        ],
    )
    def test_what_is_not_there(
        self, name: str, error: str, module: str, grid: Grid, capsys: Captured
    ) -> None:
        assert main(["work", name.format(module), "--backend", grid.url]) == 1
        assert error in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("text", "error"),
        [
            ("x = 1\n1 / x - 1 / 0\n", "ZeroDivisionError: division by zero"),
            ("import no_such_module\n", "ModuleNotFoundError: No module named 'no_such_module'"),
            ("def f(:\n", "SyntaxError: "),
        ],
        ids=["fails", "misses", "broken"],
    )
    def test_a_module_that_cannot_be_imported(
        self, text: str, error: str, module: str, grid: Grid, capsys: Captured
    ) -> None:
        Path(f"{module}.py").write_text(text)
        assert main(["work", f"{module}:HANDLERS", "--backend", grid.url]) == 1
        said = capsys.readouterr().err
        assert f"synmanager: {module} cannot be imported: {error}" in said
        assert f"{module}.py" in said
        assert "importlib" not in said  # nor anything else of the way there

    def test_archive(self, module: str, grid: Grid, capsys: Captured) -> None:
        command = ["archive", f"{module}:write", "--burst", "--backend", grid.url]
        assert main([*command, "--subscriber", "audit"]) == 0
        grid.put({"run": 1}, phase="completed")
        assert main(command) == 0
        assert main([*command, "--subscriber", "audit"]) == 0
        assert sys.modules[module].SEEN == [{"run": 1}, {"run": 1}]

    def test_archive_and_what_was_given_up(self, module: str, grid: Grid) -> None:
        Path(f"{module}.py").write_text(
            "FAILED = []\ndef write(**result): ...\n"
            "def tell(failure): FAILED.append((failure.id, failure.reason))\n"
        )
        command = ["archive", f"{module}:write", "--burst", "--backend", grid.url]
        command += ["--subscriber", "audit", "--on-failure", f"{module}:tell"]
        assert main(command) == 0
        grid.put(b"no json", id="mine")
        Worker({"train": lambda **job: None}, url=grid.url).run(burst=True)
        assert main(command) == 0
        ((failed, reason),) = sys.modules[module].FAILED
        assert failed == "mine"
        assert "JSON" in reason


def answer(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


class TestPurge:
    def test_asks_first(
        self, grid: Grid, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        grid.put({}, {})
        grid.producer().submit({}, delay=60)
        for text, last in (("", "nothing was changed. --yes"), ("n\n", "nothing was changed\n")):
            answer(monkeypatch, text)
            assert main(["purge", "train", "--backend", grid.url]) == 1
            assert last in capsys.readouterr().err
        assert grid.count() == {"ready": 2, "delayed": 1}
        answer(monkeypatch, "y\n")
        assert main(["purge", "train", "--backend", grid.url]) == 0
        shown = capsys.readouterr()
        assert "Remove 2 ready jobs and 1 delayed ones of train for good?" in shown.err
        assert shown.out == "3 jobs of train removed\n"
        assert grid.count() == {}

    def test_a_subscriber_s(self, grid: Grid, capsys: Captured) -> None:
        command = ["purge", "completed", "--subscriber", "audit", "--yes", "--backend", grid.url]
        assert main(command) == 1
        assert re.search("there is no queue 'completed-audit'", capsys.readouterr().err)


class TestUnsubscribe:
    @pytest.fixture(autouse=True)
    def _subscribers(self, grid: Grid) -> None:
        for name in ("audit", "other"):
            Archiver(print, name, url=grid.url).subscribe()
        grid.put({}, {}, phase="completed")

    def test_asks_first(
        self, grid: Grid, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        command = ["unsubscribe", "audit", "--backend", grid.url]
        answer(monkeypatch, "n\n")
        assert main(command) == 1
        assert grid.count("completed-audit") == {"ready": 2}
        answer(monkeypatch, "y\n")
        assert main(command) == 0
        shown = capsys.readouterr()
        question = "Remove completed-audit with 2 results that it has not archived, and 0 dead"
        assert question in shown.err
        assert shown.out == "completed-audit removed, with 2 results that nobody had archived\n"
        assert grid.count("completed-other") == {"ready": 2}

    def test_in_json(self, grid: Grid, capsys: Captured) -> None:
        assert main(["unsubscribe", "audit", "--yes", "--json", "--backend", grid.url]) == 0
        shown = json.loads(capsys.readouterr().out)
        assert shown == {"queue": "completed-audit", "removed": 2}

    @pytest.mark.parametrize(
        ("name", "why"), [("nobody", "nobody has subscribed"), ("a.b", "a subscriber's name")]
    )
    def test_who_is_no_subscriber(self, name: str, why: str, grid: Grid, capsys: Captured) -> None:
        assert main(["unsubscribe", name, "--yes", "--backend", grid.url]) == 1
        assert why in capsys.readouterr().err

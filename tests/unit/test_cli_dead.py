"""``synmanager dead``: a poison job found, shown, mended and run again."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from grid import Grid

from synmanager.backends import DeadLetter
from synmanager.cli import main
from synmanager.message import Message, Rank, encode

Captured = pytest.CaptureFixture[str]


def bury(grid: Grid, *reasons: str, phase: str = "train", **message: Any) -> list[Message]:
    """Dead letters of a phase with these reasons."""
    letters = [
        DeadLetter(
            Message(encode({"run": number}), rank=Rank.HIGH, **message), phase, reason, 5,
            1764094604.0 + number, "\n".join(f"line {line}" for line in range(50)),
        )
        for number, reason in enumerate(reasons)
    ]  # fmt: skip
    grid.client().add_letters(phase, letters)
    return [letter.message for letter in letters]


def run(grid: Grid, *arguments: str) -> int:
    return main(["dead", *arguments, "--backend", grid.url])


def ids_of(grid: Grid, queue: str = "train") -> list[str]:
    return [letter.message.id for letter in grid.client().dead_letters(queue, 100)]


def test_a_poison_job_at_three_in_the_morning(grid: Grid, capsys: Captured) -> None:
    """All of it, with what the runner itself writes."""

    def train(lr: float) -> None:
        raise ZeroDivisionError("a planted failure")

    grid.producer().submit({"lr": 0}, job_id="p1-run-7")
    grid.consumer(max_attempts=1).listen_message(train, max_jobs=1)
    assert run(grid, "list") == 0
    assert "ZeroDivisionError: a planted failure" in capsys.readouterr().out
    assert run(grid, "show", "p1-r") == 0
    shown = capsys.readouterr().out
    assert "in train" in shown
    assert '"lr": 0' in shown
    assert run(grid, "edit", "p1-r", "--job", '{"lr": 0.1}') == 0
    assert run(grid, "redrive", "p1-r", "--yes") == 0
    (message,) = grid.ready("train")
    assert (message.id, message.body) == ("p1-run-7", b'{"lr": 0.1}')


class TestList:
    def test_groups_by_reason(self, grid: Grid, capsys: Captured) -> None:
        bury(grid, "out of memory", "no such project", "out of memory\nand a second line")
        bury(grid, "out of memory", phase="evaluate")
        assert run(grid, "list") == 0
        lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
        assert lines == [["queue", "letters"], ["train", "2"], ["train", "1"], ["evaluate", "1"]]

    def test_each(self, grid: Grid, capsys: Captured) -> None:
        sent = bury(grid, "why", "\x1b[2J")
        assert run(grid, "list", "--each") == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == ["id", sent[0].id, sent[1].id]
        assert lines[2].endswith("\\x1b[2J")

    def test_as_json_and_filtered(self, grid: Grid, capsys: Captured) -> None:
        sent = bury(grid, "Out of Memory", "other")
        bury(grid, "out of memory", phase="evaluate")
        for options, number in (
            (["--reason", "out of"], 2),
            (["--reason", "out of", "--phase", "train"], 1),
            (["--phase", "preprocess"], 0),
            ([sent[0].id, sent[1].id[:8]], 2),
        ):
            assert run(grid, "list", "--json", *options) == 0
            assert len(json.loads(capsys.readouterr().out)) == number
        assert run(grid, "list", "--json", sent[0].id) == 0
        (letter,) = json.loads(capsys.readouterr().out)
        assert letter["job"] == {"run": 0}
        assert (letter["reason"], letter["attempts"]) == ("Out of Memory", 5)

    def test_there_are_none(self, grid: Grid, capsys: Captured) -> None:
        assert run(grid, "list") == 0
        assert capsys.readouterr().out == "no dead letters\n"

    def test_a_subscriber_s(self, grid: Grid, capsys: Captured) -> None:
        assert run(grid, "list", "--subscriber", "audit") == 0
        assert capsys.readouterr().out == "no dead letters\n"


class TestShow:
    def test_all_that_is_known(self, grid: Grid, capsys: Captured) -> None:
        (message,) = bury(grid, "out of memory", headers={"time-limit": "7.0"})
        assert run(grid, "show", message.id) == 0
        shown = capsys.readouterr().out
        for part in (message.id, "train", "high", "out of memory", "time-limit", '"run": 0'):
            assert part in shown
        assert "line 49" in shown
        assert "line 29\n" not in shown
        assert run(grid, "show", message.id, "--full") == 0
        assert "line 0\n" in capsys.readouterr().out

    def test_what_is_no_json(self, grid: Grid, capsys: Captured) -> None:
        letter = DeadLetter(Message(b"\xff\x1b[2J"), "train", "unreadable", 1, 1.0)
        grid.client().add_letters("train", [letter])
        assert run(grid, "show", letter.message.id) == 0
        assert "\\xff\\x1b[2J" in capsys.readouterr().out
        assert run(grid, "show", letter.message.id, "--json") == 0
        (shown,) = json.loads(capsys.readouterr().out)
        assert shown["job"] is None

    @pytest.mark.parametrize("given", ["nobody", "abc"])
    def test_nobody_s_id(self, given: str, grid: Grid, capsys: Captured) -> None:
        bury(grid, "why", id="abcdefgh")  # of which three characters are too few
        assert run(grid, "show", given) == 1
        assert f"no dead letter has the id '{given}'" in capsys.readouterr().err

    def test_an_id_of_several(self, grid: Grid, capsys: Captured) -> None:
        bury(grid, "why", id="run-1")
        bury(grid, "why", id="run-12")
        assert run(grid, "show", "run-") == 1
        assert "2 jobs have ids that begin with 'run-'" in capsys.readouterr().err
        assert run(grid, "show", "run-12") == 0


class TestEdit:
    def test_in_an_editor(
        self, grid: Grid, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        editor = tmp_path / "editor"
        editor.write_text(
            f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\n"
            "file = Path(sys.argv[1])\nfile.write_text(file.read_text().replace('0', '17'))\n"
        )
        editor.chmod(editor.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("VISUAL", str(editor))
        (message,) = bury(grid, "why")
        assert run(grid, "edit", message.id, "--redrive") == 0
        assert f"{message.id} changed, and back in train" in capsys.readouterr().out
        (back,) = grid.ready("train")
        assert (back.id, back.rank, back.body) == (message.id, Rank.HIGH, b'{"run": 17}')
        assert ids_of(grid) == []

    def test_an_editor_that_changes_nothing(
        self, grid: Grid, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("VISUAL", "true")
        (message,) = bury(grid, "why")
        assert run(grid, "edit", message.id) == 1
        assert "nothing was changed" in capsys.readouterr().err

    @pytest.mark.parametrize("job", ["{", "[]", "\ud800"])
    def test_what_is_no_job(self, job: str, grid: Grid, capsys: Captured) -> None:
        (message,) = bury(grid, "why")
        assert run(grid, "edit", message.id, "--job", job) == 1
        assert "nothing was changed" in capsys.readouterr().err
        (letter,) = grid.client().dead_letters("train", 10)
        assert letter.message.body == message.body

    def test_keeps_all_else(self, grid: Grid) -> None:
        (message,) = bury(grid, "why")
        assert run(grid, "edit", message.id, "--job", '{"run": "mended"}') == 0
        (letter,) = grid.client().dead_letters("train", 10)
        assert (letter.message.id, letter.message.rank) == (message.id, Rank.HIGH)
        assert (letter.reason, letter.attempts, letter.died_at) == ("why", 5, 1764094604.0)

    def test_says_what_cannot_be_redriven(self, grid: Grid, capsys: Captured) -> None:
        bury(grid, "why", id="same")
        grid.put({}, id="same")
        assert run(grid, "edit", "same", "--job", "{}", "--redrive") == 1
        assert "it stays dead: a job of its id is in train already" in capsys.readouterr().err


class TestRedriveAndPurge:
    def test_single_ones(self, grid: Grid, capsys: Captured) -> None:
        sent = bury(grid, "a", "b", "c")
        assert run(grid, "redrive", sent[1].id, "--yes") == 0
        assert "1 dead letter put back" in capsys.readouterr().out
        assert [message.id for message in grid.ready("train")] == [sent[1].id]
        assert run(grid, "purge", sent[0].id[:12], "--yes", "--json") == 0
        assert json.loads(capsys.readouterr().out) == {"removed": {"train": 1}}
        assert ids_of(grid) == [sent[2].id]

    def test_by_phase_and_reason(self, grid: Grid) -> None:
        bury(grid, "timeout", "other")
        bury(grid, "timeout", phase="evaluate")
        assert run(grid, "redrive", "--phase", "train", "--reason", "TIMEOUT", "--yes") == 0
        assert grid.count("train") == {"ready": 1, "dead": 1}
        assert grid.count("evaluate") == {"dead": 1}

    def test_all(self, grid: Grid) -> None:
        bury(grid, "a", "b")
        bury(grid, "c", phase="completed")
        assert run(grid, "redrive", "--all", "--yes") == 0
        assert grid.count("train") == {"ready": 2}
        assert grid.count("completed") == {"ready": 1}

    def test_it_asks(self, grid: Grid, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
        bury(grid, "a", "b")
        monkeypatch.setattr("click.confirm", lambda *args, **options: False)
        assert run(grid, "purge", "--all") == 1
        shown = capsys.readouterr()
        assert "nothing was changed" in shown.err
        assert len(ids_of(grid)) == 2

    def test_what_is_queued_again_stays(self, grid: Grid, capsys: Captured) -> None:
        bury(grid, "a", id="same")
        grid.put({}, id="same")
        assert run(grid, "redrive", "--all", "--yes") == 0
        assert "1 stay: jobs of their ids are queued again" in capsys.readouterr().out

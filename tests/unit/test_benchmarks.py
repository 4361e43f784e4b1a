"""The benchmark's arithmetic: what it calls a ratio, a percentile, a goal that is missed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))  # it is no part of the installed package

from benchmarks import method
from benchmarks.method import Comparison, Curve, Goal, Samples, percentile, rounds
from benchmarks.page import BEGIN, END, write_page
from benchmarks.report import read_results, render, write_results
from benchmarks.rows import ROWS


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "_REST", 0.0)


def test_rounds_interleave_the_sides_and_take_turns_at_being_first() -> None:
    order: list[str] = []

    def side(name: str) -> float:
        order.append(name)
        return float(len(order))

    figures = rounds({"a": lambda: side("a"), "b": lambda: side("b")}, 2)

    assert order == ["b", "a", "a", "b", "b", "a"]  # the first two warm up
    assert figures == {"a": [3.0, 6.0], "b": [4.0, 5.0]}


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 5.0), (0.99, 10.0), (0.9, 9.0), (0.0, 1.0), (1.0, 10.0)]
)
def test_percentile(share: float, expected: float) -> None:
    assert percentile([float(n) for n in range(10, 0, -1)], share) == expected


def test_the_ratio_is_the_median_of_the_rounds_ratios() -> None:
    result = Comparison("w", "a", "jobs/s", [10.0, 30.0, 20.0], [10.0, 10.0, 40.0], Goal(">=", 1))

    assert result.ratios == [1.0, 3.0, 0.5]
    assert result.value == 1.0
    assert result.met


@pytest.mark.parametrize(("bound", "met"), [(">=", True), ("<=", True), (">", False), ("<", False)])
def test_goals_at_their_limit(bound: str, met: bool) -> None:
    assert Goal(bound, 2.0).met(2.0) is met


def test_a_missed_goal_is_said_plainly() -> None:
    table = render([Comparison("w", "a", "jobs/s", [5.0], [10.0], Goal(">=", 0.8))])

    assert "**MISSED**" in table
    assert "0.50 x" in table


def test_each_table_fits_a_screen() -> None:
    text = render(
        [
            Comparison("w", "a", "jobs/s", [5.0], [10.0], Goal(">=", 0.8)),
            Comparison("w", "b", "jobs/s", [5.0], [5.0]),
            Samples("v", "median", "ms", [1.0, 2.0], 0.5),
            Curve("w", "jobs", "jobs/s", "Redis", [(1.0, 2.0), (10.0, 3.0)]),
            Curve("m", "jobs", "MiB", "Redis", [(1.0, 2.0), (10.0, 2.0)]),
            Curve("v", "jobs", "jobs/s", "Redis", [(1.0, 4.0), (10.0, 5.0)]),
        ]
    )

    assert "**w**: 5.00 jobs/s (5.00-5.00), n = 1\n\n| against |" in text  # once, not in each line
    assert (
        "| jobs/s by jobs | 1 | 10 |\n| --- | --- | --- |\n| w, Redis | 2.00 | 3.00 |\n| v," in text
    )
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert max(len(line) for line in page.splitlines() if line.startswith("|")) <= 140


def test_what_was_not_measured_is_neither_reached_nor_missed() -> None:
    table = render([Comparison("w", "a", "jobs/s", [], [], Goal(">=", 0.8), note="not installed")])

    assert "not measured" in table
    assert "MISSED" not in table
    assert "reached" not in table


def test_results_survive_the_file_and_rows_not_measured_again_stay(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    comparison = Comparison("w", "a", "jobs/s", [1.0], [2.0], Goal(">=", 0.8), ["s"], "n")
    samples = Samples("w", "median", "ms", [1.0, 2.0], 0.5, Goal("<", 2.0, "ms"))
    curve = Curve("w", "jobs", "jobs/s", "Redis", [(1.0, 2.0)])

    write_results(path, {"one": [comparison]}, {})
    write_results(path, {"two": [samples, curve]}, {})

    assert read_results(path) == {"one": [comparison], "two": [samples, curve]}


def test_the_page_shows_the_last_figures_between_its_marks(tmp_path: Path) -> None:
    path, page = tmp_path / "results.json", tmp_path / "page.md"
    first, second = list(ROWS)[:2]
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for name, rate in ((second, 20.0), (first, 10.0), (first, 30.0)):
        result = Comparison(name, "raw", "jobs/s", [rate], [10.0], Goal(">=", 1.0))
        write_results(path, {name: [result]}, {"system": f"made for {name}"})
        write_page(page, path)

    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert "1.00 x" not in text
    assert text.index("3.00 x") < text.index("2.00 x")  # in the order of the rows
    assert f"made for {first} / made for {second}" in text


def test_a_page_without_the_marks_is_left_alone(tmp_path: Path) -> None:
    path, page = tmp_path / "results.json", tmp_path / "page.md"
    page.write_text("mine")
    write_results(path, {}, {})

    with pytest.raises(ValueError, match="must have the lines"):
        write_page(page, path)
    assert page.read_text() == "mine"


def test_the_page_of_the_docs_has_the_marks() -> None:
    text = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")

    assert text.count(BEGIN) == text.count(END) == 1


def test_the_suites_modules_that_start_brokers_are_found() -> None:
    pytest.importorskip("redis")
    program = (
        "from benchmarks import brokers;"
        "brokers._find(brokers._FAULT_SUITE); import harness.catalogue;"
        "brokers._find(brokers._INTEGRATION); import cluster"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

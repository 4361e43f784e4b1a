"""The page of the documentation: what was measured last, between two marks that stay."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.report import read_results, render
from benchmarks.rows import ROWS

__all__ = ["BEGIN", "END", "write_page"]

BEGIN = "<!-- figures: written by python -m benchmarks -->"
END = "<!-- end of figures -->"


def write_page(page: Path, results_path: Path) -> None:
    """Put the figures of a file of results in the place of the page's old ones.

    Raises:
        ValueError: the page does not have the two marks.
    """
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} must have the lines {BEGIN!r} and {END!r}")
    rows = read_results(results_path)
    order = [name for name in ROWS if name in rows]
    results = [result for name in order for result in rows[name]]
    figures = f"{_conditions(results_path, order)}\n\n{render(results)}"
    page.write_text(f"{before}{BEGIN}\n\n{figures}\n\n{END}{after}", encoding="utf-8")


def _conditions(results_path: Path, names: list[str]) -> str:
    """On what the rows were measured, and when."""
    rows = json.loads(results_path.read_text(encoding="utf-8"))["rows"]
    found: dict[str, dict[str, None]] = {}
    for name in names:
        measured = {"measured": rows[name]["measured"][:10], **rows[name]["on"]}
        for what, value in measured.items():
            found.setdefault(what, {})[value] = None
    return "\n".join(f"- {what}: {' / '.join(values)}" for what, values in found.items())

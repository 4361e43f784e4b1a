"""The table, the curves and the JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.method import Comparison, Curve, Goal, Result, Samples

__all__ = ["machine", "read_results", "render", "write_results"]

_PACKAGES = (
    *("synmanager", "pika", "redis", "celery", "kombu", "amqp", "dramatiq", "taskiq"),
    *("taskiq-aio-pika", "aio-pika", "taskiq-redis", "uvloop", "rq", "huey"),
)

_KINDS: dict[str, type[Result]] = {kind.__name__: kind for kind in (Comparison, Samples, Curve)}


def machine() -> dict[str, str]:
    """What the figures were measured on and with."""
    packages = []
    for package in _PACKAGES:
        try:
            packages.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return {
        "processor": f"{_processor()}, {os.cpu_count()} cores",
        "system": platform.platform(terse=True),
        "Python": platform.python_version(),
        "packages": ", ".join(packages),
    }


def render(results: Sequence[Result]) -> str:
    """The results as Markdown: a table for each work, then curves, then how others were set up."""
    parts: list[str] = []
    measured = [result for result in results if not isinstance(result, Curve)]
    for work, group in groupby(measured, key=lambda result: result.work):
        parts += _table(work, list(group))
    curves = [result for result in results if isinstance(result, Curve)]
    if curves:
        parts += ["How the cost grows:", ""]
    for axis in dict.fromkeys(map(_axis, curves)):
        x, unit, xs = axis
        parts += [
            f"| {unit} by {x} | {' | '.join(f'{at:,.0f}' for at in xs)} |",
            f"| --- |{' --- |' * len(xs)}",
            *(_points(curve) for curve in curves if _axis(curve) == axis),
            "",
        ]
    settings = _settings(results)
    if settings:
        parts += ["How the others were set up, and what to know of a figure:", "", *settings]
    return "\n".join(parts).rstrip()


def _axis(curve: Curve) -> tuple[str, str, tuple[float, ...]]:
    """What curves of one table share."""
    return curve.x, curve.unit, tuple(x for x, _ in curve.points)


def _points(curve: Curve) -> str:
    figures = " | ".join(_number(y) for _, y in curve.points)
    return f"| {curve.work}, {curve.series} | {figures} |"


def _table(work: str, results: Sequence[Comparison | Samples]) -> list[str]:
    """One work against all that it was compared with; narrow, as each is named once."""
    first = results[0]
    if isinstance(first, Samples):
        about = f"**{work}** (n = {len(first.values)})"
        head = ["", "measured", "goal", ""]
    else:
        ours = next((one.ours for one in results if isinstance(one, Comparison) and one.ours), [])
        about = f"**{work}**"
        if ours:
            about += f": {_spread(ours, first.unit)}, n = {len(ours)}"
        head = ["against", "the other", "ratio", "goal", ""]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head))]
    return [about, "", *lines, *(_line(result) for result in results), ""]


def _line(result: Comparison | Samples) -> str:
    verdict = {True: "reached", False: "**MISSED**", None: ""}[_verdict(result)]
    goal = "" if result.goal is None else str(result.goal)
    if isinstance(result, Samples):
        spread = f"({_number(min(result.values))}-{_number(max(result.values))})"
        cells = [result.against, f"{_number(result.value)} {result.unit} {spread}", goal, verdict]
    elif not result.ours:
        cells = [result.against, "", "", goal, "not measured"]
    else:
        cells = [
            result.against,
            _spread(result.theirs, result.unit),
            _spread(result.ratios, "x", digits=2),
            goal,
            verdict,
        ]
    return f"| {' | '.join(cells)} |"


def _verdict(result: Comparison | Samples) -> bool | None:
    if isinstance(result, Comparison) and not result.ours:
        return None
    return result.met


def _spread(values: Sequence[float], unit: str, digits: int | None = None) -> str:
    low, middle, high = (
        _number(value, digits) for value in (min(values), median(values), max(values))
    )
    return f"{middle} {unit} ({low}-{high})"


def _number(value: float, digits: int | None = None) -> str:
    if digits is None:
        digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 3
    return f"{value:,.{digits}f}"


def _settings(results: Iterable[Result]) -> list[str]:
    """A line for each way in which something was set up."""
    lines: dict[str, dict[str, None]] = {}
    for result in results:
        if isinstance(result, Curve):
            continue
        said = "; ".join([*result.settings, *([result.note] if result.note else [])])
        if said:
            lines.setdefault(said, {})[f"{result.work} / {result.against}"] = None
    return [f"- {', '.join(names)}: {said}" for said, names in lines.items()]


def write_results(
    path: Path, measured: Mapping[str, Sequence[Result]], about: Mapping[str, str]
) -> None:
    """Write rows to a file; rows that it holds already, and that were not measured, stay."""
    document: dict[str, Any] = {"rows": {}}
    if path.exists():
        document = json.loads(path.read_text(encoding="utf-8"))
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    for name, results in measured.items():
        written = [_as_json(result) for result in results]
        document["rows"][name] = {"measured": now, "on": dict(about), "results": written}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_results(path: Path) -> dict[str, list[Result]]:
    """The results of a file, by row."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {name: [_from_json(one) for one in row["results"]] for name, row in rows.items()}


def _as_json(result: Result) -> dict[str, Any]:
    written = {"kind": type(result).__name__, **asdict(result)}
    if isinstance(result, Samples):
        # A thousand figures say no more than a hundred percentiles, and are no fun to read.
        written["values"] = [round(value, 4) for value in _thinned(result.values)]
    elif isinstance(result, Comparison):
        for side in ("ours", "theirs"):
            written[side] = [round(value, 3) for value in written[side]]
        if result.ours:
            written["ratio"] = round(result.value, 4)
    if not isinstance(result, Curve):
        written["reached"] = _verdict(result)
    return written


def _thinned(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    if len(ordered) <= 201:
        return ordered
    return [ordered[round(step * (len(ordered) - 1) / 200)] for step in range(201)]


def _from_json(written: Mapping[str, Any]) -> Result:
    fields = {key: value for key, value in written.items() if key not in _DERIVED}
    if fields.get("goal"):
        fields["goal"] = Goal(**fields["goal"])
    if written["kind"] == "Curve":
        fields["points"] = [(x, y) for x, y in fields["points"]]
    return _KINDS[written["kind"]](**fields)


_DERIVED = ("kind", "ratio", "reached")


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"

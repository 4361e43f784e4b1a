"""The chart that the README shows: the rows' ratios, the latencies and the curves, as an SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from benchmarks.method import Comparison, Curve, Result, Samples, percentile

__all__ = ["draw"]

_OURS, _GOAL, _MISSED = "#1f6f8b", "#d1495b", "#e6a23c"
_SERIES = {"RabbitMQ": "#e07a1f", "Redis": "#b5332e", "SQLite": "#2f6f9f", "memory": "#5a7d3a"}


def draw(rows: Mapping[str, Sequence[Result]], path: Path) -> None:
    """Draw the results, by row, to a file."""
    results = [result for part in rows.values() for result in part]
    # The same figures give the same file, and letters stay letters.
    pyplot.rcParams.update({"svg.hashsalt": "synmanager", "svg.fonttype": "none"})
    pyplot.rcParams.update({"font.size": 8, "font.family": "sans-serif"})
    bars = [result for result in results if isinstance(result, Comparison) and _is_rate(result)]
    height = 0.24 * len(bars) + 1
    figure = pyplot.figure(figsize=(10, height + 5.6), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(height, 5.6))
    top, bottom = parts
    _draw_ratios(top.subplots(), bars)
    panels = bottom.subplots(2, 2).flatten()
    starts = [one for name, part in rows.items() if "latency" in name for one in part]
    _draw_latencies(panels[0], [one for one in starts if isinstance(one, Samples)])
    for axes, x in zip(panels[1:], ("jobs", "consumers", "bytes of a job"), strict=True):
        _draw_curves(axes, x, [one for one in results if isinstance(one, Curve) and one.x == x])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def _is_rate(result: Comparison) -> bool:
    return result.unit.endswith("/s") and bool(result.ours)


def _draw_ratios(axes: Axes, bars: Sequence[Comparison]) -> None:
    places = range(len(bars))
    middles = [bar.value for bar in bars]
    spread: Any = [
        [middle - min(bar.ratios) for bar, middle in zip(bars, middles, strict=True)],
        [max(bar.ratios) - middle for bar, middle in zip(bars, middles, strict=True)],
    ]
    colours = [_MISSED if bar.met is False else _OURS for bar in bars]
    # From one outwards: to the right is faster than the other, to the left slower.
    widths = [middle - 1 for middle in middles]
    axes.barh(places, widths, left=1, color=colours)
    axes.errorbar(middles, places, xerr=spread, fmt="none", ecolor="#444", elinewidth=0.8)
    axes.axvline(1, color="#444", lw=0.8)
    for place, bar in zip(places, bars, strict=True):
        if bar.goal is not None:
            axes.plot([bar.goal.limit] * 2, [place - 0.4, place + 0.4], color=_GOAL, lw=1.6)
        right = max(bar.ratios) * 1.06
        axes.text(right, place, f"{bar.value:.2f} x", va="center", fontsize=7)
    axes.set_yticks(places, [f"{bar.work}  /  {bar.against}" for bar in bars], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}x"))
    axes.margins(y=0.01)
    axes.set_title(
        "synmanager's rate in multiples of the other's: median, least and most of the rounds; "
        "the red mark is the goal",
        loc="right",
        fontsize=8,
    )
    _tidy(axes)


def _draw_latencies(axes: Axes, samples: Sequence[Samples]) -> None:
    """Median and 99th percentile of each, one line per kind of worker."""
    found: dict[str, list[float]] = {}
    for one in samples:
        name = one.work.rpartition(", ")[2]
        found[f"0.1.0's loop, {name}" if "0.1.0" in one.work else name] = one.values
    for place, (name, values) in enumerate(found.items()):
        ends = [percentile(values, 0.5), percentile(values, 0.99)]
        axes.plot(ends, [place] * 2, "-o", color=_SERIES.get(name, "#777"), ms=4)
        axes.annotate(
            " - ".join(f"{end:.2g} ms" if end < 100 else f"{end / 1000:.1f} s" for end in ends),
            (ends[0], place),
            xytext=(0, 5),
            textcoords="offset points",
            fontsize=7,
        )
    axes.set_yticks(range(len(found)), list(found))
    axes.set_ylim(len(found) - 0.5, -0.7)
    axes.set_xscale("log")
    axes.set_xlabel("ms from submit to the start of the handler: median, 99th percentile")
    axes.set_title("An idle Worker starts a job")
    _tidy(axes)


def _draw_curves(axes: Axes, x: str, curves: Sequence[Curve]) -> None:
    for curve in curves:
        style = "-o" if curve.work == "listen_message" else "--s"
        xs, ys = zip(*curve.points, strict=True)
        label = f"{curve.work}, {curve.series}"
        axes.plot(xs, ys, style, label=label, color=_SERIES.get(curve.series), ms=3, lw=1.2)
    axes.set_xscale("log", base=2 if x == "consumers" else 10)
    if x == "consumers":
        axes.set_ylim(0, 1.1 * max((y for curve in curves for _, y in curve.points), default=1))
    else:
        axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_title(f"jobs per second by {x}")
    if curves:
        axes.legend(fontsize=6, frameon=False)
    _tidy(axes)


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, axis="both" if axes.get_yscale() == "log" else "x", lw=0.3, color="#ccc")
    axes.set_axisbelow(True)

"""What it takes to look at a grid of a hundred thousand jobs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.bench import Bench, Row
from benchmarks.method import Goal, Result, Samples

_JOBS = 100_000


def _run(bench: Bench) -> Iterator[Result]:
    jobs = bench.count(_JOBS)
    times: list[float] = []
    peaks: list[float] = []
    for _ in range(bench.fewer(3)):
        program = [sys.executable, "-m", "benchmarks.programs.dashboard", str(jobs)]
        done = subprocess.run(program, stdout=subprocess.PIPE, check=True, text=True)
        found = json.loads(done.stdout)
        times += [1000 * seconds for seconds in (found["first"], *found["pages"].values())]
        peaks.append(found["peak"])
    setting = f"{jobs:,} jobs on SQLite, of which a fiftieth has run; the server's process alone"
    yield Samples(
        "a page of the dashboard", "its first request included", "ms", times, 1.0,
        Goal("<=", 1000, "ms"), [setting],
    )  # fmt: skip
    yield Samples(
        "memory of the dashboard", "its peak", "MiB", peaks, 1.0, Goal("<=", 200, "MiB"), [setting]
    )


ROWS = (Row("dashboard", "the dashboard over 100,000 jobs", _run),)

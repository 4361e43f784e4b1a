"""What every worker's handler calls: notes when the first and the last job began.

Starting the worker is thus not part of the figure, nor is the acknowledgement of the last job;
the same for all.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from time import perf_counter

__all__ = ["tick"]

_expected = int(os.environ.get("BENCHMARK_JOBS", "0"))
_count = 0
_first = 0.0


def tick() -> None:
    """Count a job; after the last that is expected, write the report."""
    global _count, _first
    if _count == 0:
        _first = perf_counter()
    _count += 1
    if _count == _expected:
        seconds = perf_counter() - _first
        report = Path(os.environ["BENCHMARK_REPORT"])
        unfinished = report.with_suffix(".unfinished")
        unfinished.write_text(json.dumps({"jobs": _count, "seconds": seconds}))
        unfinished.rename(report)

"""What importing the package costs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.bench import Bench, Row
from benchmarks.method import Comparison, Goal, Result, rounds

_DRIVERS = ("pika", "redis", "kombu", "amqp")

_PROGRAM = """
import sys
from time import perf_counter
began = perf_counter()
{statement}
seconds = perf_counter() - began
import json
print(json.dumps({{"seconds": seconds, "drivers": [d for d in {drivers} if d in sys.modules]}}))
"""


def _import(statement: str) -> Any:
    """What a fresh interpreter says after executing the statement."""
    program = _PROGRAM.format(statement=statement, drivers=_DRIVERS)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, text=True
    )
    return json.loads(done.stdout)


def _milliseconds(statement: str) -> float:
    return float(_import(statement)["seconds"]) * 1000


def _compare(ours: str, theirs: str, goal: Goal | None, bench: Bench) -> Comparison:
    note = ""
    times: dict[str, list[float]] = {ours: [], theirs: []}
    if importlib.util.find_spec("celery") is None:
        note = "not measured: celery is not installed"
    else:
        sides = {statement: partial(_milliseconds, statement) for statement in times}
        times = rounds(sides, max(bench.repeats, 10))
        drivers = _import(ours)["drivers"]
        note = f"drivers in sys.modules afterwards: {', '.join(drivers) or 'none'}"
    setting = "a fresh interpreter each time; the statement alone is timed"
    return Comparison(ours, theirs, "ms", times[ours], times[theirs], goal, [setting], note)


def _run(bench: Bench) -> Iterator[Result]:
    yield _compare("import synmanager", "import celery", Goal("<=", 0.2), bench)
    yield _compare("from synmanager import Worker", "from celery import Celery", None, bench)


ROWS = (Row("import", "import synmanager against import celery", _run),)

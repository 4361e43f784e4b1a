"""An observer that reads a whole journal, and says in what time and in how much memory.

python -m benchmarks.programs.observe URL
"""

from __future__ import annotations

import sys
from time import perf_counter

from benchmarks.programs.drain import peak_memory
from benchmarks.programs.processes import say
from synmanager.jobs import Jobs


def run(url: str) -> None:
    with Jobs(url=url) as jobs:
        began = perf_counter()
        jobs.recent()
        say({"seconds": perf_counter() - began, "peak": peak_memory()})


if __name__ == "__main__":
    run(sys.argv[1])

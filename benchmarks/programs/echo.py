"""A Worker over three phases that says how long each job took to reach its handler.

python -m benchmarks.programs.echo URL
"""

from __future__ import annotations

import sys
from time import perf_counter
from typing import Any

from benchmarks.programs.processes import say
from synmanager import Worker


def handle(sent: float, **kwargs: Any) -> None:
    # The same clock in every process of a machine.
    say(perf_counter() - sent)


if __name__ == "__main__":
    Worker({"preprocess": handle, "train": handle, "evaluate": handle}, url=sys.argv[1]).run()

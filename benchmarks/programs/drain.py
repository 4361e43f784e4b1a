"""A consumer that drains the preprocess queue, and says when, how many, and in how much memory.

    python -m benchmarks.programs.drain URL IDLE_SECONDS [JOBS]

It connects, says so, waits for a word, and ends after so many jobs or idle seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.programs.processes import say, wait_for_word
from synmanager.preprocess import PreprocessConsumerOperator


class Tally:
    """A callback that notes when it was first and last called."""

    def __init__(self) -> None:
        self.first = self.last = 0.0
        self.count = 0

    def __call__(self, kwargs: dict[str, Any], host: str) -> None:
        self.last = perf_counter()
        if not self.count:
            self.first = self.last
        self.count += 1


def peak_memory() -> int:
    """The most memory that this process ever held, in bytes (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell a process's peak of memory")


def run(url: str, idle: float, jobs: int | None) -> None:
    tally = Tally()
    with PreprocessConsumerOperator(url=url) as consumer:
        say("connected")
        wait_for_word()
        consumer.listen_message(process_callback=tally, idle_timeout=idle, max_jobs=jobs)
    say(
        {
            "first": tally.first,
            "last": tally.last,
            "jobs": tally.count,
            "peak": peak_memory(),
        }
    )


if __name__ == "__main__":
    run(sys.argv[1], float(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else None)

"""A Worker that notes what it runs: in a thread of the test, or as a program of its own.

    python noting.py NAME JOURNAL [HOLD_AT]

Its moments are of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from synmanager import Worker
from synmanager.phases import WORK_PHASES

__all__ = ["Event", "Write", "make_worker"]

#: {"worker": name, "event": "ready" | "started" | "finished" | "holds", "key": job, "at": moment}
Event = dict[str, Any]
Write = Callable[[Event], None]


def make_worker(
    name: str,
    write: Write,
    *,
    url: str | None = None,
    hold_at: int | None = None,
    hold: Callable[[], object] = lambda: None,
) -> Worker:
    """A Worker for jobs of the form {"key": ..., "seconds": ...}.

    Args:
        hold_at: the number of the job that it calls ``hold`` in, and does not come back from.
    """
    started = 0

    def note(event: str, **fields: Any) -> None:
        write({"worker": name, "event": event, "at": time.monotonic(), **fields})

    def handle(key: Any, seconds: float) -> dict[str, Any]:
        nonlocal started
        note("started", key=key)
        started += 1
        if started == hold_at:
            note("holds", key=key)
            hold()
        time.sleep(seconds)
        note("finished", key=key)
        return {"key": key}

    worker = Worker(dict.fromkeys(WORK_PHASES, handle), url=url)
    note("ready")  # all but the connection, which it makes when it runs
    return worker


def main(name: str, journal: str, hold_at: str = "0") -> None:
    file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(event: Event) -> None:
        os.write(file, json.dumps(event).encode() + b"\n")

    for_ever = threading.Event().wait
    make_worker(name, write, hold_at=int(hold_at), hold=for_ever).run()


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What happened, written down by the process to which it happened.

One file per process, one JSON object per line, each a single ``write`` to a file opened for
appending: what a process had noted before ``kill -9`` is there, whole.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

#: One thing that happened. Always there: ``event``, ``at`` (monotonic seconds, the same clock in
#: every process of a machine), ``who`` (the process's name in the test) and ``pid``.
Event = dict[str, Any]


class Journal:
    """Appends to one process's file.

    Args:
        directory: shared by all processes of a test.
        who: names the file.
    """

    def __init__(self, directory: Path, who: str) -> None:
        self._who = who
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._file = os.open(directory / f"{who}.jsonl", flags, 0o644)

    def write(self, event: str, **fields: Any) -> None:
        fields.update(event=event, at=time.monotonic(), who=self._who, pid=os.getpid())
        os.write(self._file, json.dumps(fields, default=str).encode() + b"\n")


class Journals:
    """Reads every process's file, again and again, each line once.

    Attributes:
        events: all that was read, in the order of reading: that of time within a process only.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[Path, int] = {}
        self.events: list[Event] = []

    def read(self) -> list[Event]:
        """Return what is new."""
        new: list[Event] = []
        for path in self._directory.glob("*.jsonl"):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                lines = file.read()
            whole = lines.rfind(b"\n") + 1
            self._read[path] = self._read.get(path, 0) + whole
            new += [json.loads(line) for line in lines[:whole].splitlines()]
        self.events += new
        return new

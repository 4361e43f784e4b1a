"""Talking to the programs: lines of JSON over their standard streams."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["Program", "say", "wait_for_word"]


class Program:
    """A program of this package in a fresh interpreter. A context manager that ends it."""

    def __init__(self, module: str, *arguments: str) -> None:
        self._name = f"benchmarks.programs.{module}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", self._name, *arguments],
            cwd=Path(__file__).parent.parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def hear(self) -> Any:
        """The next thing that it says.

        Raises:
            RuntimeError: it ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"it ended early: {self._name}")
        return json.loads(line)

    @property
    def voice(self) -> int:
        """The descriptor that can be read when it has said something, if all before was heard."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def tell(self) -> None:
        """Give it the word for which it waits."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"go\n")
        self._process.stdin.flush()


def say(thing: Any) -> None:
    print(json.dumps(thing), flush=True)


def wait_for_word() -> None:
    sys.stdin.readline()

"""The workers, producers and Directors of a test, as real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from harness.checker import History
from harness.journal import Event, Journal, Journals
from harness.waiting import wait_until

_FAULTS = Path(__file__).resolve().parent.parent


class Process:
    """One program of ``programs/``, running."""

    def __init__(
        self, who: str, popen: subprocess.Popen[bytes], journal: Journal, output: Path
    ) -> None:
        self.who = who
        self.pid = popen.pid
        self._popen = popen
        self._journal = journal
        self._output = output

    @property
    def status(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._popen.poll()

    def kill(self) -> None:
        """``kill -9``, and wait for the end."""
        self._popen.kill()
        self._popen.wait(30)
        self._journal.write("killed", victim=self.pid)

    def freeze(self) -> None:
        self._popen.send_signal(signal.SIGSTOP)
        self._journal.write("frozen", victim=self.pid)

    def thaw(self) -> None:
        self._journal.write("thawed", victim=self.pid)
        self._popen.send_signal(signal.SIGCONT)

    def signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def wait(self, within: float) -> int:
        """Wait for the end; return the exit status, negative for a signal.

        Raises:
            AssertionError: it still runs.
        """
        try:
            return self._popen.wait(within)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.who} still runs after {within:g} s") from None

    @property
    def output(self) -> str:
        """What it printed and logged."""
        return self._output.read_text(errors="replace")


class Processes:
    """Starts programs, reads what they noted, and leaves none behind.

    Args:
        directory: of the test; journals and outputs go here.
        url: of the broker, for all that are not told otherwise.
    """

    def __init__(self, directory: Path, url: str) -> None:
        self.directory = directory
        self.journal = Journal(directory, "test")
        self.url = url
        self._all: list[Process] = []
        self._journals = Journals(directory)
        self._by_kind: defaultdict[str, list[Event]] = defaultdict(list)

    def worker(self, who: str, **config: Any) -> Process:
        """A consumer; see ``programs/worker.py`` for the config."""
        return self.start("worker", who, **config)

    def producer(self, who: str, **config: Any) -> Process:
        return self.start("producer", who, **config)

    def archiver(self, who: str, **config: Any) -> Process:
        return self.start("archiver", who, **config)

    def start(
        self,
        program: str,
        who: str,
        *,
        url: str | None = None,
        env: dict[str, str] | None = None,
        **config: Any,
    ) -> Process:
        """Start ``programs/<program>.py``.

        Args:
            url: the broker's, if not the test's; a proxy's, for instance.
            env: besides; ``SYNMANAGER_...`` among them.
            config: JSON values, for the program.
        """
        environ = {k: v for k, v in os.environ.items() if not k.startswith("SYNMANAGER_")}
        paths = [str(_FAULTS), *filter(None, [environ.get("PYTHONPATH")])]
        environ["PYTHONPATH"] = os.pathsep.join(paths)
        # The broker's password goes where no process list shows it.
        environ["SYNMANAGER_BACKEND"] = url or self.url
        environ.update(env or {})
        config.update(who=who, journals=str(self.directory))
        output = self.directory / f"{who}.out"
        with output.open("ab") as file:
            popen = subprocess.Popen(
                [sys.executable, str(_FAULTS / "programs" / f"{program}.py"), json.dumps(config)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environ,
            )
        process = Process(who, popen, self.journal, output)
        self._all.append(process)
        return process

    def history(self) -> History:
        self._look()
        return History(self._journals.events)

    def await_event(self, event: str, within: float, count: int = 1, **fields: Any) -> float:
        """Wait for the count-th event of a kind with these fields; return when it was."""

        def times() -> list[float]:
            self._look()
            return sorted(
                float(e["at"])
                for e in self._by_kind[event]
                if all(e.get(name) == value for name, value in fields.items())
            )[count - 1 :]

        return wait_until(times, within, f"{count} x {event} {fields or ''}")[0]

    def await_done(self, keys: set[str], within: float) -> None:
        """Wait until these jobs have run to their end."""
        deadline = time.monotonic() + within
        missing = keys
        while True:
            self._look()
            missing = missing - {str(event["key"]) for event in self._by_kind["finished"]}
            if not missing:
                return
            if time.monotonic() > deadline:
                some = ", ".join(sorted(missing)[:5])
                raise AssertionError(f"{len(missing)} jobs not done in {within:g} s: {some}")
            time.sleep(0.05)

    def count(self, event: str) -> int:
        """How many events of a kind there are by now."""
        self._look()
        return len(self._by_kind[event])

    def _look(self) -> None:
        for event in self._journals.read():
            self._by_kind[event["event"]].append(event)

    def end(self) -> None:
        """Kill what still runs."""
        for process in self._all:
            if process.status is None:
                process.kill()
            process.wait(30)

"""What the suite's programs have in common: a config, a journal, and the log."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

from harness.journal import Journal


def _hold_the_log() -> None:
    for handler in logging.getLogger().handlers:
        handler.acquire()


def _go_on_logging() -> None:
    for handler in logging.getLogger().handlers:
        handler.release()


# A child that is forked while another thread writes a line could never write one itself: logging
# makes its own locks anew there, and not the stream's. Registered first, this is done last.
os.register_at_fork(before=_hold_the_log, after_in_parent=_go_on_logging)

from synmanager import current_job  # noqa: E402


def begin() -> tuple[dict[str, Any], Journal]:
    """Read the config from the command line, open the journal and start logging.

    A config's "host" is the address that the program has for whom it connects to.
    """
    config = json.loads(sys.argv[1])
    if "host" in config:
        _live_on(config["host"])
    journal = Journal(Path(config["journals"]), config["who"])
    # Everything that anyone logs, drivers too, goes to the output that is searched for the
    # password; what this project warns of goes to the journal.
    logging.basicConfig(
        level=config.get("log", "DEBUG"),
        format="%(asctime)s %(threadName)s %(name)s %(levelname)s %(message)s",
    )
    logging.getLogger("synmanager").addHandler(_ToJournal(journal))
    return config, journal


def _live_on(host: str) -> None:
    connect = socket.socket.connect

    def connected(self: socket.socket, address: Any) -> None:
        if self.family == socket.AF_INET:
            self.bind((host, 0))
        connect(self, address)

    socket.socket.connect = connected  # type: ignore[assignment, method-assign]


def die(journal: Journal) -> NoReturn:
    """End like a process that the kernel kills: no ``finally``, no flush, no goodbye."""
    journal.write("killed", victim=os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("not reached")


def run_noted(journal: Journal, key: str) -> dict[str, Any]:
    """Note that the callback started; return the fields that say which run this is."""
    job = current_job()
    assert job is not None
    fields = {
        "key": key,
        "job_id": job.id,
        "attempt": job.attempt,
        "phase": job.phase,
        "thread": threading.get_ident(),
    }
    journal.write("started", **fields)
    return fields


class _ToJournal(logging.Handler):
    def __init__(self, journal: Journal) -> None:
        super().__init__(logging.WARNING)
        self._journal = journal

    def emit(self, record: logging.LogRecord) -> None:
        self._journal.write("log", text=record.getMessage())

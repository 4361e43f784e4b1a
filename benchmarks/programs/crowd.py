"""Idle Workers over three phases, a thread each, one of which starts each job that comes.

python -m benchmarks.programs.crowd URL WORKERS

Says "ready" once all of them wait; then how long each job took to reach its handler; and for each
word that it gets, the seconds of processor that it has used so far.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from time import perf_counter
from typing import Any

from benchmarks.programs.processes import say, wait_for_word
from synmanager import Worker
from synmanager.phases import WORK_PHASES


class Waiting(logging.Handler):
    """Counts the workers that have looked and found nothing."""

    def __init__(self, workers: int) -> None:
        super().__init__(logging.INFO)
        self._left = threading.Semaphore(0)
        self._workers = workers

    def emit(self, record: logging.LogRecord) -> None:
        if str(record.msg).startswith("no job of"):
            self._left.release()

    def wait(self) -> None:
        for _ in range(self._workers):
            self._left.acquire()


def handle(sent: float, **kwargs: Any) -> None:
    # The same clock in every process of a machine.
    say(perf_counter() - sent)


def main(url: str, workers: int) -> None:
    waiting = Waiting(workers)
    logger = logging.getLogger("synmanager.engine.runner")
    logger.setLevel(logging.INFO)
    logger.addHandler(waiting)
    logger.propagate = False
    logging.getLogger("synmanager").addHandler(logging.NullHandler())  # a thousand say the same
    handlers = dict.fromkeys(WORK_PHASES, handle)
    for _ in range(workers):
        threading.Thread(target=Worker(handlers, url=url).run, daemon=True).start()
    waiting.wait()
    say("ready")
    while True:
        wait_for_word()
        say(time.process_time())


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

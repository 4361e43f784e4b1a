"""Row: SIGTERM, SIGINT mid-job. Finishes or requeues, as chosen; exit in bounded time."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest
from harness.director import Director
from harness.processes import Processes
from harness.waiting import wait_until

#: Seconds within which a process has left that has nothing to wait for; the long jobs take 60.
SOON = 20

by_both = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
in_both = pytest.mark.parametrize("listen", [False, True], ids=["Worker", "listen_message"])


@by_both
@in_both
def test_signal_mid_job_lets_it_finish(
    number: int,
    listen: bool,
    director: Director,
    processes: Processes,
    figures: Callable[[str], None],
) -> None:
    keys = director.submit({"key": f"job-{n}", "work": 0 if n else 3} for n in range(3))
    worker = processes.worker("worker", listen=listen)
    processes.await_event("started", 30)
    worker.signal(number)
    began = time.monotonic()
    assert worker.wait(3 + SOON) == 0
    seconds = time.monotonic() - began
    history = processes.history()
    assert [run.key for run in history.runs] == ["job-0"]
    assert history.done == {"job-0"}
    # What came to it meanwhile goes back with its connection.
    wait_until(lambda: director.counts().ready == 2, 30, "the others are there")
    processes.worker("next", burst=True).wait(30)
    history = processes.history()
    history.check_nothing_lost()
    assert history.extra_runs == 0
    assert history.done == keys
    figures(f"left after {seconds:.2f} s, with the job of 3 s done")


@by_both
@in_both
def test_signal_mid_job_gives_it_back_after_the_grace(
    number: int,
    listen: bool,
    director: Director,
    processes: Processes,
    figures: Callable[[str], None],
) -> None:
    director.submit([{"key": "long", "work": 60}])
    worker = processes.worker("worker", listen=listen, env={"SYNMANAGER_GRACE": "0.5"})
    processes.await_event("started", 30)
    worker.signal(number)
    began = time.monotonic()
    worker.wait(0.5 + SOON)
    seconds = time.monotonic() - began
    processes.worker("next")
    processes.await_event("started", 30, who="next")
    history = processes.history()
    assert [run.attempt for run in history.runs] == [1, 1], "giving back is no failed attempt"
    figures(f"left after {seconds:.2f} s of a job of 60 s; the job was free at once")


@in_both
def test_a_second_signal_leaves_at_once(
    listen: bool, director: Director, processes: Processes, figures: Callable[[str], None]
) -> None:
    director.submit([{"key": "long", "work": 60}])
    worker = processes.worker("worker", listen=listen)
    processes.await_event("started", 30)
    worker.signal(signal.SIGTERM)
    processes.await_event("asked to leave", 30)
    worker.signal(signal.SIGTERM)
    began = time.monotonic()
    assert worker.wait(SOON) == 128 + signal.SIGTERM
    seconds = time.monotonic() - began
    processes.worker("next")
    processes.await_event("started", 30, who="next")
    figures(f"left after {seconds:.2f} s")


@in_both
def test_signal_when_idle(
    listen: bool, director: Director, processes: Processes, figures: Callable[[str], None]
) -> None:
    director.submit([{"key": "first"}])
    worker = processes.worker("worker", listen=listen)
    processes.await_event("acked", 30)
    worker.signal(signal.SIGTERM)
    began = time.monotonic()
    assert worker.wait(SOON) == 0
    figures(f"left after {time.monotonic() - began:.2f} s")

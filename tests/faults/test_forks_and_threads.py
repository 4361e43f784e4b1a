"""Rows: fork after connect; 16 threads on one operator. Works, or an immediate clear error."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest
from harness.processes import Processes


@pytest.mark.parametrize("use", ["producer", "consumer"])
def test_fork_after_connect(use: str, processes: Processes) -> None:
    """The child reconnects, and the parent's connection is not harmed."""
    process = processes.start("forker", "forker", use=use)
    assert process.wait(40) == 0, process.output
    history = processes.history()
    assert [e["status"] for e in history.events if e["event"] == "child"] in ([0, 0], [0])
    assert not history.said("lost the broker"), "nobody's connection broke"
    if use == "producer":
        assert history.confirmed == ["before", "child", "after", "after disconnect"]
        assert processes.worker("worker", burst=True).wait(30) == 0
        history = processes.history()
    history.check_nothing_lost()
    assert history.extra_runs == 0
    if use == "consumer":
        assert len({run.pid for run in history.runs}) == 2, "both sides ran jobs"


def test_multiprocessing_target(processes: Processes) -> None:
    """``multiprocessing.Process(target=consumer.listen_message, args=(f,))``."""
    process = processes.start("forker", "forker", use="multiprocessing")
    processes.await_event("submitted", 30)
    (child,) = [e["child"] for e in processes.history().events if e["event"] == "submitted"]
    processes.await_done({str(number) for number in range(6)}, 30)
    os.kill(child, signal.SIGTERM)
    assert process.wait(30) == 0, process.output
    history = processes.history()
    history.check_nothing_lost()
    assert history.extra_runs == 0
    assert {run.pid for run in history.runs} == {child}
    assert [e["status"] for e in history.events if e["event"] == "child"] == [0]
    assert [e["ready"] for e in history.events if e["event"] == "counted"] == [0]


def test_16_threads_on_one_operator(processes: Processes, figures: Callable[[str], None]) -> None:
    began = time.monotonic()
    process = processes.start("sharer", "sharer", threads=16, jobs=20, log="INFO")
    assert process.wait(60) == 0, process.output
    seconds = time.monotonic() - began
    history = processes.history()
    assert not history.count("error")
    assert len(history.confirmed) == len(history.runs) == 320
    history.check_nothing_lost()
    assert history.extra_runs == 0
    figures(f"320 jobs submitted and run by 16 threads of one process in {seconds:.1f} s")

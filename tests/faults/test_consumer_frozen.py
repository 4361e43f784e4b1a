"""Row: consumer frozen past its lease. Checks L D; its late ack is LeaseLost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from harness.director import Director
from harness.processes import Processes
from harness.waiting import wait_until

# Without the journal: frozen in the middle of an entry, a worker would keep SQLite's file locked.
ENV = {"SYNMANAGER_LEASE": "1", "SYNMANAGER_HEARTBEAT": "1", "SYNMANAGER_JOURNAL": "off"}


@pytest.mark.limit(60)
def test_consumer_frozen_past_its_lease(
    director: Director, processes: Processes, figures: Callable[[str], None]
) -> None:
    keys = director.submit([{"key": "long", "work": 5}])
    frozen = processes.worker("frozen", env=ENV)
    processes.await_event("started", 30, who="frozen")
    frozen.freeze()  # before all else: the job comes to an end
    began = processes.await_event("frozen", 30)
    processes.worker("heir", env=ENV)
    taken = processes.await_event("started", 30, who="heir")
    processes.await_event("acked", 30, count=1)
    frozen.thaw()
    # It ends its run, and learns that the job is no longer its own.
    processes.await_event("finished", 30, who="frozen")
    wait_until(
        lambda: any(
            processes.history().said(text)
            for text in ("no longer ours to settle", "lost its lease")
        ),
        10,
        "it says so",
    )
    director.submit([{"key": "next"}])
    processes.await_done({"next"}, 30)

    history = processes.history()
    history.check_nothing_lost()
    history.check_extra_runs()
    history.check_no_overlap()
    assert history.extra_runs == 1
    (job_id,) = {
        e["job_id"] for e in history.events if e["event"] == "started" if e["key"] == "long"
    }
    acked = [e["who"] for e in history.events if e["event"] == "acked" and e["job_id"] == job_id]
    assert acked == ["heir"]
    by = [result["by"] for result in director.results() if result["key"] in keys]
    assert by == ["heir"], "the late result is not published"
    figures(f"given to another {taken - began:.2f} s after the freeze; one result")

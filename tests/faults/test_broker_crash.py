"""Row: broker crashes and restarts, mid-publish and mid-consume. Checks L D T."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from harness.brokers import Broker
from harness.director import Director
from harness.processes import Processes
from harness.waiting import wait_until

pytestmark = pytest.mark.server


@pytest.mark.limit(150)
def test_broker_crashes_mid_publish_and_mid_consume(
    broker: Broker,
    director: Director,
    processes: Processes,
    figures: Callable[[str], None],
) -> None:
    env = {"SYNMANAGER_LEASE": "2"}
    count = 300
    gate = processes.directory / "gate"
    # The last ones are for when it is back, however long it takes until it is killed.
    rest = {"gate": {"number": count - 40, "file": str(gate)}, "env": env}
    processes.producer("single", keys=[0, count], pace=0.02, **rest)
    processes.producer("batches", keys=[0, count], batch=20, pace=0.1, **rest)
    for number in range(2):
        processes.worker(f"worker-{number}", env=env)
    processes.archiver("archive", env=env)
    for who in ("single", "batches"):
        processes.await_event("ready", 30, who=who)
    processes.await_event("finished", 30, count=30)

    broker.launcher.kill()
    down = time.monotonic()
    broker.start()
    back = time.monotonic()
    gate.touch()

    processes.await_event("left", 60, who="single")
    processes.await_event("left", 60, who="batches")
    keys = {f"{who}-{n}" for who in ("single", "batches") for n in range(count)}
    processes.await_done(keys, 60)
    history = processes.history()
    assert history.count("confirmed") == 2 * count, "every publish was repeated until it counted"
    history.check_nothing_lost()
    history.check_extra_runs()
    resumed = history.check_resumed(since=back, within=10)
    published = min(
        event["at"]
        for event in history.events
        if event["event"] == "confirmed"
        if event["at"] > back
    )
    assert published - back <= 10
    wait_until(
        lambda: keys == {e["key"] for e in processes.history().events if e["event"] == "archived"},
        30,
        "every result arrives, some of them twice",
    )
    figures(
        f"down {back - down:.1f} s; consuming again after {resumed:.2f} s, publishing after "
        f"{published - back:.2f} s; {history.extra_runs} extra runs, "
        f"{history.redeliveries} redeliveries, {history.repeated_publishes} repeated publishes"
    )

"""Reconnection: 10,000 messages, many publishers, broker restarts in the middle."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest
from harness.brokers import Broker
from harness.director import Director
from harness.processes import Processes
from harness.waiting import wait_until

pytestmark = pytest.mark.server

PUBLISHERS = 4  # processes of
THREADS = 8


@pytest.mark.limit(240)
def test_reconnect(
    is_long: bool,
    rng: random.Random,
    broker: Broker,
    director: Director,
    processes: Processes,
    figures: Callable[[str], None],
) -> None:
    count, restarts = (100_000, 10) if is_long else (10_000, 2)
    env = {"SYNMANAGER_LEASE": "2", "SYNMANAGER_MAX_ATTEMPTS": "1000"}
    began = time.monotonic()
    for number in range(3):
        processes.worker(f"worker-{number}", log="WARNING", results=False, env=env)
    share = count // PUBLISHERS
    for number in range(PUBLISHERS):
        processes.producer(
            f"p{number}", keys=[0, share], threads=THREADS, pace=0.02, log="WARNING", env=env
        )
    for number in range(PUBLISHERS):
        processes.await_event("ready", 60, who=f"p{number}")
    backs = []
    for restart in range(restarts):
        reached = (restart + 1) * count // (restarts + 2)
        processes.await_event("confirmed", 600, count=reached)
        if restart % 2:
            broker.launcher.stop()
            broker.start()
        else:
            broker.restart_after_kill()
        backs.append(time.monotonic())
    for number in range(PUBLISHERS):
        processes.await_event("left", 600, who=f"p{number}")
    keys = {f"p{number}-{n}" for number in range(PUBLISHERS) for n in range(share)}
    processes.await_done(keys, 600)
    seconds = time.monotonic() - began

    history = processes.history()
    assert set(history.confirmed) == keys
    assert history.count("refused") == 0
    history.check_nothing_lost()
    history.check_extra_runs()
    recoveries = []
    for kind in ("started", "confirmed"):
        times = sorted(event["at"] for event in history.events if event["event"] == kind)
        recoveries += [min(at for at in times if at >= back) - back for back in backs]
    figures(
        f"{len(keys):,} messages of {PUBLISHERS * THREADS} publishers, {restarts} restarts: "
        f"losses 0, {history.extra_runs} extra runs, {history.redeliveries} redeliveries, "
        f"{history.repeated_publishes} repeated publishes, slowest recovery "
        f"{max(recoveries):.2f} s, in {seconds:.0f} s"
    )
    assert max(recoveries) <= 10
    wait_until(lambda: director.counts().ready == 0, 30, "the queue is empty")

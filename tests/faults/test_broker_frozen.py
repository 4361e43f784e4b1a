"""Row: broker frozen, for 5 s and for 3 heartbeats. Checks: bounded error, T."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from harness.brokers import Broker
from harness.director import Director
from harness.processes import Processes
from harness.waiting import wait_until

pytestmark = pytest.mark.server

HEARTBEAT = 2.0

#: Seconds for a machine that stands still.
SLACK = 10.0


@pytest.mark.parametrize(("frozen", "heartbeat"), [(5.0, 20.0), (3 * HEARTBEAT, HEARTBEAT)])
def test_broker_frozen(
    frozen: float,
    heartbeat: float,
    broker: Broker,
    director: Director,
    processes: Processes,
    figures: Callable[[str], None],
) -> None:
    env = {
        "SYNMANAGER_LEASE": "30",
        "SYNMANAGER_HEARTBEAT": str(heartbeat),
        "SYNMANAGER_TIMEOUT": "1",
    }
    impatient = {**env, "SYNMANAGER_RECONNECT": "1"}
    gates = {who: processes.directory / f"gate-{who}" for who in ("patient", "impatient")}

    def gate(who: str, number: int) -> dict[str, object]:
        return {"number": number, "file": str(gates[who])}

    processes.worker("worker", env=env)
    processes.producer("patient", keys=[0, 100], pace=0.1, gate=gate("patient", 90), env=env)
    processes.await_event("finished", 30, count=3)
    processes.producer("impatient", keys=[0, 3], gate=gate("impatient", 1), env=impatient)
    processes.await_event("waits", 30, who="impatient")

    broker.launcher.freeze()
    began = time.monotonic()
    gates["impatient"].touch()
    # Both its last jobs fail, and it disconnects, while nobody answers.
    processes.await_event("left", 30, who="impatient")
    wait_until(lambda: time.monotonic() - began >= frozen, frozen + 1, "it has stood long enough")
    broker.launcher.thaw()
    thawed = time.monotonic()
    gates["patient"].touch()

    processes.await_event("left", 40, who="patient")
    history = processes.history()
    keys = set(history.confirmed)
    processes.await_done(keys, 30)
    history = processes.history()
    history.check_nothing_lost()
    history.check_extra_runs()
    resumed = history.check_resumed(since=thawed, within=10)
    refused = [event for event in history.events if event["event"] == "refused"]
    assert refused
    assert {event["error"] for event in refused} <= {"BrokerUnavailable", "PublishInterrupted"}
    slowest = max(event["seconds"] for event in refused)
    # A call, a second of patience, and the last try; without them, it would take a minute.
    assert slowest <= 1 + 1 + 3 * 1 + SLACK
    (left,) = [
        e["seconds"] for e in history.events if e["event"] == "left" if e["who"] == "impatient"
    ]
    assert left <= SLACK, "disconnect() from a frozen broker"
    figures(
        f"frozen {thawed - began:.1f} s, heartbeat {heartbeat:g} s: error after {slowest:.2f} s, "
        f"disconnect in {left:.2f} s, work again {resumed:.2f} s after the thaw"
    )

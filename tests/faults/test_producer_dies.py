"""Row: producer dies around the confirm. Checks L; no copy or one, with the same id."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from harness.brokers import Broker
from harness.catalogue import SERVERLESS
from harness.director import Director
from harness.processes import Processes
from harness.waiting import wait_until

from synmanager.testing.proxy import Proxy


@pytest.mark.parametrize("where", ["sent", "answered", "confirmed"])
def test_producer_dies_around_the_confirm(
    where: str,
    broker: Broker,
    director: Director,
    processes: Processes,
    figures: Callable[[str], None],
) -> None:
    if where == "answered" and broker.name in SERVERLESS:
        pytest.skip("a file has no replies to lose")
    director.declare()
    settings = {"keys": [0, 5], "prefix": "job", "job_ids": True}
    with Proxy(broker.port) as proxy:
        if where == "answered":
            # The broker has the job and has said so; the producer never hears it.
            # Without the journal: a reply to that would be held, and not a publish's.
            alone = {"SYNMANAGER_JOURNAL": "off"}
            gate = processes.directory / "gate"
            first = processes.producer(
                "first",
                gate={"number": 2, "file": str(gate)},
                url=broker.url(proxy.port),
                env=alone,
                **settings,
            )
            processes.await_event("waits", 30)
            proxy.hold_replies()
            gate.touch()
            wait_until(lambda: director.counts().ready == 3, 30, "the third job is in the queue")
            first.kill()
        else:
            die = {"at": where, "key": "job-2"}
            first = processes.producer("first", die=die, **settings)
            assert first.wait(30) == -9
    noted = [event["key"] for event in processes.history().events if event["event"] == "confirmed"]
    assert noted == ["job-0", "job-1"]
    ready = director.counts().ready
    assert ready == (2 if where == "sent" else 3), "no copy or one"

    # It comes back and, not knowing, submits all of them again with the same ids.
    assert processes.producer("again", **settings).wait(30) == 0
    processes.worker("worker", burst=True).wait(30)
    history = processes.history()
    history.check_nothing_lost()
    ids = {event["key"]: event["job_id"] for event in history.events if event["event"] == "started"}
    assert ids == {f"job-{n}": f"job-{n}" for n in range(5)}
    figures(f"{ready - 2} copy before the repeat, {len(history.runs)} runs of 5 jobs after it")

"""Row: consumer dies before, in, after the callback, before the ack. Checks L D X T."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from harness.director import Director
from harness.processes import Processes

LEASE = 1.0
ENV = {"SYNMANAGER_LEASE": str(LEASE)}

#: Where it dies, and how often its job has run by the end.
HOOKS = {
    "received": 1,  # the library has the job, the callback does not
    "before": 1,
    "in": 2,
    "after": 2,
    "result": 2,  # the result is out, the job is not acknowledged
    "acked": 1,
}


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("listen", [False, True], ids=["Worker", "listen_message"])
def test_consumer_dies(
    hook: str,
    listen: bool,
    director: Director,
    processes: Processes,
    figures: Callable[[str], None],
) -> None:
    if listen and hook == "result":
        pytest.skip("listen_message publishes no results")
    keys = director.submit({"key": f"job-{n}", "work": 0.05} for n in range(10))
    doomed = processes.worker(
        "doomed", die={"at": hook, "key": "job-3"}, listen=listen, env=ENV, phases=["train"]
    )
    assert doomed.wait(30) == -9
    died = processes.await_event("killed", 1, victim=doomed.pid)

    heir = processes.worker("heir", listen=listen, env=ENV)
    began = processes.await_event("ready", 30, who="heir")
    processes.await_done(keys, 30)
    processes.await_event("acked", 30, count=10)

    history = processes.history()
    history.check_nothing_lost()
    history.check_extra_runs()
    history.check_no_overlap()
    assert len(history.runs_of("job-3")) == HOOKS[hook]
    assert history.extra_runs <= 1
    assert all(len(history.runs_of(key)) == 1 for key in keys - {"job-3"})
    heir.kill()
    if not listen:
        # Both runs publish with the same id, by which a broker that can keeps only one.
        twice = hook == "result" and not director.features.deduplicates
        results = [result["key"] for result in director.results()]
        assert results.count("job-3") == 1 + twice
    if hook != "acked":
        # It was free again within its lease, and its heir took it as a second attempt.
        (last,) = history.runs_of("job-3")[-1:]
        assert last.attempt == 2
        seconds = last.began - max(died, began)
        assert seconds <= LEASE + 10
        figures(f"freed after {seconds:.2f} s, {history.extra_runs} extra runs")

"""Row: poison job that kills its process. At most N attempts, then a dead letter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from harness.brokers import Broker
from harness.director import Director
from harness.processes import Process, Processes
from harness.rabbitmq import RabbitMQ
from harness.waiting import wait_until

ATTEMPTS = 3
ENV = {
    "SYNMANAGER_MAX_ATTEMPTS": str(ATTEMPTS),
    "SYNMANAGER_LEASE": "0.5",
    "SYNMANAGER_RETRY_DELAY": "0.1",
}


class Supervisor:
    """Starts the worker again when it has died, as systemd does."""

    def __init__(self, processes: Processes, **config: object) -> None:
        self._processes = processes
        self._config = config
        self.lives = 0
        self._worker = self._start()

    def _start(self) -> Process:
        self.lives += 1
        return self._processes.worker(f"life-{self.lives}", env=ENV, **self._config)

    def look(self) -> None:
        if self._worker.status is not None:
            self._worker = self._start()


@pytest.mark.parametrize("queue", ["ours", "of 0.1.0"])
@pytest.mark.parametrize("act", ["exit", "oom"])
def test_poison_job_that_kills_its_process(
    act: str,
    queue: str,
    broker: Broker,
    director: Director,
    processes: Processes,
    figures: Callable[[str], None],
) -> None:
    """os._exit in the callback; SIGKILL, as the kernel ends a process that takes all memory."""
    if queue == "of 0.1.0":
        if not isinstance(broker, RabbitMQ):
            pytest.skip("0.1.0 knows only RabbitMQ")
        broker.declare_queue_of_010("train")
    director.submit([{"key": "poison", "act": act}])
    keys = director.submit([{"key": "after"}])
    supervisor = Supervisor(processes)

    def is_over() -> bool:
        supervisor.look()
        return keys <= processes.history().done and director.counts().dead > 0

    wait_until(is_over, 40, "the poison job is a dead letter, and the next job has run")
    history = processes.history()
    runs = history.runs_of("poison")
    assert [run.attempt for run in runs] == list(range(1, ATTEMPTS + 1))
    (letter,) = director.dead_letters()
    assert letter.message.body == b'{"act": "%s", "key": "poison"}' % act.encode()
    assert letter.attempts >= ATTEMPTS
    assert "died" in letter.reason
    figures(f"{len(runs)} runs, {supervisor.lives} lives, then: {letter.reason}")


@pytest.mark.parametrize(("act", "runs"), [("raise", ATTEMPTS), ("retry", ATTEMPTS), ("reject", 1)])
def test_a_job_that_fails(act: str, runs: int, director: Director, processes: Processes) -> None:
    director.submit([{"key": "poison", "act": act}, {"key": "after"}])
    worker = processes.worker("worker", env=ENV)
    (letter,) = wait_until(director.dead_letters, 30, "the job is a dead letter")
    wait_until(lambda: "after" in processes.history().done, 30, "a failing job holds up nobody")
    history = processes.history()
    assert [run.attempt for run in history.runs_of("poison")] == list(range(1, runs + 1))
    assert letter.attempts == runs
    reasons = {"raise": "ValueError: this job always fails", "retry": "not now", "reject": "never"}
    assert letter.reason == reasons[act]
    assert worker.status is None


@pytest.mark.server
def test_a_retry_survives_the_brokers_restart(
    broker: Broker, director: Director, processes: Processes, figures: Callable[[str], None]
) -> None:
    """It waits in the broker, not in the worker's memory: both are killed meanwhile."""
    delay = 10.0
    director.submit([{"key": "failing", "act": "raise"}])
    env = {**ENV, "SYNMANAGER_RETRY_DELAY": str(delay)}
    first = processes.worker("first", env=env)
    failed = processes.await_event("failed", 30)
    wait_until(lambda: director.counts().leased in (0, None), 30, "it is put back")
    first.signal(15)
    assert first.wait(30) == 0
    broker.restart_after_kill()
    processes.worker("second", env=env)
    # RabbitMQ 3 may forget in a crash that what failed was acknowledged, and hands it out as well,
    # at once: that is not what waited.
    at = wait_until(
        lambda: [
            run.began
            for run in processes.history().runs
            if run.who == "second" and run.began - failed >= 0.75 * delay
        ],
        40,
        "what waited is due",
    )[0]
    runs = processes.history().runs
    assert [run.attempt for run in runs] == [1] + [2] * (len(runs) - 1)
    assert len(runs) <= (3 if isinstance(broker, RabbitMQ) else 2)
    figures(
        f"second attempt {at - failed:.1f} s after the first failed "
        f"({delay:g} s +- 25 %, and a restart)"
    )

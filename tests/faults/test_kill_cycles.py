"""Kill cycles: ``kill -9`` of random workers, producers and of the broker while jobs flow."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest
from harness.brokers import Broker
from harness.director import Director
from harness.processes import Process, Processes
from harness.waiting import wait_until

WORKERS = 3
BROKER_EVERY = 5  # cycles
ENV = {
    "SYNMANAGER_LEASE": "2",
    "SYNMANAGER_HEARTBEAT": "5",
    # Jobs here are killed with their workers through no fault of their own.
    "SYNMANAGER_MAX_ATTEMPTS": "1000",
}


class Producing:
    """One producer's share of one cycle, taken up again by a new process after a kill."""

    def __init__(self, processes: Processes, who: str, jobs: int, batch: int) -> None:
        self._processes = processes
        self._who = who
        self._jobs = jobs
        self._batch = batch
        self.process = self._start(0)

    def _start(self, first: int) -> Process:
        return self._processes.producer(
            self._who,
            keys=[first, self._jobs],
            batch=self._batch,
            job_ids=True,
            pace=0.002 * self._batch,
            log="WARNING",
            env=ENV,
        )

    def kill(self) -> bool:
        """Kill it and start another, which repeats what was not confirmed; False if it was done."""
        if self.process.status is not None:
            return False
        self.process.kill()
        done = self._numbers("confirmed")
        for number in self._numbers("offered") - done:
            self._processes.journal.write("repeated", key=f"{self._who}-{number}")
        self.process = self._start(max(done, default=-1) + 1)
        return True

    def _numbers(self, event: str) -> set[int]:
        return {
            int(e["key"].rpartition("-")[2])
            for e in self._processes.history().events
            if e["event"] == event and e["who"] == self._who
        }


class Cycles:
    """The grid that is killed, and what came of it."""

    def __init__(self, processes: Processes, broker: Broker, rng: random.Random) -> None:
        self._processes = processes
        self._broker = broker
        self._rng = rng
        self._workers = [self._worker(number) for number in range(WORKERS)]
        self._archive = processes.archiver("archive", log="WARNING", env=ENV)
        self.keys: set[str] = set()
        self.kills = {"worker": 0, "producer": 0, "broker": 0}
        self.backs: list[float] = []

    def run(self, number: int, jobs: int, with_broker: bool) -> None:
        half = jobs // 2
        names = (f"c{number}-singly", f"c{number}-batch")
        producing = [
            Producing(self._processes, name, half, batch)
            for name, batch in zip(names, (1, 25), strict=True)
        ]
        self.keys |= {f"{name}-{n}" for name in names for n in range(half)}
        self._processes.await_event("confirmed", 60, who=names[0])
        time.sleep(self._rng.uniform(0, 0.3))
        self._kill_worker(self._rng.randrange(WORKERS))
        if self._rng.random() < 0.5:
            time.sleep(self._rng.uniform(0, 0.2))
            self.kills["producer"] += self._rng.choice(producing).kill()
        if with_broker:
            time.sleep(self._rng.uniform(0, 0.2))
            self._broker.restart_after_kill()
            self.backs.append(time.monotonic())
            self.kills["broker"] += 1
        for share in producing:
            assert share.process.wait(120) == 0, share.process.output[-2000:]

    def await_the_end(self) -> None:
        """Until every job has run and every result is archived."""
        self._processes.await_done(self.keys, 120)
        missing = set(self.keys)

        def archived() -> bool:
            history = self._processes.history()
            missing.difference_update(e["key"] for e in history.events if e["event"] == "archived")
            return not missing

        wait_until(archived, 120, "every job's result is archived")

    def _worker(self, number: int) -> Process:
        return self._processes.worker(f"worker-{number}", log="WARNING", env=ENV)

    def _kill_worker(self, number: int) -> None:
        self._workers[number].kill()
        self.kills["worker"] += 1
        self._workers[number] = self._worker(number)


@pytest.mark.limit(300)
def test_kill_cycles(
    is_long: bool,
    rng: random.Random,
    broker: Broker,
    director: Director,
    processes: Processes,
    figures: Callable[[str], None],
) -> None:
    cycles, jobs = (200, 1000) if is_long else (20, 500)
    began = time.monotonic()
    grid = Cycles(processes, broker, rng)
    for number in range(cycles):
        grid.run(number, jobs, with_broker=number % BROKER_EVERY == BROKER_EVERY - 2)
    grid.await_the_end()
    seconds = time.monotonic() - began

    history = processes.history()
    assert set(history.confirmed) == grid.keys
    archived = [event["key"] for event in history.events if event["event"] == "archived"]
    lost = grid.keys - history.done
    starts = sorted(run.began for run in history.runs)
    recoveries = [min(at for at in starts if at >= back) - back for back in grid.backs]
    kills = ", ".join(f"{count} {whom}" for whom, count in grid.kills.items())
    figures(
        f"kills {sum(grid.kills.values())} ({kills}), jobs {len(grid.keys):,}, "
        f"losses {len(lost)}, duplicates {history.extra_runs}, "
        f"redeliveries {history.redeliveries}, repeated publishes {history.repeated_publishes}, "
        f"results twice {len(archived) - len(set(archived))}, "
        f"slowest recovery {max(recoveries):.2f} s, in {seconds:.0f} s"
    )
    history.check_nothing_lost(dead=director.dead_keys())
    history.check_extra_runs()
    assert history.extra_runs <= history.redeliveries + history.repeated_publishes
    assert set(archived) == grid.keys, "every result arrived"
    assert max(recoveries) <= 10
    wait_until(lambda: director.counts().ready == 0, 30, "the queue is empty")

"""What is told apart: submissions of one id, and what strangers send under one name."""

from __future__ import annotations

from typing import Any

import pytest
from grid import Bench, Grid

from synmanager import Archiver, Worker, current_job
from synmanager.backends import Delivery
from synmanager.engine.results import result_id
from synmanager.message import Message, decode

NIGHTS = (1_700_000_000.0, 1_700_086_400.0, 1_700_172_800.0)


def archive(grid: Grid) -> list[dict[str, Any]]:
    """What an Archiver gets that runs only now."""
    archived: list[dict[str, Any]] = []
    Archiver(lambda kwargs, host: archived.append(kwargs), url=grid.url).run(burst=True)
    return archived


class TestResults:
    @pytest.mark.parametrize("jobs", [[{"night": 1}] * 3, [{"night": n} for n in range(3)]])
    def test_the_same_id_on_three_days_gives_three(
        self, jobs: list[dict[str, int]], grid: Grid
    ) -> None:
        worker = Worker({"train": lambda night: {"loss": night}}, url=grid.url)
        for job, submitted_at in zip(jobs, NIGHTS, strict=True):
            grid.put(job, id="nightly", submitted_at=submitted_at)
            assert worker.run(burst=True) == 1
        assert archive(grid) == [{"loss": job["night"]} for job in jobs]

    def test_also_when_submitted_one_after_the_other(self, grid: Grid) -> None:
        producer = grid.producer()
        worker = Worker({"train": lambda night: {"loss": night}}, url=grid.url)
        for _ in range(3):
            producer.submit({"night": 1}, job_id="nightly")
            assert worker.run(burst=True) == 1
        assert len(archive(grid)) == 3

    def test_of_strangers_who_say_no_time_too(self, grid: Grid) -> None:
        worker = Worker({"train": lambda **_: {}}, url=grid.url)
        for _ in range(3):
            grid.put({}, id="same", submitted_at=None, schema=0)
            assert worker.run(burst=True) == 1
        assert len(archive(grid)) == 3

    def test_two_jobs_of_one_id_and_one_moment(self, grid: Grid) -> None:
        worker = Worker({"train": lambda run: {"run": run}}, url=grid.url)
        for run in (1, 2):
            grid.put({"run": run}, id="same", submitted_at=NIGHTS[0])
            worker.run(burst=True)
        assert archive(grid) == [{"run": 1}, {"run": 2}]

    def test_one_id_in_two_phases_gives_two(self, grid: Grid) -> None:
        for phase in ("train", "evaluate"):
            grid.put({}, id="run-1", phase=phase, submitted_at=NIGHTS[0])
        Worker(
            dict.fromkeys(("train", "evaluate"), lambda **_: {"phase": current_job().phase}),
            url=grid.url,
        ).run(burst=True)
        train, evaluate = grid.ready("completed")
        assert train.id.startswith("run-1.train.")
        assert evaluate.id.startswith("run-1.evaluate.")
        assert [decode(message.body) for message in (train, evaluate)] == [
            {"phase": "train"},
            {"phase": "evaluate"},
        ]

    def test_every_run_of_one_submission_has_the_same_id(self, grid: Grid) -> None:
        grid.put({}, id="run-1")

        def twice(**kwargs: Any) -> dict[str, Any]:
            job = current_job()
            assert job is not None
            if job.attempt == 1:
                grid.crash_holders()  # and so both attempts come to an end
                raise ZeroDivisionError
            return {"attempt": job.attempt}

        deliveries = [
            Delivery(Message(b"{}", id="run-1", submitted_at=NIGHTS[0]), "train", attempt, None)
            for attempt in (1, 2)
        ]
        assert len({result_id(delivery) for delivery in deliveries}) == 1
        Worker({"train": twice}, url=grid.url).run(burst=True)
        grid.clock.advance(3600)
        Worker({"train": twice}, url=grid.url).run(burst=True)
        assert [decode(message.body) for message in grid.ready("completed")] == [{"attempt": 2}]

    def test_the_microsecond_is_all_that_brokers_keep_of_a_time(self) -> None:
        ids = {
            result_id(Delivery(Message(b"{}", id="a", submitted_at=at), "train", 1, None))
            for at in (1700000000.123456, 1700000000.1234562)
        }
        assert len(ids) == 1

    def test_a_repeat_shows(self, grid: Grid) -> None:
        # A worker that died between the result and the acknowledgement: the job runs again.
        grid.put({}, id="run-1")
        for _ in range(2):
            worker = Worker({"train": lambda **_: {}}, url=grid.url)
            client = grid.flaky(worker)
            client.fail("ack", KeyboardInterrupt())
            with pytest.raises(KeyboardInterrupt):
                worker.run(max_jobs=1)
            grid.crash_holders()
        assert len(grid.ready("completed")) == 1  # this broker drops a repeat while one waits


class TestKeptOutcomes:
    """An outcome settles the very job that it is of, and no other."""

    @pytest.mark.parametrize(
        ("first", "second"),
        [
            ({"submitted_at": None, "schema": 0}, {"submitted_at": None, "schema": 0}),
            ({"submitted_at": NIGHTS[0]}, {"submitted_at": NIGHTS[0]}),
        ],
        ids=["a stranger's", "ours"],
    )
    def test_another_body_under_the_same_id_is_run(
        self, first: dict[str, Any], second: dict[str, Any], grid: Grid
    ) -> None:
        bench = Bench(grid)
        grid.put({"run": 1}, id="same", **first)
        runs: list[int] = []

        def lose(kwargs: dict[str, Any]) -> None:
            runs.append(kwargs["run"])
            grid.crash_holders()
            bench.runner.stop()

        bench.run(lose)
        assert len(bench.runner._kept) == 1
        grid.client().purge("train")
        grid.put({"run": 2}, id="same", **second)
        grid.client().receive(["train"], 0)
        grid.crash_holders()  # so that it comes as a second delivery
        bench.run(lambda kwargs: runs.append(kwargs["run"]))
        assert runs == [1, 2]

    def test_another_time_under_the_same_id_is_run(self, grid: Grid) -> None:
        bench = Bench(grid)
        grid.put({}, id="nightly", submitted_at=NIGHTS[0])
        runs: list[int] = []

        def lose(kwargs: dict[str, Any]) -> None:
            runs.append(1)
            grid.crash_holders()
            bench.runner.stop()

        bench.run(lose)
        grid.client().purge("train")
        grid.put({}, id="nightly", submitted_at=NIGHTS[1])
        grid.client().receive(["train"], 0)
        grid.crash_holders()
        bench.run(lambda kwargs: runs.append(2))
        assert runs == [1, 2]

    def test_the_very_job_is_not(self, grid: Grid) -> None:
        bench = Bench(grid)
        grid.put({}, id="same", submitted_at=None, schema=0)
        runs: list[int] = []

        def lose(kwargs: dict[str, Any]) -> None:
            runs.append(1)
            grid.crash_holders()

        assert bench.run(lose) == 2
        assert runs == [1]
        assert len(bench.runner._kept) == 0

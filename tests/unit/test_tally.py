"""What is counted of the journal's events, and how many jobs are where."""

from __future__ import annotations

import random
from typing import Any

import pytest

from synmanager.journal.events import Event
from synmanager.journal.fold import Fold
from synmanager.journal.tally import BOUNDS, OTHER, Tally


class Story:
    """Events as producers and workers write them."""

    def __init__(self) -> None:
        self.tally = Tally(Fold(), ("train", "evaluate"))
        self.tally.begin("train")

    def submit(self, *ids: str, at: float = 0.0, phase: str = "train", **data: Any) -> None:
        told = {"phase": phase, "ids": list(ids), "rank": "normal", "submitted_at": at, "delay": 0}
        self.tally.apply(Event("job.submitted", "director", at, phase, {**told, **data}))

    def job(self, kind: str, at: float, job_id: str = "a", by: str = "w/1/x", **data: Any) -> None:
        told = {
            "id": job_id, "phase": "train", "submitted_at": 0.0, "rank": "normal", "attempt": 1,
        }  # fmt: skip
        event = Event(f"job.{kind}", by, at, f"train/{job_id}", {**told, **data})
        self.tally.apply(event)

    def waited(self, outcome: str = "started") -> tuple[int, float]:
        found = self.tally.waited["train", outcome]
        return sum(found.counts), found.total

    def ran(self, outcome: str) -> tuple[int, float]:
        found = self.tally.ran["train", outcome]
        return sum(found.counts), found.total


@pytest.fixture
def story() -> Story:
    return Story()


def test_a_job_waits_runs_and_ends(story: Story) -> None:
    story.submit("a", "b", at=0.0, rank="high")
    tally = story.tally
    assert tally.submitted == {"train": 2}
    assert tally.ready(10) == {("train", "high"): 2}
    assert tally.oldest(10) == {"train": 10}
    story.job("started", 20, rank="high")
    assert tally.ready(25) == {("train", "high"): 1}
    assert tally.running() == {"train": 1}
    assert tally.workers() == {"busy": 1}
    assert tally.silence(25) == {"train": 5}
    story.job("progress", 30, done=1, total=2, text=None, figures={})
    assert tally.silence(31) == {"train": 1}
    story.job("succeeded", 50, started_at=20, rank="high")
    assert story.waited() == (1, 20)
    assert story.ran("succeeded") == (1, 30)
    assert tally.ended["train", "succeeded"] == 1
    assert (tally.running(), tally.silence(60)) == ({}, {})
    assert tally.workers() == {"idle": 1}
    assert tally.oldest(60) == {"train": 60}


def test_a_beginning_that_was_left_out(story: Story) -> None:
    story.submit("a")
    story.job("succeeded", 7, started_at=5)
    assert (story.waited(), story.ran("succeeded")) == ((1, 5), (1, 2))


def test_a_beginning_that_is_told_before_its_submission(story: Story) -> None:
    story.job("started", 5)
    story.submit("a")
    assert (story.waited(), story.tally.running()) == ((1, 5), {"train": 1})
    assert story.tally.submitted == {"train": 1}
    assert story.tally.ready(6) == {}


def test_a_retry_waits_from_when_it_is_due(story: Story) -> None:
    story.submit("a")
    story.job("started", 1)
    story.job("retried", 3, started_at=1, due_at=10, reason="no")
    assert story.tally.delayed(5) == {"train": 1}
    assert story.tally.ready(5) == {}
    assert story.tally.ready(12) == {("train", "normal"): 1}
    assert story.tally.oldest(12) == {"train": 2}
    story.job("started", 14, attempt=2)
    assert story.waited() == (2, 1 + 4)
    assert (story.tally.retried, story.ran("retried")) == ({"train": 1}, (1, 2))


def test_a_delay_is_no_waiting(story: Story) -> None:
    story.submit("a", delay=100)
    assert (story.tally.delayed(50), story.tally.oldest(50)) == ({"train": 1}, {})
    story.job("started", 101)
    assert story.waited() == (1, 1)


def test_given_back(story: Story) -> None:
    story.submit("a")
    story.job("started", 1)
    story.job("given_back", 4, started_at=1)
    assert (story.tally.given_back["train"], story.ran("given_back")) == (1, (1, 3))
    assert story.tally.oldest(10) == {"train": 6}


def test_a_worker_that_died_has_lost_its_job(story: Story) -> None:
    story.submit("a", "b")
    story.job("started", 1)
    story.job("started", 1, "b", by="w/2/x")
    story.job("started", 60, by="w/3/x", attempt=2)
    assert story.tally.lost["train"] == 1
    assert story.waited() == (2, 2)  # how long nobody had it, nobody knows
    story.job("died", 90, "b", by="w/3/x", attempt=4)  # whose beginnings were never told
    assert story.tally.lost["train"] == 1 + 3
    assert story.tally.running() == {"train": 1}


def test_renewals_that_come_late(story: Story) -> None:
    story.submit("a")
    story.job("started", 1)
    story.job("renewed", 30)
    story.job("renewed", 70, late=40)
    assert story.tally.late["train"] == 1


def test_one_that_is_ended_without_being_run(story: Story) -> None:
    story.submit("a", "b", "c")
    story.job("cancelled", 5, reason="asked")
    story.job("died", 6, "b", reason="no JSON")
    story.tally.apply(Event("job.deleted", "d", 7, "train/c", {"phase": "train", "id": "c"}))
    assert (story.waited("cancelled"), story.waited("dead")) == ((2, 12), (1, 6))
    assert (story.ran("cancelled"), story.ran("dead")) == ((0, 0), (0, 0))
    assert story.tally.ended["train", "cancelled"] == 2
    assert story.tally.ready(9) == {}


def test_a_dead_letter_that_is_redriven(story: Story) -> None:
    story.submit("a")
    story.job("started", 1, attempt=5)
    story.job("died", 2, attempt=5, started_at=1)
    story.job("started", 9_000)
    story.job("succeeded", 9_001, started_at=9_000)
    assert story.waited() == (1, 1)
    assert story.ran("succeeded") == (1, 1)
    assert story.tally.lost["train"] == 0


def test_what_is_recorded_twice_counts_once(story: Story) -> None:
    story.submit("a")
    for _ in range(2):
        story.job("started", 1)
    for _ in range(2):
        story.job("retried", 2, started_at=1, due_at=3)
    for _ in range(2):
        story.job("succeeded", 6, started_at=5, attempt=2)
    tally = story.tally
    assert (tally.retried["train"], tally.ended["train", "succeeded"], tally.lost["train"]) == (
        1, 1, 0,
    )  # fmt: skip
    assert (story.waited(), story.ran("succeeded")) == ((2, 1 + 2), (1, 1))


def test_an_id_that_is_used_again(story: Story) -> None:
    story.submit("a")
    story.job("started", 1)
    story.submit("a", at=50)
    assert story.tally.ready(60) == {("train", "normal"): 1}
    assert story.tally.running() == {}
    story.job("started", 70, submitted_at=50)
    assert story.waited() == (2, 1 + 20)
    assert story.tally.lost["train"] == 0


def test_names_of_strangers_are_one(story: Story) -> None:
    for number in range(1000):
        story.submit("a", phase=f"phase-{number}", rank=f"rank-{number}")
    assert story.tally.ready(1) == {(OTHER, OTHER): 1000}
    assert story.tally.submitted == {"train": 0, OTHER: 1000}


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"phase": "train"},
        {"phase": "train", "id": None, "attempt": "x"},
        {"phase": "train", "id": "a", "attempt": 1, "rank": [], "due_at": "soon"},
        {"phase": "train", "id": "a", "attempt": 1, "rank": {}, "due_at": float("nan")},
        {"phase": "train", "id": ["a"], "attempt": 1, "rank": "low", "started_at": "early"},
        {"phase": "train", "ids": 7, "rank": "low", "submitted_at": 0, "delay": 0},
        {"phase": "train", "ids": [["a"]], "rank": 1, "submitted_at": 0, "delay": float("inf")},
    ],
)
def test_whatever_somebody_writes_is_borne(story: Story, data: dict[str, Any]) -> None:
    for kind in (
        "submitted", "started", "progress", "renewed", "retried", "given_back", "succeeded",
        "died", "deleted", "part", "new",
    ):  # fmt: skip
        story.tally.apply(Event(f"job.{kind}", "w", 1.0, "", data))
    story.tally.apply(Event("worker.up", "w", 1.0, "", data))
    story.submit("b")
    assert story.tally.ready(2)["train", "normal"] >= 1
    story.tally.oldest(2), story.tally.delayed(2), story.tally.silence(2), story.tally.workers()


def test_it_agrees_with_the_states_of_jobs(story: Story) -> None:
    dice = random.Random(7)
    kinds = ("started", "progress", "retried", "given_back", "succeeded", "died", "cancelled")
    for now in range(20_000):
        name = str(dice.randrange(300))
        if dice.random() < 0.3:
            story.submit(name, at=float(now), delay=dice.choice([0, 0, 30]))
            continue
        known = story.tally.fold.jobs.get(("train", name))
        story.job(
            dice.choice(kinds), now, name, by=f"w/{dice.randrange(9)}/x",
            submitted_at=known.submitted_at if known else 0.0,
            attempt=known.attempt + dice.choice([0, 1]) if known else 1, due_at=now + 20.0,
            done=1, total=2, text=None, figures={},
        )  # fmt: skip
    states = list(story.tally.fold.jobs.values())
    late = 1e9
    waiting = sum(job.state in ("queued", "delayed", "retrying") for job in states)
    assert sum(story.tally.ready(late).values()) == waiting
    assert story.tally.delayed(late) == {}
    running = sum(job.state == "running" for job in states)
    assert sum(story.tally.running().values()) == running
    assert len(story.tally._oldest["train"]) < 15_000


def test_a_duration_is_in_the_first_bucket_that_holds_it(story: Story) -> None:
    for number, bound in enumerate(BOUNDS):
        story.submit(f"{number}")
        story.job("succeeded", 10 + bound, f"{number}", started_at=10.0)
    assert story.tally.ran["train", "succeeded"].counts == [1] * len(BOUNDS) + [0]

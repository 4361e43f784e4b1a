"""The checker, shown what it must catch: a loss, a duplicate, an overlap, a disorder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from harness.checker import History, Violation
from harness.journal import Journal
from harness.waiting import wait_until


class Story:
    """Events in the order in which they are told, a second apart."""

    def __init__(self) -> None:
        self._events: list[dict[str, object]] = []

    def __call__(self, event: str, key: str = "", pid: int = 1, **fields: object) -> Story:
        at = float(len(self._events))
        told = {"event": event, "at": at, "who": f"w{pid}", "pid": pid, "thread": 1, "key": key}
        if event == "started":
            told["attempt"] = 1
        self._events.append({**told, **fields})
        return self

    @property
    def history(self) -> History:
        return History(self._events)


@pytest.fixture
def story() -> Story:
    return Story()


def test_a_planted_loss_is_caught(story: Story) -> None:
    story("confirmed", "a")("confirmed", "b")("started", "a")("finished", "a")
    with pytest.raises(Violation, match="1 confirmed jobs are lost: b"):
        story.history.check_nothing_lost()


def test_a_job_that_started_and_never_finished_is_lost(story: Story) -> None:
    story("confirmed", "a")("started", "a")("killed", victim=1)
    with pytest.raises(Violation, match="lost: a"):
        story.history.check_nothing_lost()


def test_what_is_queued_or_dead_is_not_lost(story: Story) -> None:
    story("confirmed", "a")("confirmed", "b")("confirmed", "c")("started", "c")("finished", "c")
    story.history.check_nothing_lost(queued=["a"], dead=["b"])


def test_a_planted_duplicate_is_caught(story: Story) -> None:
    story("started", "a")("finished", "a")("started", "a", 2)("finished", "a", 2)
    with pytest.raises(Violation, match=r"a \(2 runs, 1 attempts, 0 repeats\)"):
        story.history.check_extra_runs()


def test_one_planted_duplicate_among_redeliveries_is_caught(story: Story) -> None:
    story("started", "a")("killed", victim=1)("started", "a", 2, attempt=2)("finished", "a", 2)
    story("started", "b")("finished", "b")("started", "b", 2)("finished", "b", 2)
    with pytest.raises(Violation, match="1 jobs ran without being redelivered: b"):
        story.history.check_extra_runs()


def test_a_redelivery_is_no_duplicate(story: Story) -> None:
    story("started", "a")("killed", victim=1)("started", "a", 2, attempt=2)("finished", "a", 2)
    story.history.check_extra_runs()
    assert (story.history.extra_runs, story.history.redeliveries) == (1, 1)


def test_a_repeated_publish_may_run_once_more_and_not_twice(story: Story) -> None:
    story("repeated", "a")("started", "a")("finished", "a")("started", "a", 2)("finished", "a", 2)
    story.history.check_extra_runs()
    story("started", "a", 3)("finished", "a", 3)
    with pytest.raises(Violation, match="a"):
        story.history.check_extra_runs()


def test_a_planted_overlap_is_caught(story: Story) -> None:
    story("started", "a")("started", "a", 2, attempt=2)("finished", "a")("finished", "a", 2)
    with pytest.raises(Violation, match="job a was started by w2 while w1 still ran it"):
        story.history.check_no_overlap()


def test_an_overlap_with_a_run_that_never_ended_is_caught(story: Story) -> None:
    story("started", "a")("started", "a", 2, attempt=2)("finished", "a", 2)
    with pytest.raises(Violation, match="started by w2"):
        story.history.check_no_overlap()


def test_the_dead_and_the_frozen_run_nothing(story: Story) -> None:
    story("started", "a")("killed", victim=1)("started", "a", 2, attempt=2)("frozen", victim=2)
    story("started", "a", 3, attempt=3)("finished", "a", 3)("finished", "a", 2)
    story.history.check_no_overlap()


def test_a_planted_disorder_is_caught(story: Story) -> None:
    story("confirmed", "a")("confirmed", "b")("started", "b")("finished", "b")("started", "a")
    with pytest.raises(Violation, match="number 0 to start was b, not a"):
        story.history.check_order()


def test_order_is_that_of_first_runs(story: Story) -> None:
    story("confirmed", "a")("confirmed", "b")("started", "a")("killed", victim=1)
    story("started", "b", 2)("finished", "b", 2)("started", "a", 2, attempt=2)
    story.history.check_order()


def test_work_that_goes_on_late_or_never_is_caught(story: Story) -> None:
    story("started", "a")("finished", "a")
    with pytest.raises(Violation, match="never"):
        story.history.check_resumed(since=1.0, within=5.0)
    story("idle")("idle")("started", "b")
    assert story.history.check_resumed(since=1.0, within=5.0) == 3.0
    with pytest.raises(Violation, match=r"after 3\.00 s"):
        story.history.check_resumed(since=1.0, within=2.0)


def test_a_gap_is_measured_while_jobs_are_published(story: Story) -> None:
    story("started", "a")("finished", "a")("started", "b")("finished", "b")
    story("idle")("idle")("started", "c")("finished", "c")("confirmed", "d")("idle")("idle")
    story("idle")("idle")("started", "d")
    assert story.history.longest_gap(since=0.0) == 4.0


def test_what_was_noted_before_a_kill_is_there(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "test")
    child = os.fork()
    if child == 0:
        for number in range(100):
            journal.write("started", key=str(number), attempt=1, thread=0)
        os.kill(os.getpid(), 9)
    assert wait_until(lambda: os.waitpid(child, os.WNOHANG)[0], 10, "the child is dead") == child
    journal.write("killed", victim=child)
    history = History.of(tmp_path)
    assert [run.key for run in history.runs] == [str(number) for number in range(100)]
    lines = (tmp_path / "test.jsonl").read_text().splitlines()
    assert all(json.loads(line)["pid"] for line in lines)

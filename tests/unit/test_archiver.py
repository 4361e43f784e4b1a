"""``Archiver``: named subscribers with a copy each, and the unnamed one's share."""

from __future__ import annotations

from typing import Any

import pytest
from grid import Grid, in_thread, until

from synmanager import Archiver, Reject, Worker
from synmanager.errors import (
    BrokerUnavailable,
    ConfigurationError,
    SynmanagerError,
    TopologyError,
)


class Archive:
    """Remembers the results that it got."""

    def __init__(self, grid: Grid, subscriber: str | None = None) -> None:
        self.runs: list[int] = []
        self.archiver = Archiver(lambda run: self.runs.append(run), subscriber, url=grid.url)

    def collect(self) -> list[int]:
        self.archiver.run(burst=True)
        return self.runs


def publish(grid: Grid, *runs: int) -> None:
    producer = grid.producer("completed")
    for run in runs:
        producer.process(run=run)


def test_results_come_one_at_a_time_and_in_order(grid: Grid) -> None:
    publish(grid, *range(100))
    assert Archive(grid).collect() == list(range(100))
    assert grid.count("completed") == {}


def test_the_unnamed_share_the_queue_of_0_1_0(grid: Grid) -> None:
    one, other = Archive(grid), Archive(grid)
    publish(grid, 1, 2, 3, 4)
    assert one.archiver.run(max_jobs=1) == 1
    assert grid.consumer("completed").poll_message(lambda run: run) == 2
    other.collect()
    assert (one.runs, other.runs) == ([1], [3, 4])


def test_every_named_subscriber_gets_every_result(grid: Grid) -> None:
    archives = [Archive(grid, "director"), Archive(grid, "dash-board_2"), Archive(grid)]
    for archive in archives:
        archive.archiver.subscribe()
    publish(grid, 1, 2)
    assert [archive.collect() for archive in archives] == [[1, 2]] * 3


def test_also_those_published_while_it_is_away(grid: Grid) -> None:
    first = Archive(grid, "director")
    first.collect()  # its first run, and it leaves
    publish(grid, 1, 2)
    again = Archive(grid, "director")
    assert again.collect() == [1, 2]
    publish(grid, 3)
    assert again.collect() == [1, 2, 3]


def test_none_from_before_it_first_subscribed(grid: Grid) -> None:
    publish(grid, 1)
    late = Archive(grid, "late")
    late.archiver.subscribe()
    publish(grid, 2)
    assert late.collect() == [2]


def test_two_of_one_name_share(grid: Grid) -> None:
    one, other = Archive(grid, "director"), Archive(grid, "director")
    one.archiver.subscribe()
    publish(grid, 1, 2, 3)
    one.archiver.run(max_jobs=2)
    assert (one.runs, other.collect()) == ([1, 2], [3])


@pytest.mark.parametrize(
    "name", ["", " ", "a b", "a.b", "a/b", "é", "x" * 101, "dead.", "a\n", "*"]
)
def test_a_name_that_cannot_be(name: str) -> None:
    with pytest.raises(ConfigurationError, match="subscriber"):
        Archiver(print, name, url="memory")


def test_both_conventions(grid: Grid) -> None:
    publish(grid, 1, 2)
    seen: list[Any] = []
    Archiver(lambda run: seen.append(run), url=grid.url).run(max_jobs=1)
    Archiver(lambda kwargs, host: seen.append((kwargs, host)), host="mq.example", url=grid.url).run(
        max_jobs=1
    )
    assert seen == [1, ({"run": 2}, "mq.example")]


def test_what_the_callback_returns_is_not_published(grid: Grid) -> None:
    publish(grid, 1)
    archiver = Archiver(lambda run: {"run": run}, url=grid.url)
    assert archiver.run(burst=True) == 1
    assert grid.count("completed") == {}


def test_a_failing_callback_is_retried_then_kept_as_a_dead_letter(grid: Grid) -> None:
    def full(run: int) -> None:
        raise OSError("disk full")

    archiver = Archiver(full, "director", max_attempts=2, url=grid.url)
    archiver.subscribe()
    publish(grid, 1)
    archiver.run(burst=True)
    assert grid.count("completed-director") == {"delayed": 1}
    grid.clock.advance(5)
    archiver.run(burst=True)
    ((body, reason, attempts),) = grid.dead("completed-director")
    assert (body, reason, attempts) == (b'{"run": 1}', "OSError: disk full", 2)


def test_a_handler_may_submit_what_follows(grid: Grid) -> None:
    evaluations = grid.producer("evaluate")
    archiver = Archiver(lambda run: evaluations.process(run=run), url=grid.url)
    publish(grid, 1, 2)
    archiver.run(burst=True)
    assert grid.count("evaluate") == {"ready": 2}


class TestSubscribe:
    def test_fails_at_once_and_leaves_the_archiver_usable(self, grid: Grid) -> None:
        archive = Archive(grid, "director")
        client = grid.flaky(archive.archiver)
        client.fail("open", BrokerUnavailable("gone"))
        with pytest.raises(BrokerUnavailable):
            archive.archiver.subscribe()
        archive.archiver.subscribe()
        publish(grid, 1)
        assert archive.collect() == [1]

    def test_leaves_no_connection(self, grid: Grid) -> None:
        archive = Archive(grid, "director")
        client = grid.flaky(archive.archiver)
        archive.archiver.subscribe()
        assert not client.is_open

    def test_leaves_a_running_archiver_alone(self, grid: Grid) -> None:
        archive = Archive(grid, "director")
        client = grid.flaky(archive.archiver)
        join = in_thread(archive.archiver.run)
        until(lambda: "receive" in client.calls)
        archive.archiver.subscribe()
        publish(grid, 1)
        until(lambda: archive.runs == [1])
        archive.archiver.stop()
        assert join() == 1


class TestUnsubscribe:
    def test_nothing_is_kept_for_who_has_left(self, grid: Grid) -> None:
        leaving, staying, unnamed = (Archive(grid, name) for name in ("leaving", "staying", None))
        for archive in (leaving, staying, unnamed):
            archive.archiver.subscribe()
        publish(grid, 1, 2)
        leaving.archiver.run(max_jobs=1)
        assert leaving.archiver.unsubscribe() == 1
        publish(grid, 3)
        with pytest.raises(TopologyError):
            grid.count("completed-leaving")
        assert staying.collect() == [1, 2, 3]
        assert unnamed.collect() == [1, 2, 3]

    def test_a_later_subscription_begins_with_nothing(self, grid: Grid) -> None:
        archive = Archive(grid, "director")
        archive.archiver.subscribe()
        publish(grid, 1)
        archive.archiver.unsubscribe()
        publish(grid, 2)
        assert archive.collect() == []
        publish(grid, 3)
        assert archive.collect() == [3]

    def test_its_dead_letters_go_with_it(self, grid: Grid) -> None:
        def fail(run: int) -> None:
            raise Reject("no")

        archiver = Archiver(fail, "director", url=grid.url)
        archiver.subscribe()
        publish(grid, 1, 2)
        archiver.run(burst=True)
        assert archiver.unsubscribe() == 2
        archiver.subscribe()
        assert archiver.dead_letters() == []

    def test_who_never_subscribed_may_leave(self, grid: Grid) -> None:
        publish(grid, 1)
        assert Archive(grid, "director").archiver.unsubscribe() == 0
        assert grid.count("completed") == {"ready": 1}

    def test_the_queue_of_all_cannot_be_left(self, grid: Grid) -> None:
        publish(grid, 1)
        with pytest.raises(ConfigurationError, match="everybody's"):
            Archive(grid).archiver.unsubscribe()
        assert grid.count("completed") == {"ready": 1}

    def test_not_while_it_runs(self, grid: Grid) -> None:
        archive = Archive(grid, "director")
        client = grid.flaky(archive.archiver)
        join = in_thread(archive.archiver.run)
        until(lambda: "receive" in client.calls)
        with pytest.raises(SynmanagerError, match="running"):
            archive.archiver.unsubscribe()
        archive.archiver.stop()
        join()
        archive.archiver.unsubscribe()

    def test_its_place_among_the_failures_is_forgotten(self, grid: Grid) -> None:
        told: list[str] = []
        archiver = Archiver(
            lambda run: None, "director", url=grid.url, on_failure=lambda each: told.append(each.id)
        )
        archiver.subscribe()
        archiver.unsubscribe()
        grid.put(b"no json", id="meanwhile")
        Worker({"train": lambda **job: None}, url=grid.url).run(burst=True)
        archiver.run(burst=True)
        assert told == []
        grid.put(b"no json", id="later")
        Worker({"train": lambda **job: None}, url=grid.url).run(burst=True)
        archiver.run(burst=True)
        assert told == ["later"]


class TestDeadLetters:
    @pytest.fixture
    def archiver(self, grid: Grid) -> Archiver:
        """One that has given up two results."""
        failing = iter([True, True])

        def archive(run: int) -> None:
            if next(failing, False):
                raise Reject(f"no {run}")

        archiver = Archiver(archive, "director", url=grid.url)
        archiver.subscribe()
        publish(grid, 1, 2)
        archiver.run(burst=True)
        return archiver

    def test_they_are_shown_and_put_back(self, grid: Grid, archiver: Archiver) -> None:
        assert [letter.reason for letter in archiver.dead_letters()] == ["no 1", "no 2"]
        assert archiver.redrive(1) == 1
        assert grid.count("completed-director") == {"ready": 1, "dead": 1}
        assert archiver.run(burst=True) == 1
        assert archiver.redrive() == 1

    def test_they_are_removed(self, grid: Grid, archiver: Archiver) -> None:
        assert archiver.purge_dead_letters() == 2
        assert grid.count("completed-director") == {}

    def test_so_they_are_while_it_runs(self, grid: Grid, archiver: Archiver) -> None:
        client = grid.flaky(archiver)
        join = in_thread(archiver.run)
        until(lambda: "receive" in client.calls)
        assert archiver.redrive() == 2
        until(lambda: grid.count("completed-director") == {})
        archiver.stop()
        join()

    def test_looking_subscribes_nobody(self, grid: Grid) -> None:
        stranger = Archive(grid, "stranger").archiver
        for call in (stranger.dead_letters, stranger.redrive, stranger.purge_dead_letters):
            with pytest.raises(TopologyError):
                call()
        with pytest.raises(TopologyError):
            grid.count("completed-stranger")

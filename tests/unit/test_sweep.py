"""A sweep: its results and failures as they come, also for a Director that comes back."""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from grid import Grid, in_thread

from synmanager import Reject, Sweep, Worker, current_job
from synmanager import sweep as sweep_module
from synmanager.backends.base import Entry
from synmanager.backends.memory import MemoryBackend
from synmanager.engine.session import Session
from synmanager.errors import InvalidJob, PublishRefused, SynmanagerError, Unsupported
from synmanager.journal import desk, marks, recorder
from synmanager.journal.actions import acted
from synmanager.journal.events import EVENTS, Event, write
from synmanager.journal.names import Name
from synmanager.journal.reader import Reader
from synmanager.message import Message


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNMANAGER_JOURNAL", "on")
    monkeypatch.setattr(marks, "PATIENCE", 5.0)
    monkeypatch.setattr(desk, "PATIENCE", 5.0)


def train(run: int, **_: Any) -> dict[str, Any]:
    if run % 10 == 7:
        raise Reject(f"poison {run}")
    return {"run": run, "square": run * run}


def work(grid: Grid, **options: Any) -> None:
    Worker({"train": train}, url=grid.url, **options).run(burst=True)
    recorder.flush_all(5)


def runs(count: int) -> list[dict[str, int]]:
    return [{"run": run} for run in range(count)]


def test_results_and_failures_come_with_their_jobs(grid: Grid) -> None:
    with grid.producer().sweep(runs(20), name="lr-search", priority="high") as sweep:
        assert sweep.counts() == {"queued": 20}
        assert {message.rank.name for message in grid.ready("train")} == {"HIGH"}
        join = in_thread(lambda: work(grid))
        found = {done.job["run"]: done for done in sweep.results(timeout=30)}
        join()
        assert sorted(found) == list(range(20))
        assert found[4].result == {"run": 4, "square": 16}
        assert found[4].error is None
        assert (found[17].result, found[17].error) == (None, "dead: poison 17")
        assert found[3].id == "lr-search.3"
        assert sweep.counts() == {"succeeded": 18, "dead": 2}
        assert list(sweep) == []


def test_a_director_that_comes_back_goes_on(grid: Grid) -> None:
    first = grid.producer().sweep(runs(9), name="search")
    work(grid)
    results = first.results(timeout=30)
    taken = [next(results).id for _ in range(4)]
    first.close()  # the fourth is being worked at
    with Sweep.attach("search", url=grid.url) as second:
        rest = [done.id for done in second.results(timeout=30)]
    assert sorted(taken[:3] + rest) == sorted(f"search.{n}" for n in range(9))
    with Sweep.attach("search", url=grid.url) as third:
        assert list(third) == []
    with Sweep.attach("search", url=grid.url, again=True) as fourth:
        assert len(list(fourth)) == 9
    results.close()


def test_the_dead_are_tried_again(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    with grid.producer().sweep(runs(8)) as sweep:
        work(grid)
        assert len(list(sweep.results(timeout=30))) == 8
        monkeypatch.setitem(globals(), "train", lambda run: {"run": run})
        assert sweep.retry_dead() == 1
        assert sweep.counts() == {"succeeded": 7, "queued": 1}
        work(grid)
        (done,) = sweep.results(timeout=30)
        assert (done.job, done.error) == ({"run": 7}, None)
        assert sweep.retry_dead() == 0


def test_the_dead_keep_their_time_limit(grid: Grid) -> None:
    grid.producer().sweep(runs(8), "mine", time_limit=60).close()
    work(grid)
    with Sweep.attach("mine", url=grid.url) as sweep:
        assert sweep.retry_dead() == 1
        limits: list[float | None] = []

        def note(**_: Any) -> None:
            limits.append(current_job().time_limit)

        Worker({"train": note}, url=grid.url).run(burst=True)
        assert limits == [60]


def test_those_of_the_dead_that_are_queued_again_are_told_of(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(self: Session, exchange: str, key: str, messages: list[Message], **_: Any) -> int:
        publish(self, exchange, key, messages[:1])
        raise PublishRefused("full", unconfirmed=messages[1:])

    publish = Session.publish
    with grid.producer().sweep(runs(18), "mine") as sweep:
        work(grid)
        assert len(list(sweep.results(timeout=30))) == 18
        monkeypatch.setattr(Session, "publish", half)
        with pytest.raises(PublishRefused):
            sweep.retry_dead()
        assert grid.count() == {"ready": 1, "dead": 2}
        assert sweep.counts() == {"succeeded": 16, "dead": 1, "queued": 1}


def test_what_is_left_is_cancelled(grid: Grid) -> None:
    with grid.producer().sweep(runs(6)) as sweep:
        grid.consumer().poll_message(train)
        sweep.cancel()
        work(grid)
        found = list(sweep.results(timeout=30))
        assert len(found) == 6
        assert sweep.counts() == {"succeeded": 1, "cancelled": 5}
        assert {done.error for done in found} == {None, "cancelled: cancelled before it ran"}
    assert grid.count() == {}


def test_what_somebody_purges_has_ended(grid: Grid) -> None:
    with grid.producer().sweep(runs(6)) as sweep:
        grid.consumer().poll_message(train)
        recorder.flush_all(5)
        assert grid.consumer().purge() == 5
        found = list(sweep.results(timeout=30))
        assert sweep.counts() == {"succeeded": 1, "cancelled": 5}
        assert [done.result for done in found if done.error is None] == [{"run": 0, "square": 0}]
        errors = {done.error for done in found if done.error}
        assert len(errors) == 1
        assert errors.pop().startswith("cancelled: purged from its queue by ")
        assert list(sweep) == []
    with Sweep.attach(sweep.name, url=grid.url, again=True) as again:
        assert {done.id: done for done in again} == {done.id: done for done in found}


def test_one_that_is_tried_again_and_due_is_purged_with_the_rest(grid: Grid) -> None:
    """Where a purge leaves what is delayed, it takes what was."""

    def tell(*events: Event) -> None:
        grid.client().record(EVENTS, list(map(write, events)))

    with grid.producer().sweep(runs(2), "mine") as sweep:
        now = time.time()
        for number, due_at in enumerate((now + 1, now + 100)):
            about = {"id": f"mine.{number}", "phase": "train", "attempt": 1, "rank": "normal"}
            times = {"submitted_at": sweep.submitted_at, "due_at": due_at}
            tell(Event("job.retried", "w/1/x", now, "", {**about, **times, "sweep": "mine"}))
        assert sweep.counts() == {"retrying": 2}
        tell(*acted("purge_queue", "me", now + 2, 1, who="me", queue="train", delayed=False))
        assert sweep.counts() == {"cancelled": 1, "retrying": 1}
        assert next(sweep.results(timeout=30)).id == "mine.0"


@pytest.mark.parametrize("deletes", [True, False], ids=["at-the-broker", "by-a-worker"])
def test_one_that_somebody_deletes_has_ended(
    deletes: bool, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MemoryBackend, "features", replace(MemoryBackend.features, deletes=deletes))
    with grid.producer().sweep(runs(3), "mine") as sweep, grid.producer() as other:
        assert other.delete("mine.1")
        for stranger in ("mine.01", "mine.3", "mine.x", "mine", "other.1", "mine.-1"):
            assert not sweep._has(stranger)
        work(grid)
        found = {done.id: done.error for done in sweep.results(timeout=30)}
        assert found.pop("mine.1") in (
            "cancelled: deleted from its queue",
            "cancelled: cancelled before it ran",
        )
        assert found == {"mine.0": None, "mine.2": None}
        assert sweep.counts() == {"succeeded": 2, "cancelled": 1}


def test_what_was_taken_before_a_purge_and_is_told_late_comes_with_its_result(grid: Grid) -> None:
    with grid.producer().sweep(runs(2)) as sweep:
        purge = acted("purge_queue", "me", time.time(), 2, who="me", queue="train")
        grid.client().record(EVENTS, list(map(write, purge)))
        assert {done.result for done in sweep.results(timeout=30)} == {None}
        work(grid)  # they were not in the queue, but in a worker's hands
        found = [done.result for done in sweep.results(timeout=30)]
        assert found == [{"run": 0, "square": 0}, {"run": 1, "square": 1}]
        assert sweep.counts() == {"succeeded": 2}


def test_long_results_come_whole(grid: Grid) -> None:
    text = '"é' * 100_000
    with grid.producer().sweep([{"text": text}]) as sweep:
        Worker({"train": lambda text: {"back": text}}, url=grid.url).run(burst=True)
        (done,) = sweep.results(timeout=30)
        assert done.job == {"text": text}
        assert done.result == {"back": text}


def test_results_in_time(grid: Grid) -> None:
    with grid.producer().sweep(runs(1)) as sweep, pytest.raises(TimeoutError):
        next(sweep.results(timeout=0.1))


@pytest.mark.parametrize("name", [None, "mine"], ids=["no-name", "a-name"])
def test_a_new_one_costs_no_reading(
    name: str | None, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a busy grid's journal, the last hour alone takes longer than to submit the jobs."""
    reads: list[float] = []
    read = Reader._read

    def note(self: Reader, wait: float) -> bool:
        reads.append(wait)
        return read(self, wait)

    monkeypatch.setattr(Reader, "_read", note)
    with grid.producer().sweep(runs(3), name) as sweep:
        assert not reads
        assert sweep.counts() == {"queued": 3}
    assert reads


def test_who_attaches_reads_from_its_beginning_on(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid.producer().sweep(runs(3), "mine").close()
    read_from: list[float] = []
    make = Reader.__init__

    def note(self: Reader, session: Any, take: Any, after: float = 0.0) -> None:
        read_from.append(after)
        make(self, session, take, after)

    monkeypatch.setattr(Reader, "__init__", note)
    with Sweep.attach("mine", url=grid.url) as sweep:
        assert sweep.counts() == {"queued": 3}
        (after,) = read_from
        assert sweep.submitted_at - 3601 < after < sweep.submitted_at


def test_of_two_that_begin_at_once_one_has_the_name(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=30)
    look = Name.look
    looked: set[Name] = set()

    def look_at_once(self: Name) -> Entry | None:
        found = look(self)
        if self not in looked:
            looked.add(self)
            both.wait()
        return found

    monkeypatch.setattr(Name, "look", look_at_once)
    begun: list[Sweep] = []

    def begin() -> None:
        with suppress(InvalidJob):
            begun.append(grid.producer().sweep(runs(3), "mine"))

    for join in [in_thread(begin) for _ in range(2)]:
        join()
    (sweep,) = begun
    with sweep:
        assert len(grid.ready("train")) == 3
        work(grid)
        assert len(list(sweep.results(timeout=30))) == 3


def test_who_comes_while_a_name_is_being_taken_does_not_take_it(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep's name is taken first, and what it begins is told then."""
    record, producer = MemoryBackend.record, grid.producer()
    second: list[Callable[[], None]] = []
    is_awaited = threading.Event()

    def record_and_wait(self: MemoryBackend, log: str, entries: Sequence[bytes]) -> None:
        is_first = log == EVENTS and not second
        if is_first:
            second.append(in_thread(begin))
            assert is_awaited.wait(30)
        record(self, log, entries)

    def begin() -> None:
        with pytest.raises(InvalidJob, match="a sweep 'mine' already, of 3 jobs"):
            grid.producer().sweep(runs(4), "mine")

    until = Reader.until

    def note(self: Reader, *about: Any) -> bool:
        is_awaited.set()
        return until(self, *about)

    monkeypatch.setattr(sweep_module, "_BEGINS", 30.0)
    monkeypatch.setattr(Reader, "until", note)
    monkeypatch.setattr(MemoryBackend, "record", record_and_wait)
    with producer.sweep(runs(3), "mine"):
        second[0]()
    assert grid.count() == {"ready": 3}


def test_one_that_did_not_quite_begin_is_begun_by_who_comes_next(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "_BEGINS", 0.1)
    record = MemoryBackend.record

    def die(self: MemoryBackend, log: str, entries: Sequence[bytes]) -> None:
        if log == EVENTS:
            raise KeyboardInterrupt
        record(self, log, entries)

    producer = grid.producer()
    with monkeypatch.context() as death:
        death.setattr(MemoryBackend, "record", die)
        with pytest.raises(KeyboardInterrupt):
            producer.sweep(runs(3), "mine")
    with pytest.raises(InvalidJob, match="knows no sweep"):
        Sweep.attach("mine", url=grid.url)
    with producer.sweep(runs(4), "mine") as sweep, Sweep.attach("mine", url=grid.url) as same:
        work(grid)
        assert len(list(sweep.results(timeout=30))) == 4
        assert same.counts() == {"succeeded": 4}


def test_a_name_is_for_one(grid: Grid) -> None:
    with grid.producer().sweep(runs(1), name="mine"), pytest.raises(InvalidJob, match="already"):
        grid.producer().sweep(runs(1), name="mine")
    with pytest.raises(InvalidJob, match="letters"):
        grid.producer().sweep(runs(1), name="a b")
    with pytest.raises(InvalidJob, match="knows no sweep"):
        Sweep.attach("other", url=grid.url)


def test_a_submission_that_was_cut_off_is_finished(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = grid.producer()
    publish = type(producer)._publish

    def half(self: Any, session: Any, messages: list[Any], delay: Any = 0.0) -> int:
        publish(self, session, messages[:3], delay)
        raise KeyboardInterrupt

    with monkeypatch.context() as cut:
        cut.setattr(type(producer), "_publish", half)
        with pytest.raises(KeyboardInterrupt):
            producer.sweep(runs(6), name="cut")
    with pytest.raises(SynmanagerError, match="cut off"):
        Sweep.attach("cut", url=grid.url)
    grid.consumer().poll_message(train)
    with producer.sweep(runs(6), name="cut") as sweep:
        assert grid.count() == {"ready": 5}
        work(grid)
        assert len(list(sweep.results(timeout=30))) == 6


def test_where_there_is_no_journal(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNMANAGER_JOURNAL", "off")
    with pytest.raises(Unsupported):
        grid.producer().sweep(runs(1))


def test_a_bar_on_a_terminal(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    with grid.producer().sweep(runs(8)) as sweep:
        work(grid)
        monkeypatch.setattr(sys, "stderr", screen)
        list(sweep)
    assert "8/8 1 failed" in screen.getvalue()

"""``Archiver(on_failure=…)``: a job that was given up is told of, once as a rule, and never at a
result's expense."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from grid import Grid, in_thread, until

from synmanager import Archiver, Failure, Reject, Worker
from synmanager.backends.memory import MemoryBackend
from synmanager.errors import AccessRefused, InvalidCallback, Unsupported
from synmanager.journal.events import EVENTS, PLACES, Event, read, write


class Told:
    """An Archiver that remembers its results and failures."""

    def __init__(
        self,
        grid: Grid,
        subscriber: str | None = "director",
        then: Callable[[Failure], object] = lambda failure: None,
        **options: Any,
    ) -> None:
        self.results: list[int] = []
        self.failures: list[Failure] = []
        self._then = then

        def told(failure: Failure) -> object:
            self.failures.append(failure)
            return self._then(failure)

        self.archiver = Archiver(
            lambda run: self.results.append(run),
            subscriber,
            url=grid.url,
            on_failure=told,
            **options,
        )

    @property
    def ids(self) -> list[str]:
        return [failure.id for failure in self.failures]

    def burst(self) -> list[str]:
        self.archiver.run(burst=True)
        return self.ids


def die(grid: Grid, *ids: str, **job: Any) -> None:
    """Have jobs of these ids given up."""
    producer = grid.producer()
    for each in ids:
        producer.submit({"run": 1, **job}, job_id=each)

    def reject(**job: Any) -> None:
        raise Reject("no such project")

    Worker({"train": reject}, url=grid.url).run(burst=True)


def record(grid: Grid, *events: Event, log: str = EVENTS) -> None:
    grid.client().record(log, [write(event) for event in events])


def place_of(grid: Grid, subscriber: str = "completed-director") -> list[Any]:
    entries = grid.client().replay(PLACES)
    events = [event for entry in entries for event in read(entry.data)]
    return [event.data.get("position") for event in events if event.subject == subscriber]


def test_a_failure_is_told_with_all_that_is_known(grid: Grid) -> None:
    told = Told(grid)
    told.archiver.subscribe()

    def fail(run: int) -> None:
        raise OSError("disk full")

    grid.producer().submit({"run": 7}, job_id="mine", priority="high")
    Worker({"train": fail}, max_attempts=1, url=grid.url).run(burst=True)
    assert told.burst() == ["mine"]
    (failure,) = told.failures
    assert (failure.phase, failure.rank, failure.attempt) == ("train", "high", 1)
    assert failure.reason == "OSError: disk full"
    assert 'raise OSError("disk full")' in failure.traceback
    assert failure.job == {"run": 7}
    assert failure.sweep is None
    assert failure.submitted_at is not None
    assert failure.started_at is not None
    assert failure.submitted_at <= failure.started_at <= failure.died_at
    assert failure.worker.count("/") == 2


def test_each_is_told_once_and_from_the_first_subscription_on(grid: Grid) -> None:
    die(grid, "before")
    first = Told(grid)
    first.archiver.subscribe()
    die(grid, "a", "b")
    assert first.burst() == ["a", "b"]
    assert first.burst() == ["a", "b"]
    die(grid, "c")
    again = Told(grid)
    assert again.burst() == ["c"]


def test_what_died_while_nobody_ran_is_told_at_the_next_run(grid: Grid) -> None:
    told = Told(grid)
    assert told.burst() == []
    die(grid, "meanwhile")
    assert told.burst() == ["meanwhile"]


def test_without_a_name_it_is_told_of_what_happens_while_it_runs(grid: Grid) -> None:
    die(grid, "before")
    told = Told(grid, None)
    assert told.burst() == []
    die(grid, "between")
    join = in_thread(told.archiver.run)
    until(lambda: told.archiver._failures is not None and told.archiver._failures._after)
    die(grid, "while")
    until(lambda: told.ids == ["while"])
    told.archiver.stop()
    join()
    assert place_of(grid, "completed") == []


def test_results_and_failures_come_to_one_thread_between_each_other(grid: Grid) -> None:
    threads: set[int] = set()
    told = Told(grid, then=lambda failure: threads.add(threading.get_ident()))
    told.archiver.subscribe()
    join = in_thread(told.archiver.run)
    die(grid, "a")
    grid.producer("completed").process(run=1)
    until(lambda: told.ids == ["a"] and told.results == [1])
    die(grid, "b")
    until(lambda: told.ids == ["a", "b"])
    told.archiver.stop()
    assert join() == 1
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_a_result_is_acknowledged_before_a_failure_is_told(grid: Grid) -> None:
    """Telling may take long, and nobody renews the lease of what is done."""
    seen: list[dict[str, int]] = []
    told = Told(grid, then=lambda failure: seen.append(grid.count("completed-director")))
    told.archiver.subscribe()
    failures = told.archiver._failures
    assert failures is not None

    def archived(kwargs: dict[str, Any]) -> None:
        die(grid, "a")
        until(lambda: failures.is_due)

    told.archiver._handlers = {"completed-director": archived}
    grid.producer("completed").process(run=1)
    join = in_thread(told.archiver.run)
    until(lambda: told.ids == ["a"])
    told.archiver.stop()
    join()
    assert seen == [{}]


@pytest.mark.parametrize(
    "came",
    [RuntimeError("no mail today"), Reject("no"), SystemExit(3), GeneratorExit()],
    ids=lambda error: type(error).__name__,
)
def test_whatever_it_raises_is_logged_and_the_next_is_told(
    grid: Grid, came: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(failure: Failure) -> None:
        if failure.id == "a":
            raise came

    told = Told(grid, then=fail)
    told.archiver.subscribe()
    die(grid, "a", "b")
    grid.producer("completed").process(run=1)
    caplog.set_level(logging.ERROR)
    caplog.clear()
    assert told.burst() == ["a", "b"]
    assert told.results == [1]
    (line,) = [each for each in caplog.messages if "on_failure" in each]
    assert "a of train" in line
    assert told.burst() == ["a", "b"]


def test_work_that_it_returns_and_does_not_do_is_told_in_the_log(
    grid: Grid, caplog: pytest.LogCaptureFixture
) -> None:
    async def mail() -> None:
        raise AssertionError

    told = Told(grid, then=lambda failure: mail())
    told.archiver.subscribe()
    die(grid, "a")
    told.burst()
    assert any("coroutine" in message for message in caplog.messages)


def test_ctrl_c_ends_the_run_and_the_failure_is_told_again(grid: Grid) -> None:
    def interrupt(failure: Failure) -> None:
        if len(told.failures) == 1:
            raise KeyboardInterrupt

    told = Told(grid, then=interrupt)
    told.archiver.subscribe()
    die(grid, "a")
    with pytest.raises(KeyboardInterrupt):
        told.archiver.run(burst=True)
    assert told.burst() == ["a", "a"]


def test_what_is_left_when_it_is_stopped_is_told_next_time(grid: Grid) -> None:
    told = Told(grid, then=lambda failure: told.archiver.stop())
    told.archiver.subscribe()
    die(grid, "a", "b")
    assert told.burst() == ["a"]
    assert told.burst() == ["a", "b"]


def test_an_event_that_was_recorded_twice_is_told_once(grid: Grid) -> None:
    told = Told(grid)
    told.archiver.subscribe()
    die(grid, "a")
    entry = grid.client().replay(EVENTS)[-1].data
    grid.client().record(EVENTS, [entry, entry])
    assert told.burst() == ["a"]


def test_its_own_results_that_died_are_told_and_no_other_subscriber_s(grid: Grid) -> None:
    told = Told(grid, max_attempts=1)
    told.archiver.subscribe()
    others = [Archiver(lambda run: None, name, url=grid.url) for name in ("other", None)]
    others[0].subscribe()
    grid.producer("completed").process(wrong=1)  # none of the callbacks takes that
    for other in others:
        other.run(burst=True)
    told.burst()
    assert [(each.phase, each.job) for each in told.failures] == [
        ("completed-director", {"wrong": 1})
    ]


def test_a_job_that_is_long_or_none_is_left_out(grid: Grid) -> None:
    told = Told(grid)
    told.archiver.subscribe()
    die(grid, "long", text="x" * 5_000)
    grid.put(b"no json")
    Worker({"train": lambda **job: None}, url=grid.url).run(burst=True)
    told.burst()
    assert [each.job for each in told.failures] == [None, None]


def test_a_job_is_left_out_where_parameters_are_nobody_s_business(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNMANAGER_JOURNAL_PARAMETERS", "off")
    told = Told(grid)
    told.archiver.subscribe()
    die(grid, "mine", password="secret")
    told.archiver.run(burst=True)
    assert [each.job for each in told.failures] == [None]


def test_a_sweep_s_job_is_told_with_its_sweep(grid: Grid) -> None:
    told = Told(grid)
    told.archiver.subscribe()
    sweep = grid.producer().sweep([{"run": 1}], name="mine")

    def reject(run: int) -> None:
        raise Reject("no")

    Worker({"train": reject}, url=grid.url).run(burst=True)
    sweep.close()
    told.burst()
    assert [(each.sweep, each.job) for each in told.failures] == [("mine", {"run": 1})]


def test_what_strangers_write_into_the_log_is_passed_over(grid: Grid) -> None:
    told = Told(grid)
    told.archiver.subscribe()
    grid.client().record(EVENTS, [b"?", b"[]", b'{"type": "synmanager.job.died", "data": {}}'])
    record(grid, Event("job.died", "me", 1.0, "train/x", {"id": "x", "phase": "train"}))
    record(grid, Event("archive.place", "me", 1.0, "completed-else", {"position": 7}), log=PLACES)
    die(grid, "a")
    assert told.burst() == ["a"]


def test_a_place_that_moves_on_is_kept_though_nothing_is_told(grid: Grid) -> None:
    told = Told(grid)
    told.archiver.subscribe()
    (begun,) = place_of(grid)
    grid.producer().submit({"run": 1})
    told.burst()
    assert place_of(grid)[-1] != begun


def test_a_queue_of_failures_does_not_grow_while_a_result_takes_long(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    from synmanager.journal import failures

    monkeypatch.setattr(failures, "_MOST", 5)
    monkeypatch.setattr(failures, "_LIMIT", 1)
    told = Told(grid)
    told.archiver.subscribe()
    following = told.archiver._failures
    assert following is not None
    following.open()
    ids = [f"job-{number}" for number in range(20)]
    for each in ids:
        die(grid, each)
    until(lambda: len(following._pending) > 5)
    following.tell(lambda: len(told.ids) == 3)
    assert told.ids == ids[:3]
    following.close()
    assert told.burst() == ids


class TestJournalTrouble:
    def test_a_broker_without_a_journal_is_refused_at_once(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dataclasses import replace

        features = replace(MemoryBackend.features, journal=False)
        monkeypatch.setattr(MemoryBackend, "features", features)
        with pytest.raises(Unsupported, match="memory does not keep"):
            Archiver(print, url="memory", on_failure=print)

    def test_so_is_one_that_is_switched_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SYNMANAGER_JOURNAL", "off")
        with pytest.raises(Unsupported, match="SYNMANAGER_JOURNAL"):
            Archiver(print, url="memory", on_failure=print)

    def test_a_forbidden_journal_costs_no_result_and_is_one_warning(
        self, grid: Grid, caplog: pytest.LogCaptureFixture
    ) -> None:
        told = Told(grid)
        failures = told.archiver._failures
        assert failures is not None
        told.archiver._session.open()
        told.archiver._session.close()
        client = _Forbidden(failures._session.backend.address, grid.broker)
        failures._session.backend = client
        grid.client()
        join = in_thread(told.archiver.run)
        until(lambda: client.refusals > 0)
        grid.producer("completed").process(run=1)
        until(lambda: told.results == [1])
        told.archiver.stop()
        assert join() == 1
        warnings = [each for each in caplog.messages if "failures are not told" in each]
        assert len(warnings) == 1
        grid.producer("completed").process(run=2)
        assert told.archiver.run(burst=True) == 1


class _Forbidden(MemoryBackend):
    refusals = 0

    def replay(self, *args: Any, **options: Any) -> Any:
        self.refusals += 1
        raise AccessRefused("not for you")


@pytest.mark.parametrize(
    "callback", [lambda: None, lambda one, two: None, 7], ids=["none", "two", "number"]
)
def test_what_takes_no_failure_is_refused(callback: Any) -> None:
    with pytest.raises(InvalidCallback):
        Archiver(print, url="memory", on_failure=callback)


def test_a_coroutine_function_is_refused() -> None:
    async def tell(failure: Failure) -> None:
        raise AssertionError

    with pytest.raises(InvalidCallback, match="coroutine"):
        Archiver(print, url="memory", on_failure=tell)

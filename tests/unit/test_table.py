"""The table in ARCHITECTURE.md, executed: what comes at which step, and what becomes of the job.

Nothing here asks the code what it would do. A backend raises, or a callback does, and what became
of the job is seen from the broker, from what was called and from what ``run`` raised.
"""

from __future__ import annotations

import itertools
import re
import signal
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from grid import Bench, FlakyBackend, Grid, in_thread, until

from synmanager import Worker, current_job, errors
from synmanager.clock import ManualClock
from synmanager.engine.outcomes import Step
from synmanager.engine.results import Results
from synmanager.errors import AccessRefused, BrokerUnavailable, Reject, Retry
from synmanager.message import DEFAULT_MAX_BYTES, SCHEMA
from synmanager.phases import EVALUATE

ARCHITECTURE = Path(__file__).parents[2] / "ARCHITECTURE.md"
ENDS = {"again", "uncounted", "wait", "keep", "bury", "end", "—"}
RESULT = {"loss": 0.5}

#: Rows that are no error's own, by how they begin.
RETURNED = "a mapping"
NOT_RUN = "an awaitable"
UNFIT = "a job that nobody can read"
UNCOUNTED_RETRY = "`Retry(count=False)`"
LOST = "`LeaseLost`, once"
CANCELLED = "`Cancelled`, once"
STOPPING = "what is `again`"
REFUSED_AGAIN = "a login that worked before"
OTHER = "any other `Exception`"
HANDLERS = "`SystemExit`, `GeneratorExit`"
LEAVING = "`SystemExit`, once"
INTERRUPT = "`KeyboardInterrupt`"


def read_table() -> dict[str, dict[str, str]]:
    """What comes: step: end; without the marks of notes."""
    _, section = ARCHITECTURE.read_text("utf-8").split("## What comes, and what becomes of the job")
    section = section.split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    steps = rows[0][1:]
    return {
        row[0]: dict(zip(steps, (cell.split()[0] for cell in row[1:]), strict=True))
        for row in rows[2:]
    }


TABLE = read_table()


def row(beginning: str) -> str:
    (found,) = [label for label in TABLE if label.startswith(beginning)]
    return found


NOT_ERRORS = {
    row(beginning)
    for beginning in (
        RETURNED, NOT_RUN, UNFIT, UNCOUNTED_RETRY, LOST, CANCELLED, STOPPING, REFUSED_AGAIN, OTHER,
        HANDLERS, LEAVING, INTERRUPT,
    )
}  # fmt: skip


def rows_of(name: str) -> list[str]:
    """The rows of an error of ours."""
    return [label for label in TABLE if label not in NOT_ERRORS and f"`{name}`" in label]


class TestTheTable:
    def test_has_one_row_for_every_error(self) -> None:
        assert [name for name in errors.__all__ if len(rows_of(name)) != 1] == []

    def test_has_no_other_rows(self) -> None:
        names = {label: re.findall(r"`(\w+)`", label) for label in TABLE}
        assert {label for label in TABLE if not any(map(rows_of, names[label]))} <= NOT_ERRORS
        assert set(itertools.chain(*names.values())) - set(errors.__all__) == {
            "None", "Future", "again", "Exception", "SystemExit", "GeneratorExit",
            "KeyboardInterrupt",
        }  # fmt: skip

    def test_has_a_column_for_every_step(self) -> None:
        for cells in TABLE.values():
            assert set(cells) == {step.value for step in Step}

    def test_knows_six_ends(self) -> None:
        assert {end for cells in TABLE.values() for end in cells.values()} == ENDS


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("synmanager.engine.session._backoff", lambda: itertools.repeat(0.01))
    monkeypatch.setattr("synmanager.engine.session.LOGIN_PAUSE", 0.01)


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    before = signal.signal(signal.SIGUSR1, ring)
    yield
    signal.signal(signal.SIGUSR1, before)


def ring(*_: Any) -> None:
    raise TimeoutError("planted")


def from_handler() -> BaseException:
    """What a signal handler of the caller's raises."""
    try:
        signal.raise_signal(signal.SIGUSR1)
    except TimeoutError as error:
        return error
    raise AssertionError("no signal came")


class ClientLibraryError(Exception):
    """Of a type that nobody above a driver knows."""


Plant = Callable[[], BaseException]


def _planting(error: type[BaseException]) -> Plant:
    return lambda: error("planted")


#: What a backend raises: its name, the row, and how it is made.
PLANTED: list[tuple[str, str, Plant]] = [
    *((name, rows_of(name)[0], _planting(getattr(errors, name))) for name in errors.__all__),
    *(
        (error.__name__, row(OTHER), _planting(error))
        for error in (ClientLibraryError, OSError, AssertionError, TimeoutError, MemoryError)
    ),
    ("SystemExit", row(HANDLERS), _planting(SystemExit)),
    ("GeneratorExit", row(HANDLERS), _planting(GeneratorExit)),
    ("from a handler", row(HANDLERS), from_handler),
    ("KeyboardInterrupt", row(INTERRUPT), _planting(KeyboardInterrupt)),
]

#: A driver should raise no such thing. The second in one call closes the connection.
FOREIGN = {
    "Retry", "Reject", "ClientLibraryError", "OSError", "AssertionError", "TimeoutError",
    "MemoryError",
}  # fmt: skip


def raised_by(call: Callable[..., Any], *args: Any, **options: Any) -> BaseException | None:
    try:
        call(*args, **options)
    except BaseException as error:
        return error
    return None


class Scene:
    """One job on its way, and a backend that raises at one step of it."""

    def __init__(self, grid: Grid, name: str, plant: Plant) -> None:
        self.grid = grid
        self.name = name
        self.error = plant()
        results = Results(EVALUATE.exchange.name, EVALUATE.routing_key, DEFAULT_MAX_BYTES)
        self.bench = Bench(grid, results=results, retry_delay=60)
        self.runs = 0

    @property
    def times(self) -> int:
        """How often the error comes, where it may be waited out."""
        return 1 if self.name in FOREIGN else 3

    def run(self, **options: Any) -> BaseException | None:
        """Run what is ready; return what was raised."""
        return raised_by(self.bench.run, self._work, **options)

    def outcome(self, raised: BaseException | None, settled: dict[str, int]) -> str:
        """What became of the job that the callback had run.

        Args:
            raised: by the run in which the error came.
            settled: what is in the queue where the step has been done.
        """
        if raised is not None:
            assert raised is self.error
            end = "end"
        elif self.grid.count() == {"leased": 1}:
            end = "keep"
        elif self.grid.count() == settled:
            end = "wait"
        else:
            ((_, reason, _),) = self.grid.dead()
            assert reason.endswith(f"{type(self.error).__name__}: planted")
            end = "bury"
        if end in ("end", "keep"):  # what has run does not run again here
            self.bench.backend.failures.clear()
            self.grid.crash_holders()
            assert self.run() is None
            assert self.grid.count() == settled
        assert self.runs == 1
        assert len(self.grid.ready("evaluate")) == (self._returns and end != "bury")
        return end

    def _work(self, kwargs: dict[str, Any]) -> Any:
        self.runs += 1
        return RESULT

    _returns = True


class Failing(Scene):
    """Its callback fails."""

    _returns = False

    def __init__(self, grid: Grid, name: str, plant: Plant, failure: Exception) -> None:
        super().__init__(grid, name, plant)
        self._failure = failure

    def _work(self, kwargs: dict[str, Any]) -> Any:
        self.runs += 1
        raise self._failure


def at_take(grid: Grid, name: str, plant: Plant) -> str:
    """As a worker looks for the next job, and acknowledges the last one by that."""
    scene = Scene(grid, name, plant)
    grid.put({})
    scene.bench.backend.fail("receive", None, *[scene.error] * scene.times)
    return scene.outcome(scene.run(), settled={})


def at_publish(grid: Grid, name: str, plant: Plant) -> str:
    return at_result(grid, name, plant, "publish")


def at_result(grid: Grid, name: str, plant: Plant, method: str) -> str:
    scene = Scene(grid, name, plant)
    grid.put({})
    scene.bench.backend.fail(method, *[scene.error] * scene.times)
    return scene.outcome(scene.run(), settled={})


def at_ack(grid: Grid, name: str, plant: Plant) -> str:
    scene = Scene(grid, name, plant)
    grid.put({})
    scene.bench.backend.fail("ack", *[scene.error] * scene.times)
    return scene.outcome(scene.run(max_jobs=1), settled={})


def at_nack(grid: Grid, name: str, plant: Plant) -> str:
    scene = Failing(grid, name, plant, ZeroDivisionError("its own"))
    grid.put({})
    scene.bench.backend.fail("nack", *[scene.error] * scene.times)
    return scene.outcome(scene.run(max_jobs=1), settled={"delayed": 1})


def at_bury(grid: Grid, name: str, plant: Plant) -> str:
    scene = Failing(grid, name, plant, Reject("its own"))
    grid.put({})
    scene.bench.backend.fail("bury", *[scene.error] * scene.times)
    return scene.outcome(scene.run(max_jobs=1), settled={"dead": 1})


def at_renew(grid: Grid, name: str, plant: Plant) -> str:
    """As the lease is renewed beside the callback. No signal handler runs there."""
    grid.broker.clock = ManualClock()  # the lease runs out for nobody
    bench = Bench(grid, lease=0.006)
    bench.backend.fail("renew", *[plant()] * (1 if name in FOREIGN else 3))
    grid.put({})
    ends: list[str] = []

    def work(kwargs: dict[str, Any]) -> None:
        job = current_job()
        assert job is not None
        until(lambda: job.lease_lost or bench.backend.calls.count("renew") >= 5)
        ends.append("keep" if job.lease_lost else "wait")

    assert bench.run(work, max_jobs=1) == 1
    assert grid.count() == {}
    return ends[0]


def at_give_back(grid: Grid, name: str, plant: Plant) -> str:
    """As a job goes back that came together with the request to stop."""
    scene = Scene(grid, name, plant)
    grid.put({})

    def receive(*arguments: Any) -> Any:
        delivery = FlakyBackend.receive(scene.bench.backend, *arguments)
        scene.bench.runner.stop()
        return delivery

    scene.bench.backend.__dict__["receive"] = receive
    scene.bench.backend.fail("nack", scene.error)
    raised = scene.run()
    assert (scene.runs, grid.count()) == (0, {"leased": 1})
    assert raised in (None, scene.error)
    return "keep" if raised is None else "end"


def at_call(grid: Grid, name: str, plant: Plant) -> str:
    for times in (3, 1):
        error = plant()
        producer = grid.producer()
        client = grid.flaky(producer)
        client.fail("publish", *[error] * times)
        raised = raised_by(producer.process)
        if raised is None:
            return "wait" if times == 3 else "wait, once"
        causes = (raised, raised.__cause__, getattr(raised.__cause__, "__cause__", None))
        assert error in causes
    assert client.calls == ["publish"]
    return "end"


def at_open(grid: Grid, name: str, plant: Plant) -> str:
    error = plant()
    worker = Worker({"train": lambda **_: None}, url=grid.url)
    client = grid.flaky(worker)
    client.fail("open", *[error] * 3)
    raised = raised_by(worker.run, burst=True)
    if raised is None:
        return "wait"
    assert raised is error
    assert client.calls == ["open"]
    return "end"


def at_run(grid: Grid, name: str, plant: Plant) -> str:
    return after(grid, lambda kwargs: throw(plant()))


STEPS: dict[Step, Callable[[Grid, str, Plant], str]] = {
    Step.CALL: at_call,
    Step.OPEN: at_open,
    Step.TAKE: at_take,
    Step.RENEW: at_renew,
    Step.RUN: at_run,
    Step.PUBLISH: at_publish,
    Step.ACK: at_ack,
    Step.NACK: at_nack,
    Step.BURY: at_bury,
    Step.GIVE_BACK: at_give_back,
}


def throw(error: BaseException) -> Any:
    raise error


def after(grid: Grid, work: Callable[[dict[str, Any]], Any], **message: Any) -> str:
    """What becomes of a job whose callback does something."""
    bench = Bench(grid)
    if not grid.count():
        grid.put({"run": 1}, **message)
    return became(grid, raised_by(bench.run, work, max_jobs=1))


def became(grid: Grid, raised: BaseException | None) -> str:
    """What became of a job whose callback has ended, in a run that raised something or not."""
    if raised is None and not grid.count():
        return "keep"
    if raised is None and grid.count() == {"dead": 1}:
        return "bury"
    grid.clock.advance(3600)
    delivery = grid.client().receive(["train"], 0)
    assert delivery is not None
    if raised is None:
        return "uncounted" if delivery.attempt == 1 else "again"
    assert str(raised) == "planted"
    assert delivery.attempt == 1
    return "end"


@pytest.mark.parametrize("step", Step, ids=lambda step: step.value)
@pytest.mark.parametrize(("name", "label", "plant"), PLANTED, ids=[name for name, _, _ in PLANTED])
def test_what_is_raised(name: str, label: str, plant: Plant, step: Step, grid: Grid) -> None:
    expected = TABLE[label][step.value]
    if expected == "—":  # in the thread that renews: signals are not for it
        assert step is Step.RENEW
        assert not isinstance(plant(), Exception) or label == row(HANDLERS)
        return
    seen = STEPS[step](grid, name, plant)
    assert seen.split(",")[0] == expected


@pytest.mark.parametrize(("name", "label", "plant"), PLANTED, ids=[name for name, _, _ in PLANTED])
def test_what_is_raised_by_the_look_at_the_lease_before_a_result(
    name: str, label: str, plant: Plant, grid: Grid
) -> None:
    assert at_result(grid, name, plant, "renew") == TABLE[label][Step.PUBLISH.value]


def test_a_call_that_waits_for_what_was_declared_or_is_unknown_repeats_once(grid: Grid) -> None:
    text = ARCHITECTURE.read_text("utf-8")
    once = {
        label
        for label in TABLE
        if any(line.startswith(f"| {label} |") and "wait ²" in line for line in text.splitlines())
    }
    seen = {
        label
        for name, label, plant in PLANTED
        if TABLE[label]["call"] == "wait" and at_call(grid, name, plant) != "wait"
    }
    assert seen == once


@pytest.mark.parametrize("method", ["receive", "renew", "publish", "ack", "nack", "bury"])
def test_what_no_driver_raises_never_ends_a_loop(method: str, grid: Grid) -> None:
    scene = Scene(grid, "", _planting(ClientLibraryError))
    if method in ("nack", "bury"):
        failure = Reject("its own") if method == "bury" else ZeroDivisionError()
        scene = Failing(grid, "", _planting(ClientLibraryError), failure)
    grid.put({})
    scene.bench.backend.fail(method, *[scene.error] * 5)
    assert scene.run() is None
    assert scene.runs == 1
    assert "leased" not in grid.count()
    assert len(grid.ready("evaluate")) == scene._returns


@pytest.mark.parametrize("step", Step, ids=lambda step: step.value)
def test_a_login_that_is_refused_at_a_reconnection(
    step: Step, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = TABLE[row(REFUSED_AGAIN)][step.value]
    if expected == "—":
        assert step in (Step.OPEN, Step.RUN)
        return
    broken: list[FlakyBackend] = []

    def break_connection(backend: FlakyBackend) -> None:
        backend._open = False
        if not broken:
            broken.append(backend)
            backend.fail("open", AccessRefused("not yet"), AccessRefused("not yet"))

    monkeypatch.setattr(FlakyBackend, "break_connection", break_connection)
    assert STEPS[step](grid, "BrokerUnavailable", _planting(BrokerUnavailable)) == expected
    assert (broken[0].failures["open"] == []) == (expected == "wait")


def not_run() -> Iterator[int]:
    yield 1


async def coroutine() -> None:
    """Is never awaited."""


class Later(Awaitable[None]):
    def __await__(self) -> Any:
        yield


@pytest.mark.parametrize(
    "value", [RESULT, None, "loss", True, [1], KeyboardInterrupt("not raised")], ids=repr
)
def test_a_value_that_is_returned(value: object, grid: Grid) -> None:
    assert after(grid, lambda kwargs: value) == TABLE[row(RETURNED)]["run"]


@pytest.mark.parametrize("make", [not_run, coroutine, Later, Future])
def test_work_that_is_returned_and_has_not_run(make: Callable[[], object], grid: Grid) -> None:
    assert after(grid, lambda kwargs: make()) == TABLE[row(NOT_RUN)]["run"]


class TestUnfit:
    expected = TABLE[row(UNFIT)]["run"]

    @pytest.mark.parametrize("body", [b"[]", b"\xff"])
    def test_body(self, body: bytes, grid: Grid) -> None:
        grid.put(body)
        assert after(grid, lambda kwargs: None) == self.expected

    def test_schema(self, grid: Grid) -> None:
        assert after(grid, lambda kwargs: None, schema=SCHEMA + 1) == self.expected

    def test_attempts(self, grid: Grid) -> None:
        grid.aged(6, {})
        assert after(grid, lambda kwargs: None) == self.expected

    def test_arguments(self, grid: Grid) -> None:
        grid.put({"walk": 1})
        assert grid.consumer().listen_message(lambda run: run, max_jobs=1) == 1
        assert (grid.count() == {"dead": 1}) == (self.expected == "bury")


def test_a_retry_that_does_not_count(grid: Grid) -> None:
    end = after(grid, lambda kwargs: throw(Retry("planted", count=False)))
    assert end == TABLE[row(UNCOUNTED_RETRY)]["run"]


def test_lease_lost_once_it_is(grid: Grid) -> None:
    def leave(kwargs: dict[str, Any]) -> None:
        job = current_job()
        assert job is not None
        job.lease_lost = True  # by mistake, say: the broker can still say what is counted
        job.check()

    assert after(grid, leave) == TABLE[row(LOST)]["run"]


def test_a_cancelled_job_that_leaves(grid: Grid) -> None:
    def leave(kwargs: dict[str, Any]) -> None:
        job = current_job()
        assert job is not None
        job._cancelled = True
        job.check()

    assert after(grid, leave) == TABLE[row(CANCELLED)]["run"]


@pytest.mark.parametrize(("name", "label", "plant"), PLANTED, ids=[name for name, _, _ in PLANTED])
def test_what_is_raised_once_a_stop_was_asked_for(
    name: str, label: str, plant: Plant, grid: Grid
) -> None:
    expected = TABLE[label]["run"]
    if name == "SystemExit":
        expected = TABLE[row(LEAVING)]["run"]
    elif expected == "again" and name != "TimeLimit":
        expected = TABLE[row(STOPPING)]["run"]
    bench = Bench(grid)

    def stop_and_raise(kwargs: dict[str, Any]) -> None:
        in_thread(bench.runner.stop)()
        raise plant()

    grid.put({})
    assert became(grid, raised_by(bench.run, stop_and_raise)) == expected


def test_a_stop_of_the_callback_s_own_excuses_nothing(grid: Grid) -> None:
    bench = Bench(grid)

    def stop_and_fail(kwargs: dict[str, Any]) -> None:
        bench.runner.stop()
        raise ZeroDivisionError

    grid.put({})
    assert became(grid, raised_by(bench.run, stop_and_fail)) == "again"

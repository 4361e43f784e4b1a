"""Whatever anybody writes into the journal, its followers read on behind it."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from grid import Grid, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from synmanager import Worker, current_job, lookout
from synmanager.backends.memory import MemoryBackend
from synmanager.cli.watching import _line, _row
from synmanager.engine.session import Session
from synmanager.journal import events, marks
from synmanager.journal.events import CHECKPOINTS, EVENTS, MARKS, Event, read, write
from synmanager.journal.failures import Failure, Failures
from synmanager.journal.fold import Fold, at_time
from synmanager.journal.marks import Marks, cancel_mark
from synmanager.journal.reader import Reader
from synmanager.journal.tally import Tally
from synmanager.lookout import Lookout
from synmanager.settings import load_settings
from synmanager.sweep import Sweep

HUGE = 10**400  # more than a float can be, and JSON has room for it

JOB: dict[str, Any] = {
    "id": "a", "phase": "train", "submitted_at": 1e9, "rank": "high", "attempt": 1, "sweep": "s",
}  # fmt: skip
ENDED = {**JOB, "started_at": 1e9, "reason": "no", "traceback": "", "due_at": 2e9, "job": "{}"}
PURGE = {"who": "w", "queue": "train", "number": 1, "ids": ["a"], "delayed": True}
WHOLE: dict[str, dict[str, Any]] = {
    "job.submitted": {**JOB, "ids": ["a"], "delay": 1.0, "repeats": True},
    "job.started": {**JOB, "given": "{}"},
    "job.progress": {**JOB, "done": 1, "total": 2, "text": "x", "figures": {"loss": 1.0}},
    "job.renewed": {**JOB, "late": 1.0},
    "job.checkpoint": JOB,
    "job.part": {**JOB, "name": "job", "begin": 0, "text": "x"},
    "job.deleted": JOB,
    "job.retried": ENDED,
    "job.given_back": ENDED,
    "job.succeeded": {**ENDED, "result": "{}", "parts": ["job"]},
    "job.died": ENDED,
    "job.cancelled": ENDED,
    "worker.up": {"host": "h", "pid": 1, "phases": ["train"], "tags": ["t"], "version": "1"},
    "worker.idle": {},
    "worker.leaving": {"running": True},
    "sweep.begun": {"name": "s", "phase": "train", "total": 2, "submitted_at": 1e9},
    "sweep.submitted": {"name": "s"},
    "sweep.taken": {"name": "s", "ids": ["s.0"]},
    "action.purge_queue": PURGE,
    "action.redrive": PURGE,
    "action.edit": {**PURGE, "redriven": True},
    "action.cancel": {"who": "w", "ids": ["a"]},
    "archive.place": {"position": "1", "last": ""},
    "mark.saved": {"key": "k"},
    "mark.cancel": {"until": 1e9, "ids": ["a"], "sweep": "s"},
    "mark.pause": {"phase": "train", "since": 1e9, "who": "w"},
    "mark.resume": {"phase": "train", "until": 1e9},
}

ODD: tuple[Any, ...] = (
    None, True, -1, HUGE, -HUGE, 1e308, -1e308, 1e12, float("inf"), float("nan"), "", "1", "inf",
    "²", "\ud800", [], ["a"], [[]], [1, {}], {}, {"a": HUGE},
)  # fmt: skip

values = st.sampled_from(ODD) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)
times = st.sampled_from(
    ["2026-11-27T00:00:00+00:00", "0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59+00:00"]
)


@st.composite
def entries(draw: st.DrawFn) -> bytes:
    """An event as it is written, some fields of which are anything, or are not there."""
    kind = draw(st.sampled_from(sorted(WHOLE)))
    data = dict(WHOLE[kind])
    for name in draw(st.lists(st.sampled_from(sorted(data)), max_size=3)) if data else ():
        data[name] = draw(values)
    for name in draw(st.lists(st.sampled_from(sorted(data)), max_size=1)) if data else ():
        del data[name]
    form: dict[str, Any] = {
        "specversion": "1.0", "id": "x", "source": "h/1/w", "type": "synmanager." + kind,
        "time": draw(times), "subject": "s", "data": data,
    }  # fmt: skip
    for name in draw(st.lists(st.sampled_from(["source", "time", "subject", "data"]), max_size=1)):
        form[name] = draw(values)
    return json.dumps(form).encode()


class Watched:
    """What metrics are made of."""

    hears = is_up = True

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.counts: dict[str, Any] = {}

    def looking(self) -> nullcontext[None]:
        return nullcontext()


class Followers:
    """All who take events in, without anybody who would catch what they raise."""

    def __init__(self) -> None:
        session = Session(MemoryBackend(load_settings(url="memory:///malformed").address))
        self.fold = Fold()
        self.tally = Tally(self.fold, ("train", "evaluate"))
        self.tally.begin("train", "evaluate")
        self.marks = Marks(1e9)
        self.failures = Failures(session, print, lambda queue: True, None)
        self.sweep = Sweep(session, "s")
        self.told: list[Failure] = []

    def take(self, event: Event) -> None:
        self.tally.apply(event)
        self.marks._note(event, 0.0)
        self.sweep._apply(event)
        failure = self.failures._failure_of(event)
        if failure is not None:
            self.told.append(failure)
        assert _line(event)
        job = self.fold.get("a", "train")
        if job is not None:
            assert _row(at_time(job, time.time()))

    def look(self) -> None:
        """Ask for all that is asked of them."""
        now = time.time()
        for job in self.fold.jobs.values():
            assert _row(at_time(job, now))
        for worker in self.fold.workers.values():
            worker.is_there(now)
        self.marks.paused()
        self.marks.to_be_repeated()
        metrics = pytest.importorskip("synmanager.metrics")
        metrics.written(Watched(self.tally))

    def take_the_next(self) -> None:
        """Take in what is as it should be."""
        before = self.tally.submitted["evaluate"]
        about = {**JOB, "phase": "evaluate", "id": "the next", "sweep": None}
        submitted = {**about, "ids": ["the next"], "delay": 0.0}
        self.take(Event("job.submitted", "p", 1e9, "", submitted))
        self.take(Event("job.started", "the worker", 1e9, "", about))
        self.take(Event("job.died", "the worker", 1e9, "", {**about, "reason": "no"}))
        self.take(cancel_mark("c", 1e9, ids=["the next"]))
        self.take(Event("sweep.taken", "d", 1e9, "s", {"name": "s", "ids": ["the next"]}))
        self.look()
        state = self.fold.get("the next", "evaluate")
        assert state is not None
        assert (state.state, state.reason) == ("dead", "no")
        assert self.tally.submitted["evaluate"] == before + 1
        assert self.told[-1].id == "the next"
        assert "the next" in self.marks._cancelled
        assert "the next" in self.sweep._taken


@pytest.fixture
def followers() -> Iterator[Followers]:
    made = Followers()
    yield made
    made.sweep.close()


@pytest.mark.parametrize("kind", sorted(WHOLE))
def test_no_field_keeps_a_follower_from_the_next(kind: str, followers: Followers) -> None:
    for name in WHOLE[kind]:
        for value in ODD:
            for whole in ("job.submitted", "job.started"):
                followers.take(Event(whole, "h/1/w", time.time(), "s", WHOLE[whole]))
            form = events._form(Event(kind, "h/1/w", time.time(), "s", WHOLE[kind]))
            form["data"] = {**WHOLE[kind], name: value}
            for found in read(json.dumps(form).encode()):
                followers.take(found)
    followers.take_the_next()


@pytest.mark.parametrize("delay", [1e308, float("inf"), float("nan"), HUGE])
def test_what_is_delayed_for_ever_is_not_delayed(delay: float, followers: Followers) -> None:
    data = {**WHOLE["job.submitted"], "repeats": False, "delay": delay}
    followers.take(Event("job.submitted", "p", 1e9, "s", data))
    job = followers.fold.get("a", "train")
    assert delay == HUGE or job is not None
    assert job is None or (job.state, job.due_at) == ("queued", None)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(entries(), min_size=1, max_size=6))
def test_no_events_keep_a_follower_from_the_next(found: list[bytes]) -> None:
    followers = Followers()
    try:
        for entry in found:
            for event in read(entry):
                followers.take(event)
        followers.take_the_next()
    finally:
        followers.sweep.close()


@pytest.fixture(autouse=True)
def _journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNMANAGER_JOURNAL", "on")
    monkeypatch.setattr(lookout, "_WAIT", 0.05)
    monkeypatch.setattr(marks, "PATIENCE", 5.0)
    monkeypatch.setattr(events, "_passed_over", set())


@pytest.fixture
def session(grid: Grid) -> Iterator[Session]:
    made = Session(MemoryBackend(load_settings(url=grid.url).address))
    made.open()
    yield made
    made.close()


def event(kind: str, **changed: Any) -> Event:
    return Event(kind, "h/1/w", time.time(), "s", {**WHOLE[kind], **changed})


@pytest.mark.parametrize("name", ["started_at", "submitted_at", "due_at"])
def test_an_exporter_reads_on(grid: Grid, name: str) -> None:
    grid.client().record(EVENTS, [write(event("job.retried", **{name: HUGE}))])
    followed = Lookout(load_settings(url=grid.url), (), lambda text: None)
    followed.start()
    try:
        until(lambda: followed.hears, "all is read")
        grid.client().record(EVENTS, [write(event("job.retried", **{name: HUGE}))])
        grid.producer().submit({})
        until(lambda: followed.tally.submitted["train"] == 1, "the next is counted")
    finally:
        followed.stop()


def test_what_a_follower_cannot_digest_is_passed_over_and_said_once(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    taken: list[str] = []

    def take(event: Event) -> None:
        if event.type == "job.died":
            raise OverflowError("too large")
        taken.append(event.type)

    kinds = ("job.died", "job.started", "job.died", "job.progress")
    session.backend.record(EVENTS, [write(event(kind)) for kind in kinds])
    with caplog.at_level(logging.WARNING):
        Reader(session, take).catch_up()
    assert taken == ["job.started", "job.progress"]
    (said,) = (each.getMessage() for each in caplog.records)
    assert "job.died by h/1/w, OverflowError: too large" in said


def test_a_mark_without_a_sensible_time_hides_no_later_one(session: Session) -> None:
    strange = [event("mark.cancel", until=until) for until in (HUGE, float("inf"), "inf", None)]
    texts = [json.dumps(events._form(each)).encode() for each in strange]
    session.backend.record(MARKS, texts)
    session.backend.record(MARKS, [write(cancel_mark("c", 1e9, ids=["b"]))])
    found = Marks(1e9)
    found.read(session.backend)
    assert list(found._cancelled) == ["b"]


def test_a_checkpoint_that_is_none_does_not_fail_its_job(
    grid: Grid, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []

    def train(**_: Any) -> None:
        job = current_job()
        assert job is not None
        job.save({"epoch": 1})
        entry = grid.client().replay(CHECKPOINTS, 0.0)[-1]
        broken = json.loads(entry.data)
        for state in ("{", 1, None):
            broken["data"]["state"] = state
            grid.client().record(CHECKPOINTS, [json.dumps(broken).encode()])
        found.append(job.saved)

    grid.producer().submit({})
    assert Worker({"train": train}, url=grid.url).run(burst=True) == 1
    assert (found, grid.count()) == ([{"epoch": 1}], {})

"""What a dashboard shows and does, on memory and on SQLite."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dashboards import Site, serving
from grid import Grid
from threads import WAIT, in_thread, until

from synmanager import Jobs, Reject, Worker, current_job
from synmanager.backends.base import Address, DeadLetter, Facts
from synmanager.backends.memory import MemoryBackend
from synmanager.backends.rabbitmq.management import Node
from synmanager.backends.registry import create_backend
from synmanager.checks import Finding, Seen, findings
from synmanager.cli import main
from synmanager.errors import PublishRefused, Retry
from synmanager.journal import desk, marks, recorder
from synmanager.journal.events import EVENTS, read
from synmanager.message import Message
from synmanager.preprocess import PreprocessProducerOperator
from synmanager.settings import load_settings
from synmanager.train import TrainProducerOperator

#: Half of a character, which UTF-8 has no way to write.
HALF = "\ud800"

HOSTILE = "<script>alert(1)</script>\x00\u202e'\"&\x1b[2J" + "x" * 100_000


@pytest.fixture(autouse=True)
def _journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNMANAGER_JOURNAL", "on")
    monkeypatch.setattr(marks, "PATIENCE", 5.0)
    monkeypatch.setattr(desk, "PATIENCE", 5.0)


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, grid: Grid, tmp_path: Path) -> str:
    return grid.url if request.param == "memory" else f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
def trains(url: str) -> Iterator[TrainProducerOperator]:
    with TrainProducerOperator(url=url) as made:
        yield made


@pytest.fixture
def site(url: str, trains: TrainProducerOperator) -> Iterator[Site]:
    with serving(url, allows=True) as made:
        made.until_caught_up()
        yield made


class Held:
    """A worker whose job goes on until it is let go, or cancelled."""

    def __init__(self, url: str) -> None:
        self.go = threading.Event()
        self._worker = Worker({"train": self._train}, url=url, tags={"gpu"})
        self._join = in_thread(self._worker.run)

    def _train(self, **job: Any) -> None:
        mine = current_job()
        assert mine is not None
        while not self.go.wait(0.05):
            mine.progress(
                1, total=4, text="half <b>way</b> pin=sesame", loss=0.25, api_key="sesame"
            )

    def end(self) -> None:
        self.go.set()
        self._worker.stop()
        self._join()


@pytest.fixture
def held(url: str, trains: TrainProducerOperator) -> Iterator[Held]:
    made = Held(url)
    yield made
    made.end()


def shows(site: Site, path: str, *texts: str, **query: str) -> str:
    """Wait until a page has these texts; return it."""
    last = ""

    def has() -> bool:
        nonlocal last
        last = site.get(path, **query).text
        return all(text in last for text in texts)

    try:
        until(has, f"{texts} at {path}")
    except AssertionError:
        raise AssertionError(f"{texts} not in {last}") from None
    return last


def dead(url: str, trains: TrainProducerOperator, *jobs: dict[str, Any]) -> None:
    """Jobs that a worker gives up, each for the reason that it names."""

    def work(reason: str = "poison", **job: Any) -> None:
        raise Reject(reason)

    for number, job in enumerate(jobs):
        trains.submit(job, job_id=f"dead-{number}")
    Worker({"train": work}, url=url).run(burst=True)
    recorder.flush_all(5)


def actions(url: str) -> list[dict[str, Any]]:
    """What the journal says was done, and by whom."""
    backend = create_backend(load_settings(url=url).address)
    backend.open()
    try:
        entries = backend.replay(EVENTS, limit=100_000)
    finally:
        backend.close()
    return [
        {"type": event.type, **event.data}
        for entry in entries
        for event in read(entry.data)
        if event.type.startswith("action.")
    ]


def test_what_runs_is_shown_with_its_progress(
    site: Site, trains: TrainProducerOperator, held: Held
) -> None:
    trains.submit({"run": 1}, job_id="run-1", priority="high")
    page = shows(site, "/", "run-1", "25 %", "half &lt;b&gt;way", "0.25", "1 of 5")
    assert "sesame" not in page
    assert "(hidden)" in page
    assert '<span class="tag">gpu</span>' in page.partition('id="running"')[2]
    shows(site, "/workers", "gpu", "run-1")
    page = shows(site, "/job", "it has run on", "started", phase="train", id="run-1")
    assert '<span class="tag">gpu</span>' in page
    assert "sesame" not in page


def test_what_waits_is_shown_with_why(site: Site, url: str, trains: TrainProducerOperator) -> None:
    trains.submit_many([{"run": run} for run in range(3)], job_ids=["a", "b", "c"])
    trains.submit({"run": 9}, job_id="later", delay=3600)
    trains.submit({"run": 8}, job_id="first", priority="high")
    recorder.flush_all(5)
    page = shows(site, "/waiting", "first", "later", "no worker takes its jobs", "delayed for")
    rows = page.partition('id="waiting"')[2]
    assert rows.index(">first<") < rows.index(">a<") < rows.index(">c<") < rows.index(">later<")
    assert "3 normal" in page
    assert "1 high" in page
    page = shows(site, "/job", "it is number 3 of train", phase="train", id="b")
    assert "no worker takes jobs of train" in page


def test_a_restarted_one_knows_what_it_knew(url: str, trains: TrainProducerOperator) -> None:
    def work(**job: Any) -> None:
        mine = current_job()
        assert mine is not None
        if mine.attempt == 1:
            raise Retry("not yet", delay=0.01)

    trains.submit({"run": 1}, job_id="run-1")
    Worker({"train": work}, url=url).run(max_jobs=2, idle_timeout=WAIT)
    recorder.flush_all(5)
    for _ in range(2):
        with serving(url) as site:
            page = shows(
                site, "/job", "failed, to retry", "not yet", "succeeded", phase="train", id="run-1"
            )
            assert "attempt 2" in page
            shows(site, "/", "run-1")


def test_a_sweep_is_shown_and_steered(site: Site, url: str, trains: TrainProducerOperator) -> None:
    def work(run: int, **_: Any) -> dict[str, Any]:
        if run == 3:
            raise Reject("poison")
        return {"loss": run / 8}

    jobs = [{"run": run, "password": "sesame"} for run in range(8)]
    with trains.sweep(jobs, name="search") as sweep:
        Worker({"train": work}, url=url).run(max_jobs=5)
        recorder.flush_all(5)
        page = shows(site, "/sweep", "5 of 8 have ended", "4 succeeded", "1 dead", name="search")
        assert page.count('class="square is-') == 8
        assert "search.3" in page
        figures = page.partition('id="figures"')[2]
        assert "0.5" in figures
        assert "search.4" in figures
        shows(site, "/sweeps", "search", "5 of 8")
        page = shows(site, "/job", "Parameters", "password", phase="train", id="search.1")
        assert "sesame" not in page

        assert "3 jobs" in site.get("/do/cancel-sweep", name="search").text
        assert site.do("cancel-sweep", name="search").status == 200
        Worker({"train": work}, url=url).run(burst=True)
        recorder.flush_all(5)
        shows(site, "/sweep", "3 cancelled", name="search")
        assert site.get("/do/cancel-sweep", name="search").status == 409
        assert "1 job" in site.do("retry-sweep", name="search").text
        shows(site, "/sweep", "1 queued", name="search")
        assert sweep.counts()["queued"] == 1
    assert [(done["type"], done["sweep"]) for done in actions(url)] == [
        ("action.cancel", "search"), ("action.retry", "search"),
    ]  # fmt: skip


def test_a_running_job_is_cancelled(
    site: Site, url: str, trains: TrainProducerOperator, held: Held
) -> None:
    trains.submit({"run": 1}, job_id="run-1")
    shows(site, "/job", "Cancel this job", "running", phase="train", id="run-1")
    assert "1 job" in site.do("cancel", phase="train", id="run-1").text
    shows(site, "/job", "it was cancelled", phase="train", id="run-1")
    (done,) = actions(url)
    assert (done["type"], done["ids"], done["number"]) == ("action.cancel", ["run-1"], 1)
    assert done["who"] == "tester@127.0.0.1"
    shows(site, "/broker", "tester@127.0.0.1")
    assert "has ended" in site.get("/do/cancel", phase="train", id="run-1").text


def test_a_cancel_touches_as_many_as_it_says(
    site: Site, url: str, trains: TrainProducerOperator
) -> None:
    trains.submit({}, job_id="same")
    with PreprocessProducerOperator(url=url) as others:
        others.submit({}, job_id="same")
    recorder.flush_all(5)
    for phase in ("train", "preprocess"):
        shows(site, "/job", "it is number 1", phase=phase, id="same")
    asked = site.get("/do/cancel", phase="train", id="same").text
    assert "Cancel 2 jobs, same of preprocess and same of train" in asked
    assert "2 jobs were asked to end" in site.do("cancel", phase="train", id="same").text
    ran: list[dict[str, Any]] = []

    def work(**job: Any) -> None:
        ran.append(job)

    Worker({"train": work, "preprocess": work}, url=url).run(burst=True)
    assert ran == []
    (done,) = actions(url)
    assert (done["number"], done["ids"], "phase" in done) == (2, ["same"], False)


def test_a_running_job_shows_what_it_was_given(
    site: Site, url: str, trains: TrainProducerOperator, held: Held
) -> None:
    trains.submit({"lr": 0.25, "name": "<b>", "db": {"password": "canary"}}, job_id="run-1")
    page = shows(site, "/job", "&#34;lr&#34;: 0.25", "(hidden)", phase="train", id="run-1")
    assert "canary" not in page
    backend = create_backend(load_settings(url=url).address)
    backend.open()
    try:
        assert not any(b"canary" in entry.data for entry in backend.replay(EVENTS))
    finally:
        backend.close()


def test_a_phase_is_paused_and_resumed(site: Site, url: str, trains: TrainProducerOperator) -> None:
    trains.submit({}, job_id="run-1")
    assert "/do/pause?phase=completed" not in shows(site, "/waiting", "Pause train", "run-1")
    assert "where 1 job is ready" in site.get("/do/pause", phase="train").text
    assert "It is paused" in site.do("pause", phase="train").text
    shows(site, "/waiting", "Resume train", "by tester@127.0.0.1", "it is paused")
    shows(site, "/job", "train has been paused for", phase="train", id="run-1")
    assert site.get("/do/pause", phase="train").status == 409
    assert site.get("/do/pause", phase="completed").status == 409
    assert Worker({"train": lambda **job: None}, url=url).run(burst=True) == 0
    with Jobs(url=url) as jobs:
        jobs.resume("train", who="ada")  # from elsewhere
    shows(site, "/waiting", "Pause train")
    assert site.get("/do/resume", phase="train").status == 409
    told = [(done["type"], done["who"], done["phase"]) for done in actions(url)]
    assert told == [
        ("action.pause", "tester@127.0.0.1", "train"), ("action.resume", "ada", "train"),
    ]  # fmt: skip
    shows(site, "/broker", "ada · resume · train")


def test_dead_letters_are_grouped_redriven_and_purged(
    site: Site, url: str, trains: TrainProducerOperator
) -> None:
    dead(url, trains, *[{"reason": "no memory\nmore"}] * 3, {"reason": "no such project"})
    page = shows(site, "/dead", "no memory", "no such project")
    assert "more" not in page.partition("<tbody")[2].partition("</tbody")[0]
    (cause,) = {each.cause for each in site_letters(site) if each.reason == "no memory"}
    about = {"queue": "train", "cause": cause}
    assert "Redrive all 3" in site.get("/dead", **about).text
    assert "3 dead letters" in site.get("/do/redrive", **about).text
    assert "3 dead letters put back" in site.do("redrive", **about).text
    assert "1 dead letter removed" in site.do("purge", queue="train", id="dead-3").text
    shows(site, "/dead", "No dead letters")
    assert site.get("/do/purge", queue="train", id="dead-3").status == 409
    assert site.get("/do/purge", queue="train").status == 409
    assert [(done["number"], done.get("reason")) for done in actions(url)] == [
        (3, "no memory"), (1, None),
    ]  # fmt: skip


def test_a_reason_s_secret_is_nowhere_to_be_read(
    site: Site, url: str, trains: TrainProducerOperator
) -> None:
    secret = "sesame " + "x" * 100
    reasons = [f"login failed: password='{secret}'", "login failed: password=sesame"]
    dead(url, trains, *({"reason": reason} for reason in reasons))
    page = shows(site, "/dead", "login failed: password=(hidden)").partition("<main")[2]
    seen, left = {}, [("/dead", page)]
    while left:
        path, text = left.pop()
        seen[path] = text
        for link in re.findall(r'href="(/(?:dead|letter|job|do)[^"#]*)"', text):
            link = link.replace("&amp;", "&")
            if link not in seen:
                left.append((link, site.ask(link).text.partition("<main")[2]))
    assert {path.partition("?")[0] for path in seen} == {
        "/dead", "/letter", "/job", "/do/redrive", "/do/purge", "/do/edit",
    }  # fmt: skip
    for path, text in seen.items():
        assert "sesame" not in path + text, path
    about = {"queue": "train", "cause": site_letters(site)[0].cause}
    assert "password=(hidden)" in site.get("/do/redrive", **about).text
    assert "2 dead letters put back" in site.do("redrive", **about).text
    assert [done["reason"] for done in actions(url)] == ["login failed: password=(hidden)"]


def test_a_dead_letter_is_edited_and_runs(
    site: Site, url: str, trains: TrainProducerOperator
) -> None:
    dead(url, trains, {"reason": "poison", "lr": 1, "password": "sesame"})
    page = shows(site, "/letter", "poison", "Edit and run again", queue="train", id="dead-0")
    assert "sesame" not in page
    about = {"queue": "train", "id": "dead-0"}
    asked = site.get("/do/edit", **about)
    assert "sesame" not in asked.text
    fields = {**about, "form": asked.hidden("form"), "number": "1"}
    broken = site.post("/do/edit", {**fields, "job": "{"})
    assert broken.status == 409
    assert "nothing was changed" in broken.text
    edited = json.dumps({"lr": 0.5, "password": "(hidden)"})
    assert site.post("/do/edit", {**fields, "job": edited}).status == 200
    seen: list[dict[str, Any]] = []
    Worker({"train": lambda **job: seen.append(job)}, url=url).run(max_jobs=1)
    assert seen == [{"lr": 0.5, "password": "sesame"}]


def test_an_edit_that_is_half_done_is_told(
    site: Site, url: str, trains: TrainProducerOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead(url, trains, {"lr": 1})
    about = {"queue": "train", "id": "dead-0"}
    asked = site.get("/do/edit", **about)

    def fails(*_: object) -> int:
        raise PublishRefused("no room")

    monkeypatch.setattr(site.observer.session.backend, "redrive_letters", fails)
    fields = {**about, "form": asked.hidden("form"), "number": "1", "job": '{"lr": 0.5}'}
    answer = site.post("/do/edit", fields)
    assert answer.status == 409
    assert "it is changed, and not known to be back: no room" in answer.text
    assert "0.5" in answer.text
    (done,) = actions(url)
    assert (done["type"], done["ids"], done["redriven"]) == ("action.edit", ["dead-0"], 0)


def test_what_strangers_write_is_inert(site: Site, url: str, trains: TrainProducerOperator) -> None:
    def work(**job: Any) -> None:
        mine = current_job()
        assert mine is not None
        mine.progress(float("nan"), total=-1, text=HOSTILE, **{HOSTILE: HOSTILE, "n": 10**400})
        raise Reject(HOSTILE)

    name = "<img src=x onerror=alert(1)>\u202e'\"&"
    trains.submit({HOSTILE: HOSTILE}, job_id=name)
    Worker({"train": work}, url=url, tags={"<b>tag"}).run(burst=True)
    with PreprocessProducerOperator(url=url) as others:
        others.submit({}, job_id=f"../../{name}")
    recorder.flush_all(5)
    shows(site, "/dead", "&lt;script&gt;")
    (cause,) = {letter.cause for letter in site_letters(site)}
    for path, query in (
        ("/", {}), ("/waiting", {}), ("/dead", {}), ("/workers", {}),
        ("/job", {"phase": "train", "id": name}),
        ("/job", {"phase": "preprocess", "id": f"../../{name}"}),
        ("/job", {"phase": name, "id": HOSTILE[:200]}), ("/sweep", {"name": name}),
        ("/waiting", {"phase": name}), ("/letter", {"queue": "train", "id": name}),
        ("/letter", {"queue": name, "id": name}), ("/dead", {"queue": "train", "cause": cause}),
        ("/do/edit", {"queue": "train", "id": name}), ("/do/cancel", {"phase": "x", "id": name}),
        ("/do/cancel-sweep", {"name": name}), ("/broker", {}),
    ):  # fmt: skip
        page = site.get(path, **query)
        assert page.status in (200, 404, 409), (path, page.text)
        text = re.sub(r'<input type="hidden"[^>]*>', "", page.text)  # exact, and not shown
        for bad in ("<script>alert", "<img", "<b>tag", "\x00", "\u202e", "\x1b"):
            assert bad not in text, (path, bad)
        assert len(page.text) < 300_000
    with site.watching("/") as news:
        told = json.dumps(next(news))
    assert "<img" not in told
    assert "alert(1)>" not in told


def site_letters(site: Site) -> list[Any]:
    from synmanager.web.dead import Letters

    return Letters(site.observer).all()


def test_events_of_strangers_do_no_harm(site: Site, url: str) -> None:
    """A journal is open to all who may write to the broker."""
    backend = create_backend(load_settings(url=url).address)
    backend.open()
    odd: list[Any] = [None, 7, "x", [], {}, [[]], {"id": {}}, float("1e308"), -1, True,
                      10**400, float("nan"), HALF]  # fmt: skip
    entries = [b"", b"\xff", b"[]"]
    for kind in ("job.submitted", "job.started", "job.progress", "job.succeeded", "sweep.begun",
                 "sweep.submitted", "worker.up", "action.cancel", "action", "other"):  # fmt: skip
        for value in odd:
            data = dict.fromkeys(
                ("id", "phase", "ids", "submitted_at", "rank", "attempt", "delay", "name", "total",
                 "sweep", "figures", "result", "who", "number", "reason"), value,
            )  # fmt: skip
            event = {"specversion": "1.0", "id": "1", "source": "x", "subject": "",
                     "type": f"synmanager.{kind}", "time": "2026-01-01T00:00:00+00:00"}  # fmt: skip
            entries.append(json.dumps({**event, "data": data}).encode())
            entries.append(json.dumps({**event, "data": {**data, "phase": "train"}}).encode())
    try:
        backend.record(EVENTS, entries)
    finally:
        backend.close()
    until(lambda: site.observer.read >= len(entries) - 3, "all read")
    assert site.observer.trouble == ""
    for path in ("/", "/waiting", "/sweeps", "/workers", "/broker"):
        assert site.get(path).status == 200, path


def test_a_result_or_progress_without_measure_breaks_no_page(site: Site, url: str) -> None:
    huge = 10**400
    job = {"id": "s.0", "phase": "train", "submitted_at": 1.0, "rank": "low", "attempt": 1,
           "sweep": "s"}  # fmt: skip
    figures = {"huge": huge, "nan": float("nan"), "most": 1e308, "loss": 0.25, "n": 7}
    record(
        url,
        ("sweep.begun", {"name": "s", "phase": "train", "total": 2, "submitted_at": 1.0}),
        ("sweep.begun", {"name": "never", "phase": "train", "total": 2, "submitted_at": huge}),
        ("sweep.begun", {"name": "never", "phase": "train", "total": 1e999, "submitted_at": 1.0}),
        *(("job.started", {**job, "id": name}) for name in ("s.0", "x", "y")),
        ("job.progress", {**job, "done": huge, "total": huge + 1, "text": "", "figures": figures}),
        (
            "job.progress",
            {**job, "id": "x", "done": 5e-324, "total": 1e308, "text": "", "figures": {}},
        ),
        ("job.progress", {**job, "id": "y", "done": 1, "total": huge, "text": "", "figures": {}}),
    )
    shows(site, "/", "0.25</span>", "s.0")
    for name in ("s.0", "x", "y"):
        shows(site, "/job", "last heard", phase="train", id=name)
    shows(site, "/sweep", ">0.25<", ">1e+308<", ">7<", name="s")
    record(url, ("job.succeeded", {**job, "result": json.dumps({"loss": huge, "acc": 0.125})}))
    assert "huge" not in shows(site, "/sweep", ">0.125<", name="s")
    assert "never" not in site.get("/sweeps").text


@pytest.mark.parametrize(("size", "seen"), [(100, 60), (1_000, 32), (40_000, 10)])
def test_large_letters_are_looked_at_in_bounds(
    size: int, seen: int, site: Site, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("synmanager.web.dead._MOST_BYTES", 32_500)
    monkeypatch.setattr("synmanager.web.dead._FIRST", (10, 20))
    backend = create_backend(load_settings(url=url).address)
    backend.open()
    try:
        body = b"x" * size
        letters = [Message(body, id=f"dead-{n}", submitted_at=1.0) for n in range(60)]
        backend.add_letters(
            "train", [DeadLetter(each, "train", "poison", 1, 1.0) for each in letters]
        )
    finally:
        backend.close()
    assert len(site_letters(site)) == seen
    assert site.get("/letter", queue="train", id=f"dead-{seen - 1}").status == 200
    assert site.get("/letter", queue="train", id=f"dead-{seen}").status == 404


def test_a_letter_of_no_time_is_shown(site: Site, url: str) -> None:
    backend = create_backend(load_settings(url=url).address)
    backend.open()
    try:
        message = Message(b"{}", id="odd", submitted_at=1.0)
        backend.add_letters("train", [DeadLetter(message, "train", "poison", 1, 1e17)])
    finally:
        backend.close()
    page = shows(site, "/dead", "poison")
    assert "No dead letters" not in page, "though none is counted yet"
    assert "odd" in shows(site, "/letter", "poison", queue="train", id="odd")


def test_megabytes_of_strangers_are_in_no_page(site: Site, url: str) -> None:
    much = "<b>" + "A" * 1_000_000
    many = [f"n{number}" for number in range(100_000)]
    job = {"id": "j", "phase": "train", "submitted_at": 1.0, "rank": "low", "attempt": 1}
    said = {"done": 1, "total": 2, "text": much, "figures": {much: much, "deep": [[much]]}}
    up = {"host": "h", "pid": 1, "phases": ["train"], "tags": [], "version": "1"}
    record(
        url,
        *(("job.started", {**job, name: much}) for name in ("id", "phase", "rank")),
        ("job.submitted", {**job, "ids": [much], "delay": 0.0}),
        *(("worker.up", {**up, name: each}) for name in up for each in (much, many, [much])),
        ("sweep.begun", {"name": much, "phase": "train", "total": 3, "submitted_at": 1.0}),
        ("action.purge", {"who": much, "number": 1, "ids": [], "queue": much, "reason": much}),
        ("job.progress", {**job, "id": "said", **said}),
        ("job.progress", {**job, "id": "many", **said, "figures": dict.fromkeys(many, 1.0)}),
        ("job.died", {**job, "id": "died", "reason": much, "traceback": f"{much}\n" * 3}),
        ("job.started", {**job, "id": "run-9", "given": "[" * 100_000}),
    )
    shows(site, "/", "run-9")
    for path in ("/", "/waiting", "/sweeps", "/workers", "/broker", "/metrics"):
        assert len(site.get(path).text) < 60_000, path
    for name in ("said", "many", "died", "run-9"):
        page = site.get("/job", phase="train", id=name)
        assert (page.status, len(page.text) < 20_000) == (200, True), name


def test_no_link_fills_in_what_a_job_is_changed_to(
    site: Site, url: str, trains: TrainProducerOperator
) -> None:
    dead(url, trains, {"run": 1})
    about = {"queue": "train", "id": "dead-0"}
    shows(site, "/do/edit", "&#34;run&#34;: 1", **about)
    asked = site.get("/do/edit", **about, job='{"run": "evil"}', number="1")
    assert "evil" not in asked.text
    form = {**about, "form": asked.hidden("form"), "number": "7", "job": '{"run": "mine"}'}
    assert "mine" in site.post("/do/edit", form).text, "what was typed is kept"


def test_of_a_traceback_the_end_is_shown_and_no_half_of_a_secret(
    site: Site, url: str, trains: TrainProducerOperator
) -> None:
    def work(**_: Any) -> None:
        # Wherever it is cut, it is cut in the middle of a secret.
        raise ValueError(f"token={'sesame' * 40}\n" * 60 + "the very end")

    trains.submit({}, job_id="run-1")
    Worker({"train": work}, url=url, max_attempts=1).run(burst=True)
    recorder.flush_all(5)
    for path, about in (("/job", "phase"), ("/letter", "queue")):
        page = shows(site, path, "the very end", **{about: "train", "id": "run-1"})
        assert "esame" not in page, path


def test_a_sweep_of_no_phase_is_none(site: Site, url: str) -> None:
    begun = {"name": "s", "total": 2, "submitted_at": 1.0}
    record(url, ("sweep.begun", {**begun, "phase": "nobody's"}))
    until(lambda: site.observer.read == 1, "read")
    assert site.get("/sweep", name="s").status == 404


def test_half_a_character_breaks_no_page(site: Site, url: str) -> None:
    job = {"id": "j", "phase": "train", "submitted_at": 1.0, "rank": "low", "attempt": 1}
    given = f'{{"half": "{HALF}"}}'
    record(
        url,
        ("sweep.begun", {"name": HALF, "phase": "train", "total": 2, "submitted_at": 1.0}),
        ("job.started", {**job, "sweep": HALF, "given": given}),
        ("job.started", {**job, "id": f"{HALF}.0", "sweep": HALF}),
        ("job.submitted", {**job, "ids": [HALF], "phase": HALF, "delay": 0.0}),
        ("worker.up", {"host": HALF, "pid": 1, "phases": [HALF], "tags": [HALF], "version": HALF}),
    )
    shows(site, "/job", "&#34;half&#34;: &#34;\\ud800&#34;", phase="train", id="j")
    for path in ("/", "/waiting", "/sweeps", "/workers", "/broker"):
        page = site.get(path)
        assert page.status == 200, path
        for link in re.findall(r'href="(/[^"#]*)"', page.text):
            assert site.ask(link.replace("&amp;", "&")).status in (200, 404, 409), link


def record(url: str, *events: tuple[str, dict[str, Any]]) -> None:
    """Write into the journal what a stranger may."""
    backend = create_backend(load_settings(url=url).address)
    backend.open()
    whole = {"specversion": "1.0", "id": "1", "source": "host/1/x", "subject": "",
             "time": "2026-01-01T00:00:00+00:00"}  # fmt: skip
    try:
        entries = [{**whole, "type": f"synmanager.{kind}", "data": data} for kind, data in events]
        backend.record(EVENTS, [json.dumps(each).encode() for each in entries])
    finally:
        backend.close()


def test_the_pressure_on_a_broker(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    there = [
        Node("rabbit@<b>", ("memory",), 3 << 30, 2 << 30, 9 << 30, 1 << 30),
        Node("rabbit@secret", (), 1 << 30, 2 << 30, 9 << 30, 1 << 30),
    ]

    def examine() -> tuple[Seen, list[Finding]]:
        facts = Facts("RabbitMQ", "4.3.6")
        seen = Seen(Address("amqps", "mq.example"), facts, MemoryBackend.features, {}, 1.0)
        return seen, findings(seen)

    monkeypatch.setattr("synmanager.checks._nodes", lambda _: there)
    monkeypatch.setattr("synmanager.checks._lets_in", lambda _: False)
    monkeypatch.setattr(site.observer, "examine", examine)
    page = site.get("/broker").text
    assert "its alarm for memory has gone off" in page
    for what, told in (
        ("memory of rabbit@&lt;b&gt;", "3.0 GiB of 2.0 GiB"),
        ("alarms of rabbit@&lt;b&gt;", "memory"),
        ("disk of rabbit@secret", "9.0 GiB free, alarm at 1.0 GiB"),
        ("alarms of rabbit@secret", "none"),
    ):
        assert f"<dt>{what}</dt><dd>{told}</dd>" in page
    there.clear()
    page = site.get("/broker", then="").text
    assert "whether an alarm has gone off" in page
    assert "rabbitmq-plugins enable rabbitmq_management" in page
    assert "<dt>memory" not in page


def test_prometheus_gets_its_metrics(site: Site, trains: TrainProducerOperator) -> None:
    trains.submit({"run": 1})
    recorder.flush_all(5)
    shows(site, "/metrics", 'synmanager_ready_jobs{phase="train",rank="normal"} 1.0')
    assert site.get("/metrics").headers["content-type"].startswith("text/plain")


def test_a_page_that_is_not_there(site: Site) -> None:
    for path in ("/nothing", "/static/../app.py", "/do/nothing"):
        assert site.get(path).status == 404
    assert site.get("/job", id="nobody").status == 404
    assert site.get("/live", of="https://evil.example/").status == 404


def test_without_the_extra_the_command_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    import synmanager.web

    for name in [name for name in sys.modules if name.startswith("synmanager.web.")]:
        monkeypatch.delitem(sys.modules, name)
        # Else the package would keep what is imported now, and other tests patch that.
        monkeypatch.delattr(synmanager.web, name.rpartition(".")[2])
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["dashboard", "--demo"]) == 1
    assert "pip install 'synmanager[web]'" in capsys.readouterr().err

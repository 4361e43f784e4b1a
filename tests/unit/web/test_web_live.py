"""What a browser that watches gets, and what it costs the broker."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from dashboards import Site, serving
from grid import Grid
from threads import until

from synmanager.backends.memory import MemoryBackend
from synmanager.journal.events import EVENTS, Event, write
from synmanager.web.curves import STEP, Curves
from synmanager.web.parts import Page, Sent
from synmanager.web.timelines import Timelines


@pytest.fixture
def site(grid: Grid) -> Iterator[Site]:
    grid.client()
    with serving(grid.url) as made:
        made.until_caught_up()
        yield made


def event(kind: str, job: str, **data: object) -> Event:
    about = {"id": job, "phase": "train", "submitted_at": 1.0, "rank": "normal", "attempt": 1}
    return Event(kind, "host/1/x", time.time(), f"train/{job}", {**about, **data})


def progress(job: str, done: int) -> bytes:
    return write(event("job.progress", job, done=done, total=10_000, text="", figures={}))


def test_only_what_has_changed_is_sent(grid: Grid, site: Site) -> None:
    client = grid.client()
    client.record(EVENTS, [progress(f"run-{number}", 1) for number in range(20)])
    until(lambda: site.observer.read >= 20, "all read")
    with site.watching("/") as news:
        first = next(news)
        while len(first["orders"].get("running", ())) < 20:
            first = next(news)
        client.record(EVENTS, [progress("run-7", 5_000)])
        second = next(news)
        while "50 %" not in json.dumps(second):
            second = next(news)
    rows = [html for html in second["pieces"].values() if "<tr" in html]
    assert len(rows) == 1
    assert "run-7" in rows[0]
    assert len(json.dumps(second)) < 5_000
    assert "orders" not in second


def test_ten_thousand_events_are_few_messages(grid: Grid, site: Site) -> None:
    client = grid.client()
    with site.watching("/") as news:
        next(news)
        began = time.monotonic()
        for number in range(20):
            client.record(EVENTS, [progress("run-1", number * 500 + each) for each in range(500)])
        sent = 0
        for message in news:
            sent += 1
            if "9,999" in json.dumps(message) or "100 %" in json.dumps(message):
                break
    until(lambda: site.observer.read == 10_000, "all read")  # it may be rounded up
    assert sent <= 2 * (time.monotonic() - began) + 2


def test_it_keeps_up_with_whoever_says_each_thing_alone(
    grid: Grid, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []
    stopping = site.observer._stopping
    wait = stopping.wait

    def counted(seconds: float) -> bool:
        rests.append(seconds)
        return wait(seconds)

    monkeypatch.setattr(stopping, "wait", counted)
    grid.client().record(EVENTS, [progress(f"run-{n % 50}", n) for n in range(5_000)])
    until(lambda: site.observer.read == 5_000, "all read")
    assert len(rests) <= 3


def test_an_idle_observer_asks_less_than_twice_a_second(
    grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    for method in ("replay", "count", "facts", "declare", "dead_letters"):
        original = getattr(MemoryBackend, method)

        def counting(self, *args, _name=method, _original=original, **options):  # type: ignore[no-untyped-def]
            asked.append(_name)
            return _original(self, *args, **options)

        monkeypatch.setattr(MemoryBackend, method, counting)
    grid.client()
    with serving(grid.url) as site:
        site.until_caught_up()
        with site.watching("/"), site.watching("/dead"):
            until(lambda: asked.count("dead_letters") >= 4, "the page")
            asked.clear()
            began = time.monotonic()
            until(lambda: len(asked) >= 5, "a few requests")
            assert time.monotonic() - began > 2.0


def test_a_broker_that_is_away_is_told_and_comes_back(grid: Grid, site: Site) -> None:
    from synmanager.backends.base import Address
    from synmanager.errors import BrokerUnavailable

    original = site.observer.session.backend

    class Away(MemoryBackend):
        def open(self) -> None:
            raise BrokerUnavailable("nobody <answers>")

    site.observer.session._reconnect = 0.0
    site.observer.session.backend = Away(Address("memory"), grid.broker)
    until(lambda: "nobody &lt;answers&gt;" in site.get("/").text, "the trouble")
    site.observer.session.backend = original
    until(lambda: "does not answer" not in site.get("/").text, "the end of it")


def test_a_clock_s_words_are_no_news() -> None:
    from markupsafe import Markup

    sent = Sent()
    page = Page("x", "x", pieces={"a": Markup('<p id="a"><time data-since="1">3 s</time></p>')})
    assert sent.news(page)
    page.pieces["a"] = Markup('<p id="a"><time data-since="1">4 s</time></p>')
    assert sent.news(page) == {}
    page.pieces["a"] = Markup('<p id="a"><time data-since="2">4 s</time></p>')
    assert set(sent.news(page)) == {"pieces"}


def test_a_curve_goes_in_steps_and_is_put_right() -> None:
    curves = Curves()
    assert curves.of("train", 0.0) == []
    now = 100 * STEP
    for _ in range(5):
        curves.moved("train", 1, now)
    curves.moved("train", -1, now + STEP)
    curves.counted("train", 40, now + 3 * STEP)
    curves.moved("train", 1, now + 4 * STEP)
    assert curves.of("train", now + 5 * STEP)[-6:] == [5, 4, 4, 40, 41, 41]
    assert curves.of("train", now + 1_000_000)[-1] == 41
    assert len(curves.of("train", now + 1_000_000)) == 6 * 3600 // STEP


def test_timelines_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from synmanager.web import timelines

    monkeypatch.setattr(timelines, "_MOST", 100)
    kept = Timelines()
    for number in range(200):
        kept.note(event("job.started", f"run-{number}"))
        kept.note(event("job.progress", f"run-{number}", done=1))
        kept.note(event("job.progress", f"run-{number}", done=2))
    assert kept.of("train", "run-0") == []
    started, last = kept.of("train", "run-199")
    assert (started.kind, last.kind, last.times) == ("started", "progress", 2)
    assert last.data["done"] == 2
    assert sum(len(kept.of("train", f"run-{number}")) for number in range(200)) <= 100

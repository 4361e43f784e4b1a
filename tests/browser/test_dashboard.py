"""The dashboard in a real browser."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from conftest import Eyes
from dashboards import Site, serving
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from threads import in_thread, until

from synmanager import Reject, Worker, current_job
from synmanager.backends.base import DeadLetter
from synmanager.backends.registry import create_backend
from synmanager.journal import recorder
from synmanager.journal.events import EVENTS, Event, write
from synmanager.message import Message
from synmanager.settings import load_settings
from synmanager.train import TrainProducerOperator
from synmanager.web.actions import Actions
from synmanager.web.demo import DemoGrid
from synmanager.web.pages import Pages
from synmanager.web.parts import environment

PAGES = ("/", "/waiting", "/sweeps", "/dead", "/workers", "/broker")

#: Pixels by which a page is wider than the window.
_TOO_WIDE = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"

#: What is widest in it.
_WIDEST = """
    const all = [...document.body.querySelectorAll("*")];
    const right = (each) => each.getBoundingClientRect().right;
    return all.filter((each) => right(each) > innerWidth).map((each) => each.outerHTML);
"""


class Steps:
    """A worker whose jobs take a step whenever the test says so."""

    def __init__(self, url: str) -> None:
        self.step = 1
        self._end = threading.Event()
        self._worker = Worker({"train": self._train}, url=url)
        self._join = in_thread(self._worker.run)

    def _train(self, **job: Any) -> None:
        mine = current_job()
        assert mine is not None
        while not self._end.wait(0.05):
            mine.progress(self.step, total=10, text=f"step {self.step}")

    def end(self) -> None:
        self._end.set()
        self._worker.stop()
        self._join()


@pytest.fixture
def steps(url: str, trains: TrainProducerOperator) -> Iterator[Steps]:
    made = Steps(url)
    yield made
    made.end()


def dead(url: str, trains: TrainProducerOperator, job: dict[str, Any], name: str) -> None:
    def work(**_: Any) -> None:
        raise Reject("no such model")

    trains.submit(job, job_id=name)
    Worker({"train": work}, url=url).run(burst=True)
    recorder.flush_all(5)


def test_a_bar_moves_a_cancel_ends_the_job_and_a_phase_is_paused(
    eyes: Eyes, site: Site, trains: TrainProducerOperator, steps: Steps
) -> None:
    eyes.driver.get(site.url)
    until(lambda: "live" in eyes.text(), "the stream")
    trains.submit({"run": 1}, job_id="run-1")

    def value() -> Any:
        return eyes.run("return document.querySelector('#running progress')?.value ?? null")

    until(lambda: value() == 10, "the bar", within=20)
    steps.step = 7
    until(lambda: value() == 70, "the bar moves", within=20)

    def click(selector: str, text: str) -> None:
        """At once, as a live page may replace what was found."""
        script = """
            const all = [...document.querySelectorAll(arguments[0])];
            const found = all.find(each => each.innerText.includes(arguments[1]));
            found?.click();
            return !!found;
        """
        until(lambda: eyes.run(script, selector, text), text, within=20)

    def reached(text: str) -> None:
        until(lambda: text in eyes.text(), text, within=20)

    click("#running a", "run-1")
    click("#head a", "Cancel this job")
    reached("Cancel 1 job, run-1?")
    click("form.ask button", "Cancel 1 job")
    reached("1 job was asked to end")
    click("main a", "Back")
    reached("it was cancelled")

    click("#tabs a", "Waiting")
    for ask, asked, said, then in (
        ("Pause train", "Pause train, where", "It is paused", "by tester@127.0.0.1"),
        ("Resume train", "train has been paused for", "It goes on", "Pause train"),
    ):
        click("#lanes a", ask)
        reached(asked)
        click("form.ask button", ask)
        reached(said)
        click("main a", "Back")
        reached(then)


def test_a_dead_letter_is_edited_and_runs_by_keyboard_alone(
    eyes: Eyes, site: Site, url: str, trains: TrainProducerOperator
) -> None:
    dead(url, trains, {"model": "no-such", "password": "sesame"}, "run-7")
    eyes.driver.get(site.url)

    def press(*keys: str) -> None:
        chain = ActionChains(eyes.driver)
        chain.send_keys(*keys).perform()

    def go(text: str) -> None:
        """Press Tab until something of this text has the focus, then Enter."""
        for _ in range(60):
            press(Keys.TAB)
            if eyes.run("return document.activeElement.innerText.trim()").startswith(text):
                outline = "return getComputedStyle(document.activeElement).outlineStyle"
                assert eyes.run(outline) != "none", "one must see where one is"
                press(Keys.ENTER)
                return
        raise AssertionError(f"{text!r} cannot be reached in {eyes.text()}")

    def reached(text: str) -> None:
        until(lambda: text in eyes.text(), text)

    go("Dead letters")
    reached("no such model")
    go("no such model")
    reached("run-7")
    go("run-7")
    reached("Edit and run again")
    go("Edit and run again")
    reached("Change 1 job")
    for _ in range(60):
        press(Keys.TAB)
        if eyes.run("return document.activeElement.tagName") == "TEXTAREA":
            break
    ActionChains(eyes.driver).key_down(Keys.CONTROL).send_keys("a").key_up(Keys.CONTROL).perform()
    press(json.dumps({"model": "resnet", "password": "(hidden)"}))
    go("Save and run 1 job again")
    reached("put back")
    seen: list[dict[str, Any]] = []
    Worker({"train": lambda **job: seen.append(job)}, url=url).run(max_jobs=1)
    assert seen == [{"model": "resnet", "password": "sesame"}]


def test_a_script_in_a_job_s_name_does_nothing(
    eyes: Eyes, site: Site, url: str, trains: TrainProducerOperator
) -> None:
    evil = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    trains.submit({evil: evil}, job_id=f"\u202e{evil}")

    def work(**job: Any) -> None:
        mine = current_job()
        assert mine is not None
        figures: dict[str, Any] = {evil: evil}
        mine.progress(1, text=evil, **figures)
        raise Reject(evil)

    eyes.driver.get(site.url)
    until(lambda: "live" in eyes.text(), "the stream")
    Worker({"train": work}, url=url, tags={evil[:90]}).run(burst=True)
    recorder.flush_all(5)
    until(lambda: "<img src=x" in eyes.text(), "the name, in the stream's news")
    about = urlencode({"phase": "train", "queue": "train", "id": f"\u202e{evil}"})
    for path in (*PAGES, f"/job?{about}", f"/letter?{about}", f"/do/edit?{about}"):
        eyes.driver.get(site.url + path)
        assert eyes.run("return document.title") != "owned"
        assert eyes.run("return document.images.length") == 0
        assert eyes.run("return document.scripts.length") == 1


#: Words of strangers that have no place to break at; what is as long as an id may be.
LONG, ID = "W" * 300, "run-" + "W" * 190


def crowd(site: Site, url: str) -> None:
    """Whatever has a page, at its widest: jobs in all states, a sweep, workers, dead letters."""
    now = time.time()
    job = {"id": ID, "phase": "train", "submitted_at": now, "rank": "high", "attempt": 2}
    said = {"done": 3, "total": 7, "text": LONG, "figures": {LONG: 0.5, "loss": LONG, "n": 10**12}}
    died = {"reason": f"ValueError: {LONG}", "traceback": f"Traceback\n  {LONG}\n{LONG}"}
    sweep = {"name": f"sweep-{ID}", "phase": "train", "total": 300, "submitted_at": now}
    member = {**job, "sweep": sweep["name"]}
    up = {"host": "h" * 200, "pid": 1, "phases": ["train", LONG], "tags": ["gpu", *[LONG] * 9]}
    events = [
        ("sweep.begun", sweep),
        ("job.submitted", {**job, "ids": [f"waits-{ID}"], "delay": 0.0}),
        ("job.submitted", {**job, "ids": [f"later-{ID}"], "delay": 3600.0}),
        ("worker.up", {**up, "version": "9" * 200}),
        ("job.started", {**job, "given": json.dumps({LONG: LONG, "lr": [LONG]})}),
        ("job.progress", {**job, **said}),
        ("job.died", {**job, "id": "dead", **died}),
        ("job.retried", {**job, "id": f"retried-{ID}", "due_at": now + 3600, **died}),
        ("job.died", {**member, "id": f"{sweep['name']}.1", **died}),
        ("job.started", {**member, "id": f"{sweep['name']}.2"}),
        ("job.progress", {**member, "id": f"{sweep['name']}.2", **said}),
        ("action.purge", {"who": LONG, "number": 1, "ids": [ID], "queue": LONG, "reason": LONG}),
    ]
    backend = create_backend(load_settings(url=url).address)
    backend.open()
    try:
        source = f"{'h' * 200}/1/{LONG}"
        backend.record(EVENTS, [write(Event(kind, source, now, "", data)) for kind, data in events])
        message = Message(json.dumps({LONG: LONG}).encode(), id="dead", headers={LONG[:60]: LONG})
        backend.add_letters(
            "train", [DeadLetter(message, "train", died["reason"], 5, now, died["traceback"])]
        )
    finally:
        backend.close()
    until(lambda: site.observer.read == len(events), "the events")
    until(lambda: "cause=" in site.get("/dead").text, "the letter")


def pages_of(site: Site) -> list[str]:
    """A path to each page that there is, and to what is said where there is none."""
    (cause,) = re.findall(r"/dead\?(queue=train&amp;cause=\w+)", site.get("/dead").text)
    job, letter = {"phase": "train", "id": ID}, {"queue": "train", "id": "dead"}
    sweep = urlencode({"name": f"sweep-{ID}"})
    site.do("pause", phase="evaluate")
    return [
        *PAGES, "/waiting?phase=train", "/nothing", f"/sweep?{sweep}", "/sweep?name=nothing",
        *(f"/job?{urlencode({**job, 'id': name})}" for name in (ID, "dead", f"later-{ID}", LONG)),
        f"/dead?{cause.replace('&amp;', '&')}", f"/letter?{urlencode(letter)}", "/letter?id=none",
        "/login", "/do/pause?phase=train", "/do/resume?phase=evaluate", "/do/resume?phase=train",
        f"/do/cancel?{urlencode(job)}", f"/do/cancel-sweep?{sweep}", f"/do/retry-sweep?{sweep}",
        *(f"/do/{what}?{urlencode(letter)}" for what in ("edit", "redrive", "purge")),
    ]  # fmt: skip


def test_every_page_fits_and_complains_of_nothing(eyes: Eyes, site: Site, url: str) -> None:
    crowd(site, url)
    seen: set[str] = set()
    for path in pages_of(site):
        eyes.driver.get(site.url + path)
        seen.add(path.partition("?")[0])
        for scheme, width, ground in (
            ("dark", 400, "rgb(18, 22, 28)"),
            ("light", 1600, "rgb(246, 247, 249)"),
        ):
            eyes.prefer(scheme)
            eyes.size(width, 900)
            assert eyes.run(_TOO_WIDE) <= 0, (path, width, eyes.run(_WIDEST))
            assert eyes.run("return getComputedStyle(document.body).backgroundColor") == ground
        # Of a page that is not there, Chromium itself says that.
        complaints = [each for each in eyes.complaints() if "responded with a status" not in each]
        assert complaints == [], path
    pages = Pages(site.observer, environment({}), allows=True)
    actions = Actions(site.observer, pages.letters).by_name
    assert {*pages.by_path, *(f"/do/{name}" for name in actions), "/login"} <= seen


def test_a_token_is_asked_for(eyes: Eyes, url: str, trains: TrainProducerOperator) -> None:
    with serving(url, token="0123456789abcdef") as guarded:
        eyes.driver.get(guarded.url)
        eyes.driver.find_element(By.ID, "token").send_keys("0123456789abcdef", Keys.ENTER)
        until(lambda: "live" in eyes.text(), "the stream")
        assert "0123456789abcdef" not in eyes.driver.current_url
        assert eyes.run("return document.cookie") == ""
        eyes.driver.find_element(By.CSS_SELECTOR, "button.plain").click()
        until(lambda: "Token of this dashboard" in eyes.text(), "the way out")


def test_a_busy_grid_narrow_and_wide_light_and_dark(
    eyes: Eyes, pictures: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SYNMANAGER_JOURNAL", "on")
    with DemoGrid(pace=4.0) as grid, serving(grid.url, allows=True) as site:
        until(lambda: "sweep?name=" in site.get("/sweeps").text, "the sweep")
        name = site.get("/sweeps").text.partition("/sweep?name=")[2].partition('"')[0]
        sweep = f"/sweep?name={name}"
        until(lambda: "3 dead" in site.get(sweep).text, "three poison jobs", within=45)
        job = f"/job?{urlencode({'phase': 'train', 'id': f'{name}.4'})}"
        for path in (*PAGES, sweep, job):
            eyes.driver.get(site.url + path)
            for width in (400, 1600):
                eyes.size(width, 900)
                assert eyes.run(_TOO_WIDE) <= 0, (path, width)
        assert eyes.complaints() == []
        for path, picture, width, height, scheme in (
            ("/", "running", 1280, 640, "light"),
            ("/waiting", "waiting", 1280, 760, "dark"),
            (sweep, "sweep", 1280, 860, "light"),
            (sweep, "sweep-dark", 1600, 900, "dark"),
            (sweep, "sweep-narrow", 400, 860, "light"),
            ("/", "running-narrow", 400, 860, "dark"),
            (job, "job", 1280, 760, "light"),
            ("/dead", "dead", 1280, 400, "light"),
        ):
            eyes.size(width, height)
            eyes.prefer(scheme)
            eyes.driver.get(site.url + path)
            until(lambda: "live" in eyes.text(), "the stream")
            ground = eyes.run("return getComputedStyle(document.body).backgroundColor")
            assert (ground == "rgb(18, 22, 28)") == (scheme == "dark")
            eyes.picture(pictures(picture))

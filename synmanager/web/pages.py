"""What is to be seen: each function makes a page of what the observer knows."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import groupby
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from synmanager.backends.base import DeadLetter
from synmanager.errors import SynmanagerError, Undecodable
from synmanager.jobs import why_queued
from synmanager.journal.fold import State, WorkerState, at_time
from synmanager.message import decode
from synmanager.phases import COMPLETED, PHASES, WORK_PHASES, with_phases
from synmanager.redact import hidden, hidden_in_text
from synmanager.text import shown
from synmanager.web.curves import STEP
from synmanager.web.dead import Letters
from synmanager.web.observer import Observer
from synmanager.web.parts import Page, key_of, query_of
from synmanager.web.summary import MOST, Lane, Summaries, ahead_of
from synmanager.web.sweeps import STATES, SweepView

__all__ = ["Pages"]

#: Jobs that have ended, under those that run; members of a sweep that have a square of their own.
_LAST, _SQUARES = 12, 2_000

#: Seconds for which a worker that has left is still shown.
_LEFT = 3600.0

#: Width and height of a curve, in its own units.
_WIDTH, _HEIGHT = 360, 48


class Pages:
    """The pages by their path.

    Args:
        allows: actions are offered.
    """

    def __init__(self, observer: Observer, templates: Environment, *, allows: bool) -> None:
        self.letters = Letters(observer)
        self.allows = allows
        self._observer = observer
        self._templates = templates
        self._macros = templates.get_template("macros.html").module
        self._summaries = Summaries(observer)
        self.by_path: dict[str, Callable[[dict[str, str]], Page]] = {
            "/": self.running,
            "/waiting": self.waiting,
            "/job": self.job,
            "/sweeps": self.sweeps,
            "/sweep": self.sweep,
            "/dead": self.dead,
            "/letter": self.letter,
            "/workers": self.workers,
            "/broker": self.broker,
        }

    def at(self, path: str, query: dict[str, str]) -> Page | None:
        """The page of a path; None if there is none. It may take a while: not for an event loop."""
        make = self.by_path.get(path)
        if make is None:
            return None
        try:
            page = make(query)
        except SynmanagerError as error:
            page = self.message("The broker does not answer", shown(error, 500), 503)
        return self.framed(page, path)

    def message(self, title: str, text: str, status: int) -> Page:
        """A page that says one thing."""
        return Page("message.html", title, {"text": text}, status=status)

    def framed(self, page: Page, path: str) -> Page:
        """Add what all pages have: what there is of everything, and what is wrong."""
        summary, observer = self._summaries.newest(), self._observer
        with observer.looking():
            counts = dict(observer.counts)
            dead = sum(found.dead for found in counts.values() if found is not None)
            workers = observer.jobs.fold.workers.values()
            workers_there = sum(worker.state != "gone" for worker in workers)
            sweeps = len(observer.sweeps.by_name)
        waiting = sum(
            found.ready + (found.delayed or 0)
            for queue, found in counts.items()
            if found is not None and not queue.startswith(COMPLETED.queue)
        )
        tabs = (
            ("/", "Running", summary.states["running"]),
            ("/waiting", "Waiting", waiting),
            ("/sweeps", "Sweeps", sweeps),
            ("/dead", "Dead letters", dead),
            ("/workers", "Workers", workers_there),
            ("/broker", "Broker", None),
        )
        page.pieces["tabs"] = self._make("tabs", tabs, path)
        page.pieces["state"] = self._make(
            "trouble", observer.trouble, None if observer.is_caught_up else observer.read
        )
        return page

    def rendered(self, page: Page, **more: Any) -> str:
        """All of a page's HTML."""
        template = self._templates.get_template(page.template)
        return template.render(page=page, title=page.title, **page.context, **more)

    def running(self, query: dict[str, str]) -> Page:
        """What runs, and what ended last."""
        summary = self._summaries.newest()
        states = summary.states
        page = Page("running.html", "Running")
        page.pieces["tiles"] = self._make("tiles", states, self._dead())
        page.pieces["more"] = self._make("more", len(summary.running), states["running"], "running")
        tags = self._tags(job.worker for job in summary.running)
        page.lists["running"] = self._rows("running_row", summary.running, tags)
        page.lists["ended"] = self._rows("ended_row", summary.ended[:_LAST])
        return page

    def waiting(self, query: dict[str, str]) -> Page:
        """The queues, and what is next in each."""
        summary, observer, now = self._summaries.newest(), self._observer, time.time()
        with observer.looking():
            counts = dict(observer.counts)
            workers = observer.jobs.workers()
            curves = {name: observer.curves.of(name, now) for name in with_phases(counts)}
            paused = observer.jobs.paused()
        only = query.get("phase", "")
        page = Page("waiting.html", "Waiting")
        cards: dict[str, Markup] = {}
        rows: dict[str, Markup] = {}
        for name in with_phases(counts):
            found, lane = counts.get(name), summary.lanes.get(name, Lane())
            is_phase = name in {phase.queue for phase in PHASES.values()}
            if found is None and not lane.later and not lane.ranks and not is_phase:
                continue
            able = [worker for worker in workers if worker.takes(name)]
            idle = sum(worker.job is None for worker in able)
            cards[key_of("lane", name)] = self._make(
                "lane", name, key_of("lane", name), found, lane, len(able), idle,
                _path(curves[name]), only == name, paused.get(name),
                self.allows and name in WORK_PHASES,
            )  # fmt: skip
            if only and only != name:
                continue
            first = lane.first[: MOST if only else 10]
            for place, job in enumerate(first):
                told = "it is paused" if name in paused else _told(len(able), idle)
                why = f"number {place + 1:,} of {shown(name, 40)}; {told}"
                rows[_key(job)] = self._make("waiting_row", job, _key(job), _link(job), why)
            for job in lane.soon[: MOST if only else 10]:
                rows[_key(job)] = self._make("waiting_row", job, _key(job), _link(job), "")
        page.lists["lanes"] = cards
        page.lists["waiting"] = rows
        page.pieces["filter"] = self._make("filter", only, len(rows))
        return page

    def job(self, query: dict[str, str]) -> Page:
        """One job: how it is, and how it came to that."""
        observer, job_id = self._observer, query.get("id", "")
        with observer.looking():
            found = observer.jobs.fold.get(job_id, query.get("phase") or None)
            if found is None:
                return self.message(
                    "No such job", f"The journal does not know {shown(job_id)}, or no longer.", 404
                )
            job = at_time(found, time.time())
            moments = observer.timelines.of(job.phase, job.id)
            body = observer.timelines.body_of(job.phase, job.id, job.submitted_at)
            workers = observer.jobs.workers()
            why = observer.jobs.why(job.id, job.phase) if job.state != "queued" else ""
            pause = observer.jobs.paused().get(job.phase)
        if job.state == "queued":
            why = why_queued(job, ahead_of(observer, job), workers, pause)
        page = Page("job.html", shown(job.id, 80), {"job": job})
        is_letter = job.state == "dead"
        page.pieces["head"] = self._make(
            "job_head", job, hidden_in_text(why), self.allows, query_of(**_names(job)),
            is_letter and bool(self.letters.chosen(job.phase, "", job.id)),
        )  # fmt: skip
        page.pieces["facts"] = self._make(
            "job_facts", job, observer.settings.max_attempts, self._tags([job.worker])
        )
        page.lists["timeline"] = {
            key_of("moment", place): self._make("moment", moment, key_of("moment", place))
            for place, moment in enumerate(moments)
        }
        page.pieces["given"] = self._make("given", self._given(job, body))
        page.pieces["trace"] = self._make("trace", job.traceback)
        return page

    def _given(self, job: State, body: str | None) -> str | None:
        """What a job was given, without its secrets; None where nobody tells."""
        if body is None and job.state == "dead":
            letter = self.letters.in_full(job.phase, job.id)
            return None if letter is None else parameters(letter.message.body)
        # In JSON, half of a character is written as it is escaped here.
        return None if body is None else parameters(body.encode("utf-8", "backslashreplace"))

    def sweeps(self, query: dict[str, str]) -> Page:
        """All sweeps, the youngest first."""
        with self._observer.looking():
            known = [replace(sweep) for sweep in self._observer.sweeps.by_name.values()]
            known = [replace(each, counts=each.counts.copy()) for each in known]
        page = Page("sweeps.html", "Sweeps")
        page.lists["sweeps"] = {
            key_of("sweep", each.name): self._make(
                "sweep_row", each, key_of("sweep", each.name), STATES
            )
            for each in reversed(known[-MOST:])
        }
        page.pieces["more"] = self._make("more", min(len(known), MOST), len(known), "sweeps")
        return page

    def sweep(self, query: dict[str, str]) -> Page:
        """One sweep: a square for each of its jobs."""
        name = query.get("name", "")
        with self._observer.looking():
            known = self._observer.sweeps.by_name.get(name)
            if known is None:
                return self.message(
                    "No such sweep", f"The journal knows no sweep {shown(name)}.", 404
                )
            sweep = replace(
                known,
                counts=known.counts.copy(),
                members=known.members[:],
                figures={key: replace(each) for key, each in known.figures.items()},
            )
            get = self._observer.jobs.fold.get
            of_note = [
                replace(job)
                for number, state in enumerate(sweep.members)
                if STATES[state] in ("dead", "running", "retrying")
                and (job := get(f"{name}.{number}", PHASES[sweep.phase].queue)) is not None
            ][:MOST]
        page = Page("sweep.html", name, {"sweep": sweep})
        page.pieces["head"] = self._make("sweep_head", sweep, STATES, self.allows)
        page.lists["squares"] = self._squares(sweep)
        page.pieces["figures"] = self._make("figures", sweep, _member_link(sweep))
        of_note.sort(key=lambda job: (job.state != "dead", job.started_at or 0.0))
        page.lists["noted"] = self._rows("member_row", of_note)
        return page

    def _squares(self, sweep: SweepView) -> dict[str, Markup]:
        link = _member_link(sweep)
        return {
            f"s{number}": Markup(  # by hand: a template would take a second for thousands
                '<li id="s%s"><a class="square is-%s" href="%s" title="%s %s" aria-label="%s %s">'
                "</a></li>"
            )
            % (
                number, sweep.state_of(number), link(f"{sweep.name}.{number}"),
                number, sweep.state_of(number), number, sweep.state_of(number),
            )
            for number in range(min(sweep.total, _SQUARES))
        }  # fmt: skip

    def dead(self, query: dict[str, str]) -> Page:
        """Dead letters by reason; with one named, each of them."""
        queue, cause = query.get("queue", ""), query.get("cause", "")
        page = Page("dead.html", "Dead letters")
        if cause:
            letters = self.letters.chosen(queue, cause, "")
            page.context["reason"] = letters[0].reason if letters else "No such letters, or no more"
            page.lists["letters"] = {
                key_of("letter", each.queue, each.id, place): self._make(
                    "letter_row", each, key_of("letter", each.queue, each.id, place),
                    query_of(queue=each.queue, id=each.id),
                )
                for place, each in enumerate(letters[:MOST])
            }  # fmt: skip
            about = query_of(queue=queue, cause=cause)
            page.pieces["settle"] = self._make("settle", len(letters), about, self.allows)
            page.pieces["more"] = self._make(
                "more", min(MOST, len(letters)), len(letters), "letters"
            )
            page.template = "letters.html"
            return page
        groups = self.letters.groups()
        page.lists["groups"] = {
            key_of("group", each.queue, each.reason): self._make(
                "group_row", each, key_of("group", each.queue, each.reason),
                query_of(queue=each.queue, cause=each.cause), self.allows,
            )
            for each in groups
        }  # fmt: skip
        shown_here = sum(len(group.letters) for group in groups)
        # What was counted may be older than what is seen.
        page.pieces["more"] = self._make(
            "more", shown_here, max(shown_here, self._dead()), "letters"
        )
        return page

    def letter(self, query: dict[str, str]) -> Page:
        """One dead letter, in full."""
        queue, letter_id = query.get("queue", ""), query.get("id", "")
        letter = self.letters.in_full(queue, letter_id)
        if letter is None:
            return self.message(
                "No such letter",
                f"Among the oldest dead letters is no {shown(letter_id)}, or no longer.",
                404,
            )
        return Page(
            "letter.html",
            shown(letter_id, 80),
            {
                "letter": letter,
                "given": parameters(letter.message.body),
                "about": query_of(queue=queue, id=letter_id),
                "job": query_of(phase=queue, id=letter_id),
                "allows": self.allows,
            },
        )

    def workers(self, query: dict[str, str]) -> Page:
        """Who works, by host."""
        now = time.time()
        with self._observer.looking():
            known = [replace(each) for each in self._observer.jobs.fold.workers.values()]
        there = [each for each in known if each.state != "gone" or now - each.since < _LEFT]
        there.sort(key=lambda each: (each.host, each.state == "gone", each.pid, each.id))
        page = Page("workers.html", "Workers")
        page.lists["workers"] = {
            key_of("worker", each.id): self._worker(each, is_first)
            for each, is_first in _first_of_host(there)
        }
        return page

    def _worker(self, worker: WorkerState, is_first: bool) -> Markup:
        link = ""
        if worker.job is not None:
            phase, job_id = worker.job
            link = query_of(phase=phase, id=job_id)
        return self._make("worker_row", worker, key_of("worker", worker.id), link, is_first)

    def broker(self, query: dict[str, str]) -> Page:
        """What the broker says of itself, what would hurt, and what was done from here."""
        seen, found = self._observer.examine()
        with self._observer.looking():
            counts = dict(self._observer.counts)
            actions = list(self._observer.actions)[::-1][:20]
        page = Page("broker.html", "Broker", {"seen": seen, "findings": found})
        page.pieces["counts"] = self._make(
            "queue_counts", {name: counts.get(name) for name in with_phases(counts)}, seen.facts
        )
        page.lists["actions"] = {
            key_of("action", each.source, each.time): self._make(
                "action_row", each, key_of("action", each.source, each.time)
            )
            for each in actions
        }
        return page

    def _dead(self) -> int:
        with self._observer.looking():
            return sum(found.dead for found in self._observer.counts.values() if found is not None)

    def _tags(self, workers: Iterable[str | None]) -> dict[str, tuple[str, ...]]:
        """The tags of workers by their ids, as far as they have announced any."""
        with self._observer.looking():
            known = self._observer.jobs.fold.workers
            return {
                name: known[name].tags for name in workers if name is not None and name in known
            }

    def _rows(self, macro: str, jobs: Iterable[State], *more: Any) -> dict[str, Markup]:
        most = self._observer.settings.max_attempts
        return {
            _key(job): self._make(macro, job, _key(job), _link(job), most, *more) for job in jobs
        }

    def _make(self, macro: str, *values: Any) -> Markup:
        made: Markup = getattr(self._macros, macro)(*values)
        return made


def parameters(body: bytes) -> str:
    """A job as people read it, without its secrets."""
    try:
        job = hidden(decode(body))
    except Undecodable:
        return hidden_in_text(body.decode("utf-8", "backslashreplace"))[:2000]
    return _written(job)


def editable(letter: DeadLetter) -> str | None:
    """A dead letter's job as a text to edit, its secrets hidden; None if it is none to edit."""
    try:
        return _written(hidden(decode(letter.message.body)))
    except Undecodable:
        return None


def _written(job: object) -> str:
    """JSON for people: letters of all scripts, but nothing that moves others about."""
    text = json.dumps(job, indent=2, ensure_ascii=False)
    return "".join(
        each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text
    )


def _names(job: State) -> dict[str, str]:
    return {"phase": job.phase, "id": job.id}


def _key(job: State) -> str:
    return key_of("job", job.phase, job.id)


def _link(job: State) -> str:
    return f"/job?{query_of(**_names(job))}"


def _member_link(sweep: SweepView) -> Callable[[str], str]:
    queue = PHASES[sweep.phase].queue
    return lambda job_id: f"/job?{query_of(phase=queue, id=job_id)}"


def _told(able: int, idle: int) -> str:
    """What those who take a phase's jobs do, in few words."""
    if not able:
        return "no worker takes its jobs"
    if idle:
        return f"{idle:,} of {able:,} workers are idle"
    return "the one worker is busy" if able == 1 else f"all {able:,} workers are busy"


def _first_of_host(workers: list[WorkerState]) -> Iterable[tuple[WorkerState, bool]]:
    for _, some in groupby(workers, key=lambda worker: worker.host):
        for place, worker in enumerate(some):
            yield worker, place == 0


def _path(points: list[int]) -> dict[str, Any]:
    """A curve as the paths of an SVG, and the highest point."""
    highest = max(points, default=0)
    if len(points) < 2:
        return {"line": "", "area": "", "highest": highest, "span": 0}
    scale = (_HEIGHT - 4) / max(highest, 1)
    step = _WIDTH / (len(points) - 1)
    # Steps, up or down: nothing was in between.
    corners: list[str] = []
    before = None
    for place, value in enumerate(points):
        if value != before or place == len(points) - 1:
            x, y = place * step, _HEIGHT - 1 - value * scale
            corners.append(f"H{x:.1f}V{y:.1f}" if corners else f"M0 {y:.1f}")
            before = value
    line = "".join(corners)
    span = len(points) * STEP
    return {"line": line, "area": f"{line}V{_HEIGHT}H0Z", "highest": highest, "span": span}

"""``synmanager jobs``, ``job``, ``why``, ``cancel``, ``workers`` and ``events``: on the journal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from synmanager.cli.broker import backend_option, connected, tell
from synmanager.cli.output import as_json, json_option, table
from synmanager.cli.questions import agreed, yes_option
from synmanager.errors import Unsupported
from synmanager.terminal import complain
from synmanager.text import quoted, shown
from synmanager.words import ago, duration, moment, plural

if TYPE_CHECKING:
    from synmanager.jobs import Jobs
    from synmanager.journal.events import Event
    from synmanager.journal.fold import Fold, Progress, State, WorkerState

__all__ = ["cancel", "events", "job", "jobs", "why", "workers"]

#: Characters of a progress bar.
_BAR = 20

#: Seconds that one wait of ``events --follow`` lasts, and entries of one reading.
_WAIT, _LIMIT = 30.0, 1000

#: Before a log is of any use, somebody must write it.
_NOTHING = "nothing is recorded here: no job was submitted, or all have SYNMANAGER_JOURNAL=off"

_phase_option = click.option(
    "--phase", metavar="NAME", help="Whose job is meant, where several phases have used the id."
)


@contextmanager
def _journal(
    url: str | None, beside: Callable[[Event, Fold], None] = lambda event, fold: None
) -> Iterator[Jobs]:
    """Jobs for a ``with`` block; see ``Jobs.on`` for ``beside``."""
    from synmanager.backends.registry import create_backend
    from synmanager.engine.session import Session
    from synmanager.jobs import Jobs
    from synmanager.journal.events import source
    from synmanager.settings import load_settings

    settings = load_settings(url=url)
    tell(settings.address)
    session = Session(create_backend(settings.address), settings.reconnect)
    found = Jobs.on(session, source("command"), beside)
    try:
        session.open()
        yield found
    finally:
        session.close()


def _known(found: Jobs, job_id: str, phase: str | None) -> State:
    state = found.get(job_id, phase)
    if state is None:
        elsewhere = found.get(job_id)
        if elsewhere is not None:
            raise click.ClickException(
                f"{shown(job_id)} is a job of {shown(elsewhere.phase)}, and not of {quoted(phase)}"
            )
        raise click.ClickException(
            f"the journal does not know {shown(job_id)}, or no longer; or {_NOTHING}"
        )
    return state


@click.command()
@click.option(
    "--limit",
    type=click.IntRange(1, 100_000),
    default=20,
    show_default=True,
    metavar="N",
    help="Of those that do not run.",
)
@backend_option
@json_option
def jobs(limit: int, backend: str | None, in_json: bool) -> None:
    """List jobs: those that run first, the longest at the top, then those last heard of.

    \b
    examples:
      synmanager jobs
      synmanager jobs --json | jq '.jobs[] | select(.state == "dead") | .id'
    """
    with _journal(backend) as found:
        running = found.running()
        mine = {(each.phase, each.id) for each in running}
        recent = found.recent(limit + len(running))
        others = [each for each in recent if (each.phase, each.id) not in mine][:limit]
    if in_json:
        as_json({"jobs": [_as_dict(each) for each in (*running, *others)]})
        return
    if not running and not others:
        print(_NOTHING)
        return
    head = ("job", "phase", "state", "attempt", "progress", "for", "ends in", "worker")
    print(table(head, [_row(each) for each in (*running, *others)]))


def _row(job: State) -> tuple[str, ...]:
    now = time.time()
    since = job.started_at if job.state == "running" else job.finished_at or job.submitted_at
    return (
        shown(job.id),
        shown(job.phase),
        job.state,
        str(job.attempt) if job.attempt else "-",
        _bar(job.progress) if job.state == "running" else "",
        duration(now - since) if since else "",
        duration(job.eta - now) if job.eta else "",
        shown(job.worker or ""),
    )


def _bar(progress: Progress | None) -> str:
    """What a job has said of itself last, in one line."""
    if progress is None:
        return ""
    told = []
    if progress.done is not None and progress.total:
        part = min(max(progress.done / progress.total, 0.0), 1.0)
        full = int(part * _BAR)
        told.append(f"[{'#' * full}{'.' * (_BAR - full)}] {part:.0%}")
    elif progress.done is not None:
        told.append(f"{progress.done:g}")
    if progress.text:
        told.append(shown(progress.text, 60))
    told += [f"{shown(name, 20)}={shown(value, 20)}" for name, value in progress.figures.items()]
    return " ".join(told[:5])


def _as_dict(job: State) -> dict[str, Any]:
    return {**asdict(job), "eta": job.eta}


@click.command()
@click.argument("job_id", metavar="ID")
@_phase_option
@backend_option
@json_option
def job(job_id: str, phase: str | None, backend: str | None, in_json: bool) -> None:
    """Show a job: how it is, and its timeline.

    \b
    examples:
      synmanager job p1-run-7
      synmanager job p1-run-7 --json | jq .events
    """
    heard: list[tuple[str, Event]] = []  # of this id, whatever its phase

    def hear(event: Event, fold: Fold) -> None:
        heard.extend((where, event) for where in _phases_of(event, job_id, fold))

    with _journal(backend, hear) as found:
        state = _known(found, job_id, phase)
        reason = found.why(job_id, state.phase)
    timeline = [event for where, event in heard if where == state.phase]
    timeline.sort(key=lambda event: event.time)  # each writer records in its own time
    if in_json:
        as_json(
            {
                **_as_dict(state),
                "why": reason,
                "events": [event.whole for event in timeline],
            }
        )
        return
    about = {
        "job": f"{shown(state.id)} of {shown(state.phase)}, rank {state.rank}",
        "state": f"{state.state}: {reason}",
        "worker": shown(state.worker or ""),
        "sweep": shown(state.sweep or ""),
        "progress": _bar(state.progress),
    }
    print("\n".join(f"{name:<9} {text}" for name, text in about.items() if text))
    for event in timeline:
        print(_line(event))
    if state.traceback:
        print("\n".join(shown(line, 300) for line in state.traceback.splitlines()))


def _phases_of(event: Event, job_id: str, fold: Fold) -> list[str]:
    """The phases in which an event is about a job of this id."""
    data = event.data
    ids = data.get("ids")
    is_named = data.get("id") == job_id or (isinstance(ids, list) and job_id in ids)
    if event.type.startswith("action.") and not ids:  # the fold knows whom it touches
        return [phase for phase, touched in fold.touched(event) if touched == job_id]
    if not is_named or not event.type.startswith(("job.", "action.")):
        return []
    return [where for where in (data.get("phase"), data.get("queue")) if isinstance(where, str)]


@click.command()
@click.argument("job_id", metavar="ID")
@_phase_option
@backend_option
def why(job_id: str, phase: str | None, backend: str | None) -> None:
    """Say in words how it is with a job, and why it does not run yet.

    \b
    examples:
      synmanager why p1-run-7
    """
    with _journal(backend) as found:
        state = _known(found, job_id, phase)
        print(found.why(job_id, state.phase))


@click.command()
@click.argument("job_ids", nargs=-1, required=True, metavar="ID ...")
@backend_option
@json_option
@yes_option
def cancel(job_ids: Sequence[str], backend: str | None, in_json: bool, yes: bool) -> None:
    """Ask that jobs do not run, or end.

    A job that waits is settled by the worker that takes it, without being run; one that runs is
    told at its next check() or progress(). Workers with SYNMANAGER_JOURNAL=off do not obey.

    \b
    examples:
      synmanager cancel p1-run-7
      synmanager cancel p1-run-7 p1-run-8 --yes
    """
    with _journal(backend) as found:
        agreed(f"Cancel {plural(len(job_ids), 'job')}?", yes)
        for job_id in job_ids:
            state = found.get(job_id)
            if state is None:
                complain(f"the journal does not know {shown(job_id)}, or no longer")
            elif state.finished_at is not None:
                complain(f"{shown(job_id)}: {found.why(job_id)}")
        found.cancel(*job_ids)
    if in_json:
        as_json({"asked": list(job_ids)})
    else:
        print(
            f"{plural(len(job_ids), 'job')} asked; what waits will not run, and what runs is told "
            "at its next check(), but for workers with SYNMANAGER_JOURNAL=off"
        )


@click.command()
@backend_option
@json_option
def workers(backend: str | None, in_json: bool) -> None:
    """List the workers that have announced themselves, and what they run.

    One that was killed while it waited is among them: who waits says nothing.

    \b
    examples:
      synmanager workers
    """
    with _journal(backend) as found:
        present = found.workers()
        is_recorded = bool(present or found.recent(1))
    if in_json:
        as_json({"workers": [asdict(each) for each in present]})
    elif present:
        head = ("worker", "state", "runs", "for", "phases", "tags", "version", "heard")
        print(table(head, [_worker_row(each) for each in present]))
    else:
        print("no worker has announced itself, or all have left" if is_recorded else _NOTHING)


def _worker_row(worker: WorkerState) -> tuple[str, ...]:
    return (
        shown(worker.id),
        worker.state,
        f"{shown(worker.job[1])} of {shown(worker.job[0])}" if worker.job else "",
        duration(time.time() - worker.since) if worker.since else "",
        ", ".join(map(shown, worker.phases)),
        ", ".join(map(shown, worker.tags)),
        shown(worker.version),
        ago(worker.seen_at),
    )


@click.command()
@click.option("--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option(
    "--since",
    type=click.FloatRange(0, 366 * 86_400),
    metavar="SECONDS",
    help="Only what is no older. [default: all; with --follow, what comes]",
)
@backend_option
@json_option
def events(follow: bool, since: float | None, backend: str | None, in_json: bool) -> None:
    """Print what the journal has recorded, oldest first.

    With --json one CloudEvent a line, as docs/journal.md describes them.

    \b
    examples:
      synmanager events --since 3600
      synmanager events --follow --json | jq .type
    """
    begin = 0.0
    if since is not None or follow:
        begin = time.time() - (since or 0.0)
    is_empty = True
    with connected(backend) as broker:
        for event in _events(broker, begin, follow=follow):
            is_empty = False
            if in_json:
                as_json(event.whole)
            else:
                print(_line(event))
            if follow:
                sys.stdout.flush()
    if is_empty and not in_json:
        print(_NOTHING if since is None else "nothing was recorded in this time")


def _events(broker: Any, begin: float = 0.0, *, follow: bool = False) -> Iterator[Event]:
    """Each event that can be read."""
    from synmanager.journal.events import EVENTS, read

    if not broker.features.journal:
        raise Unsupported(f"{broker.address.scheme} keeps no journal")
    after: str | float = begin
    while True:
        found = broker.replay(EVENTS, after, wait=_WAIT if follow else 0.0, limit=_LIMIT)
        for entry in found:
            after = entry.position
            yield from (event for event in read(entry.data) if event.time >= begin)
        if not found and not follow:
            return


#: What of an event's data a line does not repeat.
_SAID = (
    "id", "phase", "submitted_at", "started_at", "traceback", "given", "job", "result", "parts",
)  # fmt: skip


def _line(event: Event) -> str:
    told = {
        name: value for name, value in event.data.items() if name not in _SAID and value is not None
    }
    if isinstance(told.get("ids"), list):
        told["ids"] = len(told["ids"])
    if isinstance(told.get("due_at"), int | float):
        with suppress(ValueError, OverflowError, OSError):  # anybody may write into a log
            told["due_at"] = moment(told["due_at"])
    words = " ".join(
        f"{shown(name, 30)}={shown(json.dumps(value), 80)}" for name, value in told.items()
    )
    return f"{moment(event.time)}  {event.type:<16} {shown(event.subject)}  {words}".rstrip()

"""``synmanager submit``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import islice
from typing import IO, Any

import click

from synmanager.cli.broker import backend_option, refuse_what_ends_here, tell
from synmanager.cli.output import as_json, json_option
from synmanager.cli.queues import phase_argument
from synmanager.errors import NotPublished, SynmanagerError
from synmanager.message import Rank
from synmanager.phases import PHASES
from synmanager.settings import load_settings
from synmanager.terminal import complain
from synmanager.text import quoted
from synmanager.words import plural

__all__ = ["submit"]

#: Jobs that are confirmed together.
_BATCH = 200

_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}


class _Seconds(click.ParamType["float"]):
    """Seconds, or a number with a unit."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|)", str(value))
        if match is None:
            self.fail(f"{quoted(value)} is no time, such as 90, 15m, 2h or 1d", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


@click.command()
@phase_argument
@click.argument("job", nargs=-1, metavar="[JSON | KEY=VALUE ...]")
@click.option("--file", type=click.File("rb"), help="A JSON object per line; - is standard input.")
@click.option("--skip", type=click.IntRange(0), default=0, metavar="N", help="The first N lines.")
@click.option(
    "--priority",
    type=click.Choice([rank.name.lower() for rank in reversed(Rank)]),
    default="normal",
    show_default=True,
)
@click.option("--delay", type=_Seconds(), default=0.0, help="Until it may run: 90, 15m, 2h, 1d.")
@click.option("--id", "job_id", metavar="ID", help="Of a single job; by default a new one.")
@click.option("--time-limit", type=_Seconds(), help="For which it may run.")
@backend_option
@json_option
def submit(
    phase: str,
    job: Sequence[str],
    file: IO[bytes] | None,
    skip: int,
    backend: str | None,
    in_json: bool,
    job_id: str | None,
    **options: Any,
) -> None:
    """Queue a job, or every line of a file.

    A job is a JSON object, or KEY=VALUE for each of its keys, where a value that is no JSON is
    taken for a text. Prints the id of each job. It is a failure if the broker tells
    ids apart and a job with that --id waits, is delayed or runs already.

    \b
    examples:
      synmanager submit preprocess project_id=p1
      synmanager submit train '{"run": 1, "lr": 0.01}' --priority high
      synmanager submit train run=1 model=resnet --delay 15m --id p1-run-1
      synmanager submit train --file sweep.ndjson
    """
    if (file is None) == (not job):
        click.get_current_context().fail("give either a job, or --file")
    if file is not None and job_id is not None:
        click.get_current_context().fail("--id is for a single job")
    words = None if file is not None else _parse(job)
    address = load_settings(url=backend).address
    refuse_what_ends_here(address)
    tell(address)
    module = import_module(f"synmanager.{phase}")
    with getattr(module, f"{phase.capitalize()}ProducerOperator")(url=backend) as producer:
        if words is not None:
            ids = [producer.submit(words, job_id=job_id, **options)]
            if producer.repeats:
                raise click.ClickException(f"{quoted(job_id)} was not queued: its id is in use")
            _tell_ids(ids, phase, in_json)
        elif file is not None:
            _submit_lines(producer, phase, file, skip, in_json, options)


def _parse(words: Sequence[str]) -> dict[str, Any]:
    if len(words) == 1 and words[0].lstrip().startswith("{"):
        return _object(words[0], "the job")
    job: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not (key and equals):
            click.get_current_context().fail(
                f"{quoted(word)} is neither a JSON object nor KEY=VALUE"
            )
        if key in job:
            click.get_current_context().fail(f"{quoted(key)} is given twice")
        try:
            job[key] = json.loads(text)
        except (ValueError, RecursionError):
            job[key] = text
    return job


def _object(text: str | bytes, what: str) -> dict[str, Any]:
    try:
        job = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise click.ClickException(f"{what} is no JSON: {error}") from None
    if not isinstance(job, dict):
        raise click.ClickException(f"{what} is a JSON {type(job).__name__}, and no object")
    return job


def _submit_lines(
    producer: Any, phase: str, file: IO[bytes], skip: int, in_json: bool, options: dict[str, Any]
) -> None:
    lines = (
        (number, line) for number, line in enumerate(file, 1) if line.strip() and number > skip
    )
    done = 0
    last = skip
    try:
        with _progress(f"submitting to {PHASES[phase].queue}") as advance:
            while batch := list(islice(lines, _BATCH)):
                jobs = [_object(line, f"line {number}") for number, line in batch]
                _tell_ids(producer.submit_many(jobs, **options), phase, in_json)
                done += len(batch)
                last = batch[-1][0]
                advance(len(batch))
    except (SynmanagerError, click.ClickException, KeyboardInterrupt) as error:
        if isinstance(error, NotPublished) and error.unconfirmed:
            complain(f"{plural(len(error.unconfirmed), 'job')} of the last batch may be missing")
        complain(f"{plural(done, 'job')} queued; to go on: --skip {last}")
        raise
    if not in_json:
        complain(f"{plural(done, 'job')} queued")


def _tell_ids(ids: Sequence[str], phase: str, in_json: bool) -> None:
    for job_id in ids:
        if in_json:
            as_json({"id": job_id, "phase": phase})
        else:
            print(job_id)


@contextmanager
def _progress(what: str) -> Iterator[Any]:
    """A bar on standard error, if that is a terminal; gives a function to advance it by."""
    import sys

    if not sys.stderr.isatty():
        yield lambda number: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda number: progress.advance(task, number)

"""``synmanager status``."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict

import click

from synmanager.backends.base import Counts, QueueBackend
from synmanager.checks import count
from synmanager.cli.broker import backend_option, connected
from synmanager.cli.output import as_json, json_option, table
from synmanager.cli.queues import chosen, subscribed, subscriber_option
from synmanager.errors import AccessRefused
from synmanager.journal.marks import Marks, Pause, in_words
from synmanager.phases import WORK_PHASES
from synmanager.words import number

__all__ = ["status"]

#: Seconds between two looks of ``--watch``, by default.
_PERIOD = 2.0


@click.command()
@backend_option
@subscriber_option
@json_option
@click.option("--watch", is_flag=True, help="Refresh in place until Ctrl-C.")
@click.option(
    "--every",
    type=click.FloatRange(0.1, 86_400),
    default=_PERIOD,
    show_default=True,
    metavar="SECONDS",
    help="Between two looks of --watch.",
)
def status(
    backend: str | None, subscribers: Sequence[str], in_json: bool, watch: bool, every: float
) -> None:
    """Count the jobs in every queue.

    Ready, running, delayed, dead, and who waits for a job at this moment; - where the broker
    cannot tell. Which phases are paused, since when and by whom. Looking creates nothing.

    \b
    examples:
      synmanager status
      synmanager status --watch --backend sqlite:////data/jobs.db
      synmanager status --json | jq .queues.train.dead
    """
    with connected(backend) as broker:
        while True:
            seen, paused = _look(broker, subscribers)
            if watch and not in_json and sys.stdout.isatty():
                _watch(broker, subscribers, (seen, paused), every)
                return
            if in_json:
                as_json(
                    {
                        "queues": {name: _as_dict(*each) for name, each in seen.items()},
                        "paused": {pause.phase: asdict(pause) for pause in paused},
                    }
                )
            else:
                print(_as_table(seen, paused))
            if not watch:
                return
            sys.stdout.flush()
            time.sleep(every)


#: The counts and the consumers of each queue.
_Seen = dict[str, tuple["Counts | None", "int | None"]]


def _look(broker: QueueBackend, subscribers: Sequence[str]) -> tuple[_Seen, list[Pause]]:
    """Each queue's counts and consumers, no counts of one that is not there; and the pauses."""
    names = chosen([], [], broker.facts().queues)
    names += [name for name in map(subscribed, subscribers) if name not in names]
    consumers = broker.facts(names).consumers
    seen = {name: (count(broker, name), consumers.get(name)) for name in names}
    return seen, _pauses(broker)


def _pauses(broker: QueueBackend) -> list[Pause]:
    """The pauses that there are, as far as this user may know."""
    if not broker.features.journal:
        return []
    marks = Marks(broker.address.journal_age)
    with suppress(AccessRefused):
        marks.read(broker)
    return [pause for phase in WORK_PHASES if (pause := marks.pause_of(phase))]


def _as_dict(counts: Counts | None, consumers: int | None) -> dict[str, int | None] | None:
    if counts is None:
        return None
    return {
        "ready": counts.ready,
        "running": counts.leased,
        "delayed": counts.delayed,
        "dead": counts.dead,
        "consumers": consumers,
    }


def _as_table(seen: _Seen, paused: Sequence[Pause]) -> str:
    head = ("queue", "ready", "running", "delayed", "dead", "consumers")
    rows = []
    for name, (counts, consumers) in seen.items():
        cells = _as_dict(counts, consumers)
        rows.append((name, *(map(number, cells.values()) if cells else [""] * 5)))
    missing = [name for name, (counts, _) in seen.items() if counts is None]
    lines = [table(head, rows)]
    if missing:
        lines.append(f"not there yet: {', '.join(missing)}")
    lines += [in_words(pause) for pause in paused]
    return "\n".join(lines)


def _watch(
    broker: QueueBackend,
    subscribers: Sequence[str],
    seen: tuple[_Seen, list[Pause]],
    every: float,
) -> None:
    from rich.live import Live
    from rich.text import Text

    def shown(seen: tuple[_Seen, list[Pause]]) -> Text:
        return Text(f"{_as_table(*seen)}\n{time.strftime('%H:%M:%S')}  Ctrl-C ends it")

    with Live(shown(seen), auto_refresh=False) as live:
        while True:
            time.sleep(every)
            live.update(shown(_look(broker, subscribers)), refresh=True)

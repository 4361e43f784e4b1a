"""``synmanager purge``."""

from __future__ import annotations

import time

import click

from synmanager.cli.broker import backend_option, connected, note
from synmanager.cli.output import as_json, json_option
from synmanager.cli.questions import agreed, yes_option
from synmanager.cli.queues import phase_argument, subscribed
from synmanager.phases import COMPLETED, PHASES
from synmanager.words import number, plural

__all__ = ["purge"]


@click.command()
@phase_argument
@click.option("--subscriber", metavar="NAME", help="Of completed: the queue of this Archiver.")
@backend_option
@json_option
@yes_option
def purge(
    phase: str, subscriber: str | None, backend: str | None, in_json: bool, yes: bool
) -> None:
    """Remove the jobs of a phase that have not started.

    What is ready or delayed goes, as far as the broker can reach it; what runs and the dead
    letters stay. It asks first, as this cannot be undone.

    \b
    examples:
      synmanager purge train
      synmanager purge completed --subscriber archive --yes
    """
    if subscriber and phase != COMPLETED.name:
        click.get_current_context().fail("only completed has subscribers")
    queue = subscribed(subscriber) if subscriber else PHASES[phase].queue
    with connected(backend) as broker:
        counts = broker.count(queue)
        waiting = plural(counts.ready, "ready job")
        agreed(
            f"Remove {waiting} and {number(counts.delayed)} delayed ones of {queue} for good?", yes
        )
        at, removed = time.time(), broker.purge(queue)
        unseen = not broker.features.counts_delayed
        note(broker, backend, "purge_queue", at, removed, queue=queue, delayed=not unseen)
    if in_json:
        as_json({"queue": queue, "removed": removed})
    else:
        print(f"{plural(removed, 'job')} of {queue} removed")
        if unseen:
            print("delayed jobs cannot be reached on this broker: they come when they are due")

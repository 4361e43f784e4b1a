"""``synmanager unsubscribe``."""

from __future__ import annotations

import click

from synmanager.archiver import Archiver
from synmanager.cli.broker import backend_option, connected
from synmanager.cli.output import as_json, json_option
from synmanager.cli.questions import agreed, yes_option
from synmanager.cli.queues import subscribed
from synmanager.errors import TopologyError
from synmanager.words import plural

__all__ = ["unsubscribe"]


@click.command()
@click.argument("name")
@backend_option
@json_option
@yes_option
def unsubscribe(name: str, backend: str | None, in_json: bool, yes: bool) -> None:
    """End the subscription of a named Archiver that has left for good.

    Its queue is removed, with the results that it has not archived and its dead letters, and no
    more are kept for it. Other subscribers keep theirs. It asks first, as this cannot be undone.
    An Archiver that still runs under this name subscribes anew: stop it first.

    \b
    examples:
      synmanager unsubscribe audit
      synmanager unsubscribe audit --yes
    """
    archiver = Archiver(_nothing, name, url=backend)
    queue = subscribed(name)
    with connected(backend) as broker:
        try:
            counts = broker.count(queue)
        except TopologyError:
            raise click.ClickException(f"nobody has subscribed as {name}") from None
        waiting = counts.ready + (counts.delayed or 0) + (counts.leased or 0)
        agreed(
            f"Remove {queue} with {plural(waiting, 'result')} that it has not archived, and "
            f"{plural(counts.dead, 'dead letter')}, for good?",
            yes,
        )
    removed = archiver.unsubscribe()
    if in_json:
        as_json({"queue": queue, "removed": removed})
    else:
        print(f"{queue} removed, with {plural(removed, 'result')} that nobody had archived")


def _nothing(**result: object) -> None:
    """What an Archiver needs that never runs."""

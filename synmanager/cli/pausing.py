"""``synmanager pause`` and ``resume``."""

from __future__ import annotations

from dataclasses import asdict

import click

from synmanager.checks import at_hand, count
from synmanager.cli.broker import backend_option, connected, tell
from synmanager.cli.output import as_json, json_option
from synmanager.cli.questions import agreed, yes_option
from synmanager.jobs import Jobs
from synmanager.journal.marks import in_words
from synmanager.phases import PHASES, WORK_PHASES, WorkPhase
from synmanager.settings import load_settings

__all__ = ["pause", "resume"]

_phase_argument = click.argument("phase", type=click.Choice(list(WORK_PHASES)))


@click.command()
@_phase_argument
@backend_option
@json_option
@yes_option
def pause(phase: WorkPhase, backend: str | None, in_json: bool, yes: bool) -> None:
    """Have no more jobs of a phase taken, until it is resumed.

    Workers go on with their other phases, and what runs goes on to its end. Workers that begin
    later obey as well; those with SYNMANAGER_JOURNAL=off do not, nor does poll_message.

    \b
    examples:
      synmanager pause train
      synmanager pause train --yes && synmanager status
    """
    tell(load_settings(url=backend).address)
    with Jobs(url=backend) as found:
        known = found.paused().get(phase)
        if known is None:
            agreed(f"Pause {phase}, where {_waiting(phase, backend)}?", yes)
        made = found.pause(phase)
    if in_json:
        as_json({"paused": asdict(made)})
    elif known is not None:
        print(in_words(known))
    else:
        print(f"{phase} is paused; what runs goes on to its end")


@click.command()
@_phase_argument
@backend_option
@json_option
@yes_option
def resume(phase: WorkPhase, backend: str | None, in_json: bool, yes: bool) -> None:
    """Have jobs of a paused phase taken again.

    \b
    examples:
      synmanager resume train
    """
    tell(load_settings(url=backend).address)
    with Jobs(url=backend) as found:
        known = found.paused().get(phase)
        if known is not None:
            agreed(f"{in_words(known)}. Resume it, where {_waiting(phase, backend)}?", yes)
            known = found.resume(phase)
    if in_json:
        as_json({"resumed": None if known is None else asdict(known)})
    elif known is None:
        print(f"{phase} is not paused")
    else:
        print(f"{phase} goes on: workers that wait take its jobs within about 3 s")


def _waiting(phase: WorkPhase, backend: str | None) -> str:
    with connected(backend, say=False) as broker:
        return at_hand(count(broker, PHASES[phase].queue))

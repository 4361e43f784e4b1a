"""The queues that a command is about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import click

from synmanager.backends.base import QueueSpec
from synmanager.phases import COMPLETED, PHASES, with_phases

__all__ = [
    "chosen",
    "phase_argument",
    "queue_options",
    "spec_of",
    "subscribed",
    "subscriber_option",
]

Command = TypeVar("Command", bound=Callable[..., Any])

_PHASE = click.Choice(list(PHASES))


def phase_argument(command: Command) -> Command:
    return click.argument("phase", type=_PHASE)(command)


def queue_options(command: Command) -> Command:
    """Give a command ``--phase`` and ``--subscriber``, any number of each; none means all."""
    phase = click.option(
        "--phase", "phases", type=_PHASE, multiple=True, help="Of this phase only; may be repeated."
    )
    return phase(
        _subscribers("Of this Archiver's queue only; may be repeated, and beside --phase.")(command)
    )


def subscriber_option(command: Command) -> Command:
    """Give a command about all queues ``--subscriber``, any number of it."""
    return _subscribers("Also of this Archiver's, where the broker does not list them.")(command)


def _subscribers(text: str) -> Callable[[Command], Command]:
    return click.option("--subscriber", "subscribers", metavar="NAME", multiple=True, help=text)


def subscribed(name: str) -> str:
    """The queue of a named subscriber to the results."""
    return f"{COMPLETED.queue}-{name}"


def chosen(
    phases: Sequence[str], subscribers: Sequence[str], known: Iterable[str] | None = None
) -> list[str]:
    """The names of the queues that are meant: the phases' by rank, then the others.

    Args:
        phases, subscribers: all, if neither names any.
        known: what the broker lists.
    """
    names = [PHASES[name].queue for name in phases]
    if not phases and not subscribers:
        names = with_phases(known)
    return [*names, *(subscribed(name) for name in subscribers if subscribed(name) not in names)]


def spec_of(queue: str) -> QueueSpec:
    """How a queue is declared: one of the phases', or a subscriber's."""
    for phase in PHASES.values():
        if phase.queue == queue:
            return phase.spec
    return QueueSpec(queue, COMPLETED.exchange, COMPLETED.routing_key)

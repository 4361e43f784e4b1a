"""What somebody did to jobs in their queues, as the journal tells of it: the one way to say so."""

from __future__ import annotations

import getpass
import logging
import os
from collections.abc import Callable, Collection
from typing import Any

from synmanager.backends.base import QueueBackend
from synmanager.errors import SynmanagerError
from synmanager.journal.events import EVENTS, Event, chunks, together
from synmanager.text import shown

__all__ = ["acted", "record", "user", "user_here"]

logger = logging.getLogger(__name__)

#: Runs something on a connection: a session's ``call``, for one.
Call = Callable[[Callable[[QueueBackend], None]], None]


def user() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "somebody"


def user_here() -> str:
    """The same, and where."""
    return f"{user()}@{os.uname().nodename}"


def acted(
    kind: str,
    source: str,
    at: float,
    number: int,
    ids: Collection[str] = (),
    *,
    who: str = "",
    **about: Any,
) -> list[Event]:
    """The events that tell of an action: one, or several if it touches more jobs than one names.

    Args:
        kind: ``redrive``, ``purge``, ``purge_queue``, ``edit``, ``cancel``, ``retry`` or
            ``unsubscribe``.
        at: when it was begun, in seconds since the epoch: what died or was submitted later was
            not touched.
        number: of jobs that it touched; 0 says nothing.
        ids: of theirs; none if nobody knows, then they are the oldest.
        who: by default whoever runs this process.
        about: ``queue`` and the like.
    """
    events = []
    who, parts, left = who or user_here(), list(chunks(sorted(ids))) or [[]], number
    for place, part in enumerate(parts, 1):
        touched = left if place == len(parts) else min(left, len(part))
        left -= touched
        if touched:
            data = {"who": who, "number": touched, "ids": part, **about}
            events.append(Event(f"action.{kind}", source, at, who, data))
    return events


def record(call: Call, events: list[Event]) -> None:
    """Record what was done. It is done: that nobody can write it undoes nothing."""
    if not events:
        return
    try:
        call(lambda backend: backend.record(EVENTS, list(together(events))))
    except SynmanagerError as error:
        first = events[0]
        logger.warning("not recorded: %s %s: %s", first.type, shown(first.data), shown(error, 500))

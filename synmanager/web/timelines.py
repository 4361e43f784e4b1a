"""What happened to each job, as far back as there is room for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from synmanager.journal.events import Event, micro, moment

__all__ = ["Moment", "Timelines"]

#: Moments of all jobs, and of one.
_MOST, _MOST_OF_ONE = 50_000, 200

#: Jobs that came with their beginning or their end, and characters of one.
_MOST_BODIES, _LONGEST_BODY = 2_000, 4_000

#: Signs of life, of which the last says as much as all.
_SIGNS = ("progress", "checkpoint", "renewed")


@dataclass(slots=True)
class Moment:
    """Something that happened, or happened several times in a row.

    Attributes:
        kind: the event's type without ``job.``.
        at: seconds since the epoch, of the last time.
        times: how often.
        data: of the last time; without what an end of a sweep's job carries.
    """

    kind: str
    at: float
    source: str
    data: Mapping[str, Any]
    times: int = 1


class Timelines:
    """The moments of the jobs that something was heard of last."""

    def __init__(self) -> None:
        self._of: OrderedDict[tuple[str, str], list[Moment]] = OrderedDict()
        self._bodies: OrderedDict[tuple[str, str], tuple[int, str]] = OrderedDict()
        self._number = 0

    def note(self, event: Event) -> None:
        """Take a job's event in; submissions of many at once are the fold's to tell."""
        kind = event.type.removeprefix("job.")
        phase, job_id = event.data.get("phase"), event.data.get("id")
        if not isinstance(phase, str) or not isinstance(job_id, str) or kind == "part":
            return
        key = (phase, job_id)
        body = event.data.get("job") or event.data.get("given")
        if isinstance(body, str) and 0 < len(body) <= _LONGEST_BODY:
            self._bodies[key] = (micro(moment(event.data.get("submitted_at"))), body)
            if len(self._bodies) > _MOST_BODIES:
                self._bodies.popitem(last=False)
        said = {
            name: event.data[name]
            for name in ("attempt", "reason", "due_at", "started_at", "done", "total", "text",
                         "figures", "submitted_at")
            if event.data.get(name) is not None
        }  # fmt: skip
        self._add(key, Moment(kind, event.time, event.source, said))

    def note_action(self, event: Event, keys: Iterable[tuple[str, str]]) -> None:
        """Take in what somebody did to some jobs."""
        said = {"reason": f"by {event.data.get('who')}"}
        kind = event.type.removeprefix("action.")
        for key in keys:
            self._add(key, Moment(kind, event.time, event.source, said))

    def _add(self, key: tuple[str, str], moment: Moment) -> None:
        moments = self._of.setdefault(key, [])
        self._of.move_to_end(key)
        if moment.kind in _SIGNS and moments and moments[-1].kind == moment.kind:
            moments[-1] = replace(moment, times=moments[-1].times + 1)
            return
        moments.append(moment)
        self._number += 1
        if len(moments) > _MOST_OF_ONE:
            del moments[0]
            self._number -= 1
        while self._number > _MOST:
            self._number -= len(self._of.popitem(last=False)[1])

    def of(self, phase: str, job_id: str) -> list[Moment]:
        """A job's moments, the oldest first: each writer records in its own time."""
        return sorted(self._of.get((phase, job_id), ()), key=lambda moment: moment.at)

    def body_of(self, phase: str, job_id: str, submitted_at: float | None) -> str | None:
        """What a submission was given: in full if its end told that, as one of a sweep does; else
        as its beginning did, without secrets and perhaps cut off."""
        told_at, body = self._bodies.get((phase, job_id), (None, None))
        return body if told_at == micro(submitted_at) else None

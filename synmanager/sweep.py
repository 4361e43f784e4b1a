"""Many jobs that belong together: submitted at once, and followed to their ends."""

from __future__ import annotations

import json
import math
import re
import time
from collections import Counter, OrderedDict
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from synmanager.backends.registry import create_backend
from synmanager.engine.session import Session
from synmanager.errors import InvalidJob, NotPublished, SynmanagerError
from synmanager.journal.events import (
    EVENTS,
    MALFORMED,
    MARKS,
    SWEEP,
    SWEEPS,
    Event,
    chunks,
    micro,
    moment,
    source,
    write,
)
from synmanager.journal.fold import ENDED
from synmanager.journal.marks import SETTLED, cancel_mark
from synmanager.journal.names import Name
from synmanager.journal.reader import Reader
from synmanager.message import TIME_LIMIT, Message, Rank, new_id
from synmanager.phases import PHASES, Phase
from synmanager.settings import load_settings
from synmanager.terminal import Bar
from synmanager.text import quoted

__all__ = ["Done", "Sweep"]

#: Seconds by which the clocks of a submitter and of a broker may differ.
_SKEW = 3600.0

#: Seconds for who has just taken a name to say in the journal what it begins.
_BEGINS = 2.0

#: What an event says of a job, as the state that it is in.
_STATES = {
    "started": "running",
    "retried": "retrying",
    "given_back": "queued",
    "succeeded": "succeeded",
    "died": "dead",
    "cancelled": "cancelled",
}


@dataclass(frozen=True)
class Done:
    """A job of a sweep that has ended.

    Attributes:
        id: the sweep's name, a dot, and the job's number, from 0.
        job: as it was submitted; empty if it was purged or deleted from its queue.
        result: the mapping that its handler returned; None if it returned none.
        error: None if it has succeeded; else why it is dead or cancelled.
    """

    id: str
    job: dict[str, Any]
    result: dict[str, Any] | None
    error: str | None


class Sweep:
    """The jobs of one ``producer.sweep()``, and what becomes of them.

    What has become of a job is told by the worker that ends it, in the journal, and is known there
    for as long as the journal keeps it. It has a connection of its own; :meth:`close` it, or use
    it in a ``with`` block.

    Attributes:
        name: which finds it again, see :meth:`attach`.
        total: how many jobs there are.
        submitted_at: seconds since the epoch.

    Raises:
        InvalidJob: the name cannot be one.
        BrokerUnavailable, AccessRefused: as an operator's ``connect()``.

    Example:
        >>> from synmanager import Worker
        >>> from synmanager.train import TrainProducerOperator
        >>> with TrainProducerOperator(url="memory") as producer:
        ...     sweep = producer.sweep([{"lr": 0.1}, {"lr": 0.2}])
        >>> Worker({"train": lambda lr: {"loss": lr * 2}}, url="memory").run(burst=True)
        2
        >>> with sweep:
        ...     [done.result for done in sweep.results()]
        [{'loss': 0.2}, {'loss': 0.4}]
    """

    def __init__(self, session: Session, name: str | None = None) -> None:
        self.name = new_id()[:12] if name is None else name
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", self.name):
            raise InvalidJob(
                f"a sweep's name is 1 to 100 letters, digits, - or _; not {quoted(self.name)}"
            )
        self.total = 0
        self.submitted_at = 0.0
        self._session = session
        self._source = source("sweep")
        self._phase: Phase | None = None  # once its beginning is known
        self._is_complete = False
        self._headers: dict[str, str] = {}  # which each of its jobs has
        self._states: dict[str, tuple[int, str]] = {}  # by id: which submission, and its state
        self._due: dict[str, float] = {}  # until when those wait that are tried again
        self._taken: set[str] = set()
        self._counts: Counter[str] = Counter()
        self._ready: OrderedDict[str, None] = OrderedDict()  # to be given out, in order
        self._ends: dict[str, Done] = {}  # of those that are ready, and of the dead
        self._ranks: dict[str, str] = {}  # of the dead
        self._purged: set[str] = set()  # ended with their queue, unless a worker had them
        self._parts: dict[tuple[str, str], str] = {}
        session.open()
        self._name = None if name is None else Name(session, name)
        self._begun = None if self._name is None else self._name.look()
        began_at = time.time() if self._begun is None else self._begun.recorded_at
        self._reader = Reader(session, self._apply, began_at - _SKEW)

    @classmethod
    def begin(
        cls,
        session: Session,
        phase: Phase,
        total: int,
        name: str | None = None,
        time_limit: str | None = None,
    ) -> Sweep:
        """Make one, of which nothing is submitted yet; or find what was cut off.

        Args:
            time_limit: of each of its jobs, as their headers tell it.

        Raises:
            InvalidJob: there is one of this name, or it cannot be a name.
        """
        try:
            sweep = cls(session, name)
            if sweep._begun is not None:  # perhaps it is at it this very moment
                sweep._reader.until(lambda: sweep._phase is not None, _BEGINS)
            if sweep._is_complete or (
                sweep._phase and (sweep._phase, sweep.total) != (phase, total)
            ):
                raise InvalidJob(
                    f"there is a sweep {quoted(name)} already, of {sweep.total:,} jobs; "
                    "Sweep.attach() finds it"
                )
            if sweep._phase is None:
                sweep._begin(phase, total, time_limit)
        except BaseException:
            session.close()
            raise
        return sweep

    @classmethod
    def attach(
        cls,
        name: str,
        host: str | None = None,
        port: int | str | None = None,
        *,
        url: str | None = None,
        again: bool = False,
    ) -> Sweep:
        """Find a sweep, in whatever process, to go on where its Director was.

        A job counts as taken once :meth:`results` was asked for the next one, and that is
        recorded before that is given out. So what a Director was working at when it died comes
        once more, and nothing else does.

        Args:
            host, port, url: as for an operator.
            again: from the beginning, whatever was taken.

        Raises:
            InvalidJob: there is no such sweep, or the journal no longer knows it.
            SynmanagerError: its submission was cut off. ``producer.sweep()`` with the same jobs
                and this name finishes it.
        """
        settings = load_settings(host, port, url=url)
        sweep = cls.find(Session(create_backend(settings.address), settings.reconnect), name)
        if again:
            sweep._taken.clear()
        return sweep

    @classmethod
    def find(cls, session: Session, name: str) -> Sweep:
        """As :meth:`attach`, on a connection that is then its own.

        Raises:
            as :meth:`attach`; the session is then closed.
        """
        try:
            sweep = cls(session, name)
            if sweep._begun is not None:
                sweep._reader.catch_up()
            if sweep._phase is None:
                raise InvalidJob(f"the journal knows no sweep {quoted(name)}")
            if not sweep._is_complete:
                raise SynmanagerError(
                    f"the submission of the sweep {quoted(name)} was cut off; call "
                    "producer.sweep() with the same jobs and this name to finish it"
                )
        except BaseException:
            session.close()
            raise
        return sweep

    def ids(self) -> list[str]:
        """The ids of all its jobs, in order."""
        return [f"{self.name}.{number}" for number in range(self.total)]

    def knows(self, job_id: str) -> bool:
        """Whether anything was heard of a job since it was submitted."""
        return job_id in self._states

    def is_submitted(self) -> None:
        """Record that all of it is queued."""
        self._is_complete = True
        self._record("submitted")

    def counts(self) -> dict[str, int]:
        """How many of its jobs are in which state; zeros left out."""
        self._reader.catch_up()
        found = self._counts.copy()
        found["queued"] += self.total - len(self._states)
        return {state: number for state, number in found.items() if number}

    def results(self, timeout: float | None = None) -> Generator[Done, None, None]:
        """Each job that ends, well or not, as it ends; until none is left.

        A bar shows how far it is, where standard error is a terminal. A job that is dead, and is
        redriven or retried, comes once more. When somebody purges the queue, what waits there is
        cancelled, as is a job that somebody deletes; its ``job`` is empty then, because only who
        takes a job from its queue tells it.

        Args:
            timeout: seconds to wait for the next one; None for as long as it takes.

        Raises:
            TimeoutError: none came in time. What was not given out comes with the next call.
            ConfigurationError: the timeout is no number of seconds.
        """
        bar = Bar()
        self._reader.catch_up()
        try:
            while True:
                while (job_id := self._next()) is not None:
                    self._show(bar)
                    yield self._ends[job_id]
                    self._take(job_id)
                self._show(bar)
                if self._ended() >= self.total:
                    return
                if not self._reader.until(lambda: self._next() is not None, timeout):
                    raise TimeoutError(f"no job of the sweep {self.name} has ended in {timeout} s")
        finally:
            bar.end()

    def __iter__(self) -> Generator[Done, None, None]:
        return self.results()

    def cancel(self) -> None:
        """Ask that what has not ended does not run, or ends; see ``Jobs.cancel``."""
        until = max(time.time(), self.submitted_at)
        mark = write(cancel_mark(self._source, until, sweep=self.name))
        self._session.call(lambda backend: backend.record(MARKS, [mark]))
        time.sleep(SETTLED)

    def retry_dead(self) -> int:
        """Submit those that are dead once more; return how many.

        Their dead letters stay where they are.
        """
        self._reader.catch_up()
        assert self._phase is not None
        now = time.time()
        dead = [job_id for job_id, (_, state) in self._states.items() if state == "dead"]
        messages = [
            Message(
                json.dumps(self._ends[job_id].job, sort_keys=True).encode(),
                id=job_id,
                rank=Rank.parse(self._ranks[job_id]),
                submitted_at=now,
                headers={**self._headers, SWEEP: self.name},
            )
            for job_id in dead
        ]
        if not messages:
            return 0
        spec = self._phase.spec
        self._session.declare(spec)
        try:
            self._session.publish(spec.exchange.name, spec.routing_key, messages)
        except NotPublished as error:
            lost = {message.id for message in error.unconfirmed}
            self._tell_of([job_id for job_id in dead if job_id not in lost], now)
            raise
        self._tell_of(dead, now)
        return len(dead)

    def _tell_of(self, job_ids: list[str], submitted_at: float) -> None:
        """Record that some were submitted once more."""
        assert self._phase is not None
        for ids in chunks(job_ids):
            self._say(
                "job.submitted", phase=self._phase.queue, ids=ids, submitted_at=submitted_at,
                delay=0.0, rank=self._ranks[ids[0]], sweep=self.name,
            )  # fmt: skip

    def close(self) -> None:
        """Disconnect. The jobs go on."""
        self._session.close()

    def __enter__(self) -> Sweep:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _begin(self, phase: Phase, total: int, time_limit: str | None) -> None:
        about = {"phase": phase.name, "total": total, "submitted_at": time.time()}
        if time_limit is not None:
            about["time_limit"] = time_limit
        entry = write(self._event("sweep.begun", name=self.name, **about))
        self._session.call(lambda backend: backend.record(SWEEPS, [entry]))
        first = None if self._name is None else self._name.look()
        if first is not None and first.data != entry:
            raise InvalidJob(f"another sweep {quoted(self.name)} has just begun")
        self._session.call(lambda backend: backend.record(EVENTS, [entry]))
        self._hear("begun", about)

    def _next(self) -> str | None:
        """The next one to be given out."""
        while self._ready:
            job_id = next(iter(self._ready))
            if job_id not in self._taken:
                return job_id
            del self._ready[job_id]
            if self._states[job_id][1] != "dead":  # which may be submitted once more
                self._ends.pop(job_id, None)
        return None

    def _take(self, job_id: str) -> None:
        """Record that a job was given out, before the next one is."""
        self._taken.add(job_id)
        self._record("taken", ids=[job_id])

    def _ended(self) -> int:
        return sum(self._counts[state] for state in ENDED)

    def _show(self, bar: Bar) -> None:
        ended = self._ended()
        failed = ended - self._counts["succeeded"]
        bar.show(ended, self.total, f"{failed:,} failed" if failed else "")

    def _set(self, job_id: str, at: int, state: str) -> None:
        known = self._states.get(job_id)
        if known is not None:
            self._counts[known[1]] -= 1
        self._counts[state] += 1
        self._states[job_id] = at, state

    def _record(self, kind: str, **data: Any) -> None:
        self._say(f"sweep.{kind}", name=self.name, **data)

    def _say(self, kind: str, **data: Any) -> None:
        entry = write(self._event(kind, **data))
        self._session.call(lambda backend: backend.record(EVENTS, [entry]))

    def _event(self, kind: str, **data: Any) -> Event:
        return Event(kind, self._source, time.time(), self.name, data)

    def _apply(self, event: Event) -> None:
        area, _, kind = event.type.partition(".")
        data = event.data
        try:
            if area == "sweep" and data["name"] == self.name:
                self._hear(kind, data)
            elif area == "job" and kind == "deleted":  # by who knows of no sweep
                self._deleted(event)
            elif area == "job" and data.get("sweep") == self.name:
                if kind == "submitted":
                    self._submitted(data)
                else:
                    self._job(kind, data)
            elif area == "action" and kind == "purge_queue":
                self._purge(event)
        except MALFORMED:
            return

    def _hear(self, kind: str, data: Mapping[str, Any]) -> None:
        if kind == "begun" and self._phase is None:
            phase, total, at = PHASES[data["phase"]], int(data["total"]), data["submitted_at"]
            if moment(at) is not None:
                self._phase, self.total, self.submitted_at = phase, total, at
                if data.get("time_limit") is not None:
                    self._headers[TIME_LIMIT] = str(data["time_limit"])
        elif kind == "submitted":
            self._is_complete = True
        elif kind == "taken":
            self._taken.update(map(str, data["ids"]))

    def _submitted(self, data: Mapping[str, Any]) -> None:
        at = micro(moment(data["submitted_at"]))
        for job_id in map(str, data["ids"]):
            known = self._states.get(job_id)
            if known is not None and known[0] < at:  # once more
                self._set(job_id, at, "queued")
                self._taken.discard(job_id)
                self._purged.discard(job_id)

    def _job(self, kind: str, data: Mapping[str, Any]) -> None:
        job_id, at = str(data["id"]), micro(moment(data["submitted_at"]))
        if kind == "part":
            key, begin = (job_id, str(data["name"])), int(data["begin"])
            if begin == 0 or begin == len(self._parts.get(key, "")):
                before = self._parts.get(key, "") if begin else ""
                self._parts[key] = before + str(data["text"])
            return
        state = _STATES.get(kind)
        submission, before_state = self._states.get(job_id, (0, "queued"))
        if state is None or at < submission:
            return
        if job_id in self._purged:
            if state not in ("running", *ENDED):
                return
            self._purged.discard(job_id)  # it was taken before, and is told late
            self._taken.discard(job_id)
        elif at == submission and (
            before_state == state or before_state in ("succeeded", "cancelled")
        ):
            return  # it ran, or was told, twice
        self._due.pop(job_id, None)
        if state not in ENDED:
            self._set(job_id, at, state)
            self._ready.pop(job_id, None)
            due_at = moment(data.get("due_at"))
            if state == "retrying" and due_at is not None:
                self._due[job_id] = due_at
        else:
            end, rank = self._end(job_id, state, data), str(data["rank"])  # if it can be read
            self._set(job_id, at, state)
            if before_state == "dead":
                self._taken.discard(job_id)
            self._ends[job_id], self._ranks[job_id] = end, rank
            self._ready[job_id] = None

    def _purge(self, event: Event) -> None:
        """Somebody has emptied a queue, and what waited there comes to no worker."""
        if not (self._is_complete and self._phase and event.data["queue"] == self._phase.queue):
            return
        due_by = math.inf if event.data.get("delayed") is True else event.time
        reason = f"purged from its queue by {event.data.get('who')}"
        for job_id in self.ids():
            _, state = self._states.get(job_id, (0, "queued"))
            is_due = state == "retrying" and self._due.get(job_id, math.inf) <= due_by
            if state == "queued" or is_due:
                self._remove(job_id, event, reason)

    def _deleted(self, event: Event) -> None:
        job_id = str(event.data["id"])
        if self._phase and event.data["phase"] == self._phase.queue and self._has(job_id):
            _, state = self._states.get(job_id, (0, "queued"))
            if state not in ENDED:
                self._remove(job_id, event, "deleted from its queue")

    def _has(self, job_id: str) -> bool:
        number = job_id.removeprefix(f"{self.name}.")
        return number.isdecimal() and int(number) < self.total and number == str(int(number))

    def _remove(self, job_id: str, event: Event, reason: str) -> None:
        """Somebody has taken a job from its queue, unless it was submitted later."""
        at, _ = self._states.get(job_id, (micro(self.submitted_at), ""))
        if at <= micro(event.time):
            self._set(job_id, at, "cancelled")
            self._purged.add(job_id)
            self._ends[job_id] = Done(job_id, {}, None, f"cancelled: {reason}")
            self._ready[job_id] = None

    def _end(self, job_id: str, state: str, data: Mapping[str, Any]) -> Done:
        texts = {name: data.get(name) for name in ("job", "result")}
        for name in data.get("parts", ()):
            texts[name] = self._parts.pop((job_id, name), None)
        job = json.loads(texts["job"] or "{}")
        result = None if not texts["result"] else json.loads(texts["result"])
        error = None if state == "succeeded" else f"{state}: {data.get('reason')}"
        return Done(job_id, job, result, error)

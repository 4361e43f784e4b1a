"""What became of jobs and workers, folded from the events of the journal; bounded, and pure."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from synmanager.journal.events import MALFORMED, SIGN, Event, attempt_of, micro, moment, number

__all__ = ["ENDED", "Fold", "Progress", "State", "WorkerState"]

#: What a job does not leave by itself.
ENDED = ("succeeded", "dead", "cancelled")

#: Seconds without a word after which a worker is taken for dead; and, while it runs a job, the
#: part of that job's age: the older that is, the more rarely it says something.
_SILENCE, _OF_AGE = 3 * SIGN, 0.05

_Key = TypeVar("_Key", str, tuple[str, str])

#: Jobs whose end is remembered one by one, the oldest are only counted; jobs in all; workers.
_MOST_ENDED, _MOST, _MOST_WORKERS = 10_000, 1_000_000, 10_000

#: Removals of what nobody has told of yet: that is a matter of a second.
_MOST_NOTES = 1_000


@dataclass(frozen=True)
class Progress:
    """What a job has said of itself last.

    Attributes:
        done, total, text, figures: as it gave them to ``job.progress``.
        at: seconds since the epoch.
    """

    done: float | None
    total: float | None
    text: str | None
    figures: Mapping[str, Any]
    at: float


@dataclass(slots=True)
class State:
    """What is known of a job.

    Attributes:
        state: ``queued``, ``delayed``, ``running``, ``retrying``, ``succeeded``, ``dead`` or
            ``cancelled``.
        phase, rank, attempt: see :class:`synmanager.job.Job`.
        worker: who runs it, or ran it last; None before.
        submitted_at, started_at, finished_at, due_at: seconds since the epoch, None if that is
            not known, or not so. ``due_at`` is until when a delayed or retrying job waits.
        renewed_at: the last sign of life of its run.
        reason: why it is dead, cancelled, retrying or was given back, in words.
        traceback: the end of it, if an exception was the reason.
        sweep: the sweep that it belongs to, if that is known.
    """

    id: str
    phase: str
    state: str = "queued"
    rank: str = "normal"
    attempt: int = 0
    worker: str | None = None
    submitted_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    renewed_at: float | None = None
    due_at: float | None = None
    progress: Progress | None = None
    reason: str | None = None
    traceback: str | None = None
    sweep: str | None = None

    @property
    def ended(self) -> bool:
        """Whether it is over, unless somebody redrives it."""
        return self.state in ENDED

    @property
    def eta(self) -> float | None:
        """When it should end, seconds since the epoch, if it goes on at the pace it has had."""
        told = self.progress
        if self.state != "running" or told is None or self.started_at is None:
            return None
        if not told.done or told.total is None or told.done < 0:
            return None
        pace = (told.at - self.started_at) / told.done
        return moment(told.at + pace * max(told.total - told.done, 0.0))


@dataclass
class WorkerState:
    """What is known of a worker.

    Attributes:
        id: host, process and which of its connections.
        host, pid, phases, tags, version: as it announced them.
        state: ``idle``, ``busy``, ``leaving``, when it was told to stop and still runs a job, or
            ``gone``.
        job: ``(phase, id)`` of what it runs.
        since: for how long that is so, as seconds since the epoch; of one that is leaving, for how
            long it has run its job.
        seen_at: when it said something last. Who waits does so every ten minutes.
    """

    id: str
    host: str
    pid: int
    phases: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    version: str = ""
    state: str = "idle"
    job: tuple[str, str] | None = None
    since: float = 0.0
    seen_at: float = 0.0

    def is_there(self, now: float) -> bool:
        """Whether it has not said goodbye, and was heard of lately."""
        silence = _SILENCE
        if self.state in ("busy", "leaving"):
            silence = max(silence, (now - self.since) * _OF_AGE)
        return self.state != "gone" and now - self.seen_at < silence

    def takes(self, phase: str) -> bool:
        """Whether it takes jobs of a phase, and is not about to leave."""
        return phase in self.phases and self.state != "leaving"


@dataclass
class Fold:
    """The sum of all events so far.

    Attributes:
        jobs: by phase and id, in the order of their last submission.
        workers: by id.
        counts: how many of those that are no longer among ``jobs`` ended how.
    """

    jobs: OrderedDict[tuple[str, str], State] = field(default_factory=OrderedDict)
    workers: OrderedDict[str, WorkerState] = field(default_factory=OrderedDict)
    counts: Counter[str] = field(default_factory=Counter)
    _phases: dict[str, str] = field(default_factory=dict)  # where an id was submitted last
    _ended: OrderedDict[tuple[str, str], None] = field(default_factory=OrderedDict)
    #: Who removes a job may tell it before its submitter does: the last purge of each queue, and
    #: deletions of jobs that nobody has told of.
    _purges: OrderedDict[str, Event] = field(default_factory=OrderedDict)
    _deletions: OrderedDict[tuple[str, str], Event] = field(default_factory=OrderedDict)

    def apply(self, event: Event) -> None:
        """Take an event in. One that comes twice, or is nothing of ours, changes nothing."""
        area, _, kind = event.type.partition(".")
        try:
            if area == "worker":
                self._worker(event, kind)
            elif area == "job" and kind == "submitted":
                self._submitted(event)
            elif area == "job":
                self._job(event, kind)
            elif area == "action":
                self._action(event, kind)
        except MALFORMED:
            return

    def get(self, job_id: str, phase: str | None = None) -> State | None:
        """A job as it is; without a phase, where its id was submitted last."""
        if phase is None:
            phase = self._phases.get(job_id)
        return None if phase is None else self.jobs.get((phase, job_id))

    def touched(self, event: Event) -> list[tuple[str, str]]:
        """The jobs that an action puts back, or removes from their queue, as they are before it."""
        kind, data, queue = event.type.removeprefix("action."), event.data, event.data.get("queue")
        if kind == "purge_queue":
            return [
                key
                for key, job in self.jobs.items()
                if key[0] == queue
                and (job.submitted_at or 0.0) <= event.time
                and (
                    at_time(job, event.time).state == "queued"
                    or (job.state in ("delayed", "retrying") and data.get("delayed") is True)
                )
            ]
        most, ids = number(data.get("number")), data.get("ids")
        if (
            most is None
            or most < 0
            or not (kind == "redrive" or (kind == "edit" and data.get("redriven")))
        ):
            return []
        if isinstance(ids, list) and ids:
            keys = [(str(queue), str(job_id)) for job_id in ids]
            return [key for key in keys if self._had_died(key, event.time)]
        dead = [key for key in self._ended if key[0] == queue and self._had_died(key, event.time)]
        return dead[: int(most)]  # the oldest

    def _had_died(self, key: tuple[str, str], at: float) -> bool:
        job = self.jobs.get(key)
        return job is not None and job.state == "dead" and (job.finished_at or 0.0) <= at

    def _action(self, event: Event, kind: str) -> None:
        if kind == "purge_queue":
            _note(self._purges, str(event.data.get("queue")), event)
        for key in self.touched(event):
            job = self.jobs.get(key)
            if job is None:  # there were too many that had ended
                continue
            if kind == "purge_queue":
                self._remove(job, event)
                continue
            self._ended.pop(key, None)
            job.state, job.attempt, job.reason = "queued", 0, f"put back by {event.data.get('who')}"
            job.started_at = job.finished_at = job.due_at = job.progress = job.traceback = None

    def _submitted(self, event: Event) -> None:
        data = event.data
        phase, rank, at = str(data["phase"]), str(data["rank"]), moment(data["submitted_at"])
        delay = float(data["delay"])
        if at is None:
            return
        due_at = moment(at + delay)
        for job_id in data["ids"]:
            known = self.jobs.get((phase, str(job_id)))
            if data.get("repeats") and known is not None and not known.ended:
                continue  # some were there already, and nobody knows which
            job = self._current(phase, str(job_id), at)
            if job is None or job.attempt:  # older than what is known, or it runs already
                continue
            job.rank, job.sweep = rank, _text(data.get("sweep"))
            if delay > 0 and due_at is not None and job.state == "queued":
                job.state, job.due_at = "delayed", due_at
            if job is not known:
                self._remove_again(job, at)

    def _remove_again(self, job: State, submitted_at: float) -> None:
        """What was removed before anything was told of it is not there."""
        deletion = self._deletions.pop((job.phase, job.id), None)
        for event in (deletion, self._purges.get(job.phase)):
            if event is not None and submitted_at <= event.time and not job.ended:
                is_there = event is not deletion and at_time(job, event.time).state != "queued"
                if not is_there or event.data.get("delayed") is True:
                    self._remove(job, event)

    def _remove(self, job: State, event: Event) -> None:
        if event.type == "job.deleted":
            job.reason = "deleted from its queue"
        else:
            job.reason = f"purged from its queue by {event.data.get('who')}"
        self._end(job, "cancelled", event)

    def _job(self, event: Event, kind: str) -> None:
        data = event.data
        if kind == "part":
            return
        if kind == "deleted":
            key = str(data["phase"]), str(data["id"])
            job = self.jobs.get(key)
            if job is None:
                _note(self._deletions, key, event)
            elif not job.ended:
                self._remove(job, event)
            return
        attempt, rank = attempt_of(data), str(data.get("rank", "normal"))
        job = self._current(str(data["phase"]), str(data["id"]), moment(data.get("submitted_at")))
        if job is None:
            return
        if kind in ("progress", "renewed", "checkpoint"):
            if job.ended or attempt < job.attempt:
                return
            job.renewed_at = event.time
            self._of(event)
            if kind == "progress":
                told = data
                job.progress = Progress(
                    number(told["done"]), number(told["total"]), _text(told["text"]),
                    dict(told["figures"]), event.time,
                )  # fmt: skip
            if job.state != "running":  # what said that it began is no longer kept
                self._runs(job, event)
            return
        job.rank, job.attempt = rank, attempt
        job.sweep = _text(data.get("sweep")) or job.sweep
        if kind == "started":
            job.started_at, job.finished_at, job.progress = event.time, None, None
            job.reason = job.traceback = None
            self._runs(job, event)
        elif kind in ("retried", "given_back", "succeeded", "died", "cancelled"):
            self._left(job, event, kind)

    def _runs(self, job: State, event: Event) -> None:
        self._ended.pop((job.phase, job.id), None)
        before = self.workers.get(job.worker or "")
        if before is not None and before.id != event.source and before.job == (job.phase, job.id):
            # It has died, or lost the job.
            before.state, before.job, before.since = "gone", None, event.time
        job.state, job.worker, job.due_at = "running", event.source, None
        job.renewed_at = event.time
        worker = self._of(event)
        worker.state, worker.job, worker.since = "busy", (job.phase, job.id), event.time

    def _left(self, job: State, event: Event, kind: str) -> None:
        data, key = event.data, (job.phase, job.id)
        job.worker, job.renewed_at = event.source, event.time
        job.started_at = moment(data.get("started_at")) or job.started_at
        job.reason, job.traceback = _text(data.get("reason")), _text(data.get("traceback")) or None
        job.due_at = None
        worker = self._of(event)
        if worker.state == "leaving":
            worker.job = None
        elif worker.state != "gone":
            worker.state, worker.job, worker.since = "idle", None, event.time
        if kind in ("retried", "given_back"):
            self._ended.pop(key, None)
            job.state = "retrying" if kind == "retried" else "queued"
            job.due_at = moment(data.get("due_at")) if kind == "retried" else None
            return
        self._end(job, "dead" if kind == "died" else kind, event)

    def _end(self, job: State, state: str, event: Event) -> None:
        key = (job.phase, job.id)
        job.state, job.finished_at, job.due_at = state, event.time, None
        self._ended[key] = None
        self._ended.move_to_end(key)
        while len(self._ended) > _MOST_ENDED:
            self._forget(next(iter(self._ended)))

    def _current(self, phase: str, job_id: str, submitted_at: float | None) -> State | None:
        """The job that an event is about; None if it is of an earlier submission."""
        key = (phase, job_id)
        job = self.jobs.get(key)
        if job is not None:
            known, said = micro(job.submitted_at), micro(submitted_at)
            if said < known:
                return None
            if said == known:
                return job
            self._ended.pop(key, None)
            del self.jobs[key]
        job = self.jobs[key] = State(job_id, phase, submitted_at=submitted_at)
        # Which was submitted last, its time says: several writers' events come in any order.
        other = self.jobs.get((self._phases.get(job_id, phase), job_id))
        if other is None or micro(other.submitted_at) <= micro(submitted_at):
            self._phases[job_id] = phase
        if len(self.jobs) > _MOST:
            self._forget(next(iter(self._ended), None) or next(iter(self.jobs)))
        return job

    def _forget(self, key: tuple[str, str]) -> None:
        self._ended.pop(key, None)
        job = self.jobs.pop(key)
        self.counts[job.state] += 1
        if self._phases.get(job.id) == job.phase:
            del self._phases[job.id]

    def _worker(self, event: Event, kind: str) -> None:
        worker, data = self._of(event), event.data
        if kind == "leaving" and data.get("running") is True:
            if worker.state == "busy":  # else its job has ended by now
                worker.state = "leaving"
            return
        if kind == "up":
            worker.host, worker.pid = str(data["host"]), int(data["pid"])
            worker.phases = tuple(map(str, data["phases"]))
            worker.tags = tuple(map(str, data["tags"]))
            worker.version = str(data["version"])
        state = "gone" if kind == "leaving" else "idle"
        if (worker.state, worker.job) != (state, None) or kind == "up":
            worker.since = event.time
        worker.state, worker.job = state, None

    def _of(self, event: Event) -> WorkerState:
        worker = self.workers.get(event.source)
        if worker is None:
            host, _, rest = event.source.partition("/")
            pid = rest.partition("/")[0]
            worker = WorkerState(event.source, host, int(pid) if pid.isdecimal() else 0)
            self.workers[event.source] = worker
            if len(self.workers) > _MOST_WORKERS:
                self.workers.popitem(last=False)
        worker.seen_at = event.time
        return worker


def at_time(job: State, now: float) -> State:
    """A copy of what is known, as it is at a time: what is due is queued."""
    if job.due_at is not None and job.due_at <= now and job.state in ("delayed", "retrying"):
        return replace(job, state="queued", due_at=None)
    return replace(job)


def _note(notes: OrderedDict[_Key, Event], key: _Key, event: Event) -> None:
    """Keep what was said last; anybody may write into a log, so not without end."""
    known = notes.get(key)
    if known is None or known.time <= event.time:
        notes[key] = event
        notes.move_to_end(key)
    while len(notes) > _MOST_NOTES:
        notes.popitem(last=False)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None

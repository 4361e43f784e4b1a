"""What an observer imports: how jobs and workers are, from anywhere, and what they are asked."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from heapq import nlargest
from types import TracebackType
from typing import NoReturn

from synmanager.backends.registry import create_backend
from synmanager.engine.session import Session
from synmanager.errors import (
    ConfigurationError,
    InvalidJob,
    NotConnected,
    Unsupported,
)
from synmanager.journal.actions import record, user_here
from synmanager.journal.events import MARKS, Event, chunks, source, write
from synmanager.journal.fold import Fold, State, WorkerState, at_time
from synmanager.journal.marks import (
    SETTLED,
    Marks,
    Pause,
    cancel_mark,
    in_words,
    pause_mark,
    resume_mark,
)
from synmanager.journal.reader import Reader
from synmanager.message import Rank
from synmanager.phases import WORK_PHASES, WorkPhase
from synmanager.settings import load_settings
from synmanager.text import quoted, shown

__all__ = ["Jobs", "why_queued"]


class Jobs:
    """Every job and worker that the broker's journal knows, as seen from anywhere.

    What it says is as true as the journal, which is bounded in age and size, and lags behind the
    queues by a fraction of a second. The first question reads what there is, the next ones read
    on; in between it does nothing. It may be shared by threads.

    Args:
        host, port, url: as for an operator.

    Raises:
        ConfigurationError: a setting is wrong.

    Example:
        >>> from synmanager.train import TrainProducerOperator
        >>> with TrainProducerOperator(url="memory") as producer:
        ...     job_id = producer.submit({"lr": 0.1})
        >>> with Jobs(url="memory") as jobs:
        ...     jobs.get(job_id).state
        'queued'
    """

    def __init__(
        self,
        host: str | None = None,
        port: int | str | None = None,
        *,
        url: str | None = None,
    ) -> None:
        settings = load_settings(host, port, url=url)
        self._is_off = not settings.journal
        self._begin(
            Session(create_backend(settings.address), settings.reconnect),
            source("jobs"),
        )

    #: Nothing is recorded: SYNMANAGER_JOURNAL=off.
    _is_off = False

    def _begin(self, session: Session, source: str) -> None:
        self._session = session
        self._source = source
        self._fold = Fold()
        self._marks = Marks(session.backend.address.journal_age)
        self._reader: Reader | None = None

    @classmethod
    def on(
        cls,
        session: Session,
        source: str,
        beside: Callable[[Event, Fold], None] = lambda event, fold: None,
    ) -> Jobs:
        """One on a connection that is there, and that its owner closes.

        Args:
            beside: gets each event as well, and what was known before it.
        """
        jobs = cls.__new__(cls)
        jobs._begin(session, source)
        fold = jobs._fold

        def take(event: Event) -> None:
            beside(event, fold)
            fold.apply(event)

        jobs._reader = Reader(session, take)
        return jobs

    def connect(self) -> None:
        """Connect. No-op if connected.

        Raises:
            BrokerUnavailable: nobody answers.
            AccessRefused: wrong credentials, virtual host or certificate.
            Unsupported: the broker keeps no journal.
        """
        if self._reader is None:
            reader = Reader(self._session, self._fold.apply)
            try:
                self._session.open()
            except BaseException:
                self._session.close()
                raise
            self._reader = reader

    def disconnect(self) -> None:
        """Disconnect, and forget what was read. No-op if not connected."""
        if self._reader is not None:
            self._session.close()
            self._begin(self._session, self._source)

    def get(self, job_id: str, phase: str | None = None) -> State | None:
        """A job as it is now; None if the journal does not know it, or no longer.

        Args:
            phase: which job is meant, if several phases have used the id; by default the one that
                was submitted last.
        """
        self._catch_up()
        job = self._fold.get(job_id, phase)
        return None if job is None else at_time(job, time.time())

    def running(self) -> list[State]:
        """The jobs that run, the longest first."""
        found = self._in("running")
        return sorted(found, key=lambda job: job.started_at or 0.0)

    def workers(self) -> list[WorkerState]:
        """The workers that have not said goodbye.

        One that was killed while it waited is among them for half an hour: who waits says so
        every ten minutes, and nothing else.
        """
        self._catch_up()
        now = time.time()
        found = list(self._fold.workers.values())  # at once: another thread may read on meanwhile
        return [replace(each) for each in found if each.is_there(now)]

    def recent(self, limit: int = 50) -> list[State]:
        """The jobs of which something was heard last, the newest first."""
        self._catch_up()
        now = time.time()
        latest = nlargest(limit, list(self._fold.jobs.values()), key=_heard)
        return [at_time(job, now) for job in latest]

    def cancel(self, *job_ids: str) -> None:
        """Ask that jobs do not run, or end; return once that is recorded.

        Who holds a job decides. One that waits is settled by the worker that takes it, without
        being run. One that runs is told by its next ``check()`` or ``progress()``, and within
        2 s. One that finishes first has succeeded. Neither a retry nor a dead letter comes of it.
        Whatever is submitted under the same id later runs.

        Raises:
            InvalidJob: no job can have such an id.
            BrokerUnavailable, AccessRefused: nothing was asked.
        """
        for job_id in job_ids:
            if not isinstance(job_id, str) or not job_id:
                raise InvalidJob(f"a job's id is a string, not {quoted(job_id)}")
        self._catch_up()
        now = time.time()
        untils: dict[float, list[str]] = defaultdict(list)
        for job_id in job_ids:
            job = self._fold.get(job_id)
            # Its submitter's clock may be ahead of ours.
            submitted_at = (job.submitted_at if job else None) or 0.0
            untils[max(now, submitted_at)].append(job_id)
        marks = [
            write(cancel_mark(self._source, until, ids=some))
            for until, ids in untils.items()
            for some in chunks(ids)
        ]
        if marks:
            self._session.call(lambda backend: backend.record(MARKS, marks))
            time.sleep(SETTLED)

    def pause(self, phase: WorkPhase, who: str | None = None) -> Pause:
        """Have no more jobs of a phase taken, until :meth:`resume`; return once that is recorded.

        A ``Worker`` and ``listen_message`` obey, also those that begin later; what runs goes on to
        its end. It is ``docs/journal.md`` that says who does not, and for how long it lasts. A
        phase that is paused already stays so, in the name of who did it first.

        Args:
            who: has asked; by default the user and the host of this process.

        Raises:
            ConfigurationError: no such phase, or one whose jobs are results.
            Unsupported: ``SYNMANAGER_JOURNAL=off``, here; or the broker keeps no journal.
            BrokerUnavailable, AccessRefused: nothing was asked.
        """
        known = self._pause_of(phase)
        if known is None:
            # One that was resumed by a clock ahead of ours is over by that.
            since = max(time.time(), self._marks.resumed_until(phase) + 1e-3)
            known = Pause(phase, since, user_here() if who is None else who)
            self._steer("pause", pause_mark(self._source, known), known.who)
        return known

    def resume(self, phase: WorkPhase, who: str | None = None) -> Pause | None:
        """Have jobs of a phase taken again: by who waits for it within about 3 s.

        Returns:
            the pause that is over now; None if there was none.

        Raises:
            as :meth:`pause`.
        """
        known = self._pause_of(phase)
        if known is not None:
            until = max(time.time(), known.since)
            mark = resume_mark(self._source, phase, until)
            self._steer("resume", mark, user_here() if who is None else who)
        return known

    def paused(self) -> dict[str, Pause]:
        """The phases that are paused: ``.since`` when, in seconds since the epoch, by ``.who``."""
        self._read_marks()
        found = map(self._marks.pause_of, WORK_PHASES)
        return {pause.phase: pause for pause in found if pause is not None}

    def _pause_of(self, phase: str) -> Pause | None:
        if phase not in WORK_PHASES:
            raise ConfigurationError(f"{', '.join(WORK_PHASES)} can be paused; not {quoted(phase)}")
        if self._is_off:
            raise Unsupported("a phase is paused in the journal, and SYNMANAGER_JOURNAL is off")
        self._session.call(self._marks.read)
        return self._marks.pause_of(phase)

    def _steer(self, kind: str, mark: Event, who: str) -> None:
        """Record a mark, and in the journal who has set it."""
        self._session.call(lambda backend: backend.record(MARKS, [write(mark)]))
        about = {"who": who, "phase": mark.subject}
        record(self._session.call, [Event(f"action.{kind}", self._source, time.time(), who, about)])
        self._session.call(self._marks.read)
        time.sleep(SETTLED)

    def wait(self, job_ids: Iterable[str], timeout: float | None = None) -> list[State | None]:
        """Wait until jobs have ended: succeeded, dead or cancelled.

        Args:
            timeout: seconds; None for as long as it takes.

        Returns:
            each job as it is when all have ended, or the time is up; None for one that is not
            known.

        Raises:
            InvalidJob: one string is no list of ids.
            ConfigurationError: the timeout is no number of seconds.
        """
        if isinstance(job_ids, str | bytes):
            raise InvalidJob("job_ids must be several strings, not one string")
        ids = list(job_ids)
        left = set(ids)

        def all_ended() -> bool:
            for job_id in tuple(left):
                job = self._fold.get(job_id)
                if job is not None and job.ended:
                    left.discard(job_id)
            return not left

        self._following().until(all_ended, timeout)
        now = time.time()
        found = map(self._fold.get, ids)
        return [None if job is None else at_time(job, now) for job in found]

    def why(self, job_id: str, phase: str | None = None) -> str:
        """In words, how it is with a job, and why it does not run yet."""
        job = self.get(job_id, phase)
        if job is None:
            return "the journal does not know this job, or no longer"
        now = time.time()
        reason = f": {shown(job.reason, 300)}" if job.reason else ""
        match job.state:
            case "running":
                return f"it has run on {shown(job.worker)} for {_lasted(now, job.started_at)}"
            case "succeeded":
                return f"it succeeded {_lasted(now, job.finished_at)} ago"
            case "dead":
                return f"it was given up {_lasted(now, job.finished_at)} ago{reason}"
            case "cancelled":
                return f"it was cancelled {_lasted(now, job.finished_at)} ago{reason}"
            case "delayed":
                return (
                    f"it is delayed for another {_lasted(job.due_at, now)}{self._and_paused(job)}"
                )
            case "retrying":
                again = f"it runs again in {_lasted(job.due_at, now)}{self._and_paused(job)}"
                return f"attempt {job.attempt} has failed, and {again}{reason}"
        return self._why_queued(job)

    def is_waiting(self, job_id: str, phase: str) -> bool:
        """Whether a job is still to be run, as far as is known."""
        job = self.get(job_id, phase)
        return job is not None and job.state in ("queued", "delayed", "retrying")

    def __enter__(self) -> Jobs:
        self.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.disconnect()

    def __reduce__(self) -> NoReturn:
        raise TypeError("Jobs holds a connection and cannot be pickled; make it in each process")

    def _following(self) -> Reader:
        if self._reader is None:
            raise NotConnected("not connected; use it in a with block, or call connect() first")
        return self._reader

    def _catch_up(self) -> None:
        self._following().catch_up()

    def _read_marks(self) -> None:
        self._following()
        self._session.call(self._marks.read)

    def _and_paused(self, job: State) -> str:
        pause = self.paused().get(job.phase)
        return "" if pause is None else f"; {in_words(pause)}"

    def _in(self, state: str) -> list[State]:
        self._catch_up()
        now = time.time()
        found = (at_time(job, now) for job in list(self._fold.jobs.values()))
        return [job for job in found if job.state == state]

    def _why_queued(self, job: State) -> str:
        place = Rank.parse(job.rank)
        ahead = 0
        for other in self._in("queued"):
            if other.phase == job.phase and other.id != job.id:
                rank = Rank.parse(other.rank)
                earlier = (other.submitted_at or 0.0) < (job.submitted_at or 0.0)
                ahead += rank > place or (rank == place and earlier)
        return why_queued(job, ahead, self.workers(), self.paused().get(job.phase))


def why_queued(
    job: State, ahead: int, workers: Iterable[WorkerState], pause: Pause | None = None
) -> str:
    """In words, why a job that is due does not run yet.

    Args:
        ahead: how many of its queue come before it.
        workers: all that are there.
        pause: that its phase is in.
    """
    waits = f"it is number {ahead + 1:,} of {shown(job.phase)} in the order of ranks"
    if pause is not None:
        return f"{waits}, and {in_words(pause)}"
    able = [worker for worker in workers if worker.takes(job.phase)]
    if not able:
        return f"{waits}, and no worker takes jobs of {shown(job.phase)}"
    return f"{waits}; {_busy(able)}"


def _busy(workers: Sequence[WorkerState]) -> str:
    now = time.time()
    told = [
        f"{shown(worker.id)} runs {shown(worker.job[1])} of {shown(worker.job[0])} "
        f"for {_lasted(now, worker.since)}"
        for worker in workers
        if worker.job is not None
    ]
    idle = len(workers) - len(told)
    if idle:
        return (
            f"{idle:,} of {len(workers):,} workers that take it are idle, and should take it soon"
        )
    return ", ".join(told[:3]) + (f", and {len(told) - 3:,} more are busy" if told[3:] else "")


def _heard(job: State) -> float:
    times = (job.finished_at, job.renewed_at, job.submitted_at)
    return max(moment or 0.0 for moment in times)


def _lasted(end: float | None, begin: float | None) -> str:
    if end is None or begin is None:
        return "some time"
    seconds = max(end - begin, 0.0)
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

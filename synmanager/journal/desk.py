"""What a runner says of its jobs, and hears about them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from synmanager import __version__
from synmanager.backends.base import Delivery, Entry, QueueBackend
from synmanager.engine.results import submission_of
from synmanager.engine.session import Session
from synmanager.errors import InvalidJob, SynmanagerError, Undecodable, Unsupported
from synmanager.interrupts import is_from_handler
from synmanager.journal.events import (
    CHECKPOINTS,
    MARKS,
    SIGN,
    SWEEP,
    Event,
    micro,
    plain,
    read_to,
    write,
)
from synmanager.journal.marks import PATIENCE, Looker, saved_mark
from synmanager.journal.recorder import FAREWELL, Recorder
from synmanager.message import RANK_NAMES, decode, encode
from synmanager.redact import hidden, hidden_figures
from synmanager.settings import Settings
from synmanager.text import last_lines, quoted

__all__ = ["MOST_STATE", "Desk", "Report"]

#: Bytes of a checkpoint.
MOST_STATE = 64 * 1024

#: Seconds between two entries of one job about its progress, and about its renewals, at least;
#: and parts of its age: the older a job, the less there is news.
_PROGRESS, _RENEWAL = 1.0, 30.0
_OF_AGE = 1 / 100

#: Of a lease, after which a renewal that is due after a third is called late.
_LATE = 1 / 2

#: Characters of a reason and of a traceback that an event tells.
_REASON, _TRACEBACK = 2_000, 4_000

#: Characters of a job's parameters that an event tells, and bytes of a job that is read for that.
_GIVEN, _MOST_READ = 2_000, 64 * 1024

#: Characters of a sweep's job and result in one event; what is longer comes in parts before it.
#: And of a job that has died, which is left out if it is longer.
_PART = 20_000
_JOB = 4_000


class Desk:
    """A runner's place in the journal.

    Args:
        session: its connection.
        tags: what the worker's user says of it.
        only_deaths: of jobs that are results on their way to an archive, only those are told
            that end as dead letters.
    """

    def __init__(
        self,
        session: Session,
        settings: Settings,
        tags: Collection[str] = (),
        *,
        only_deaths: bool = False,
    ) -> None:
        self.session = session
        said: set[str] = set()
        self.recorder = Recorder(lambda: session.backend, said)
        self.looker = Looker(lambda: session.backend, settings.address.journal_age, said)
        self.is_on = settings.journal and session.backend.features.journal
        self.tells_parameters = settings.journal_parameters
        self.lease = settings.address.lease
        self.tags = sorted(tags)
        self.only_deaths = only_deaths
        self._is_idle = True
        self._idle_told = time.monotonic()
        self._loops = 0

    @property
    def is_quiet(self) -> bool:
        return self.only_deaths or not self.is_on

    def up(self, phases: Sequence[str]) -> None:
        """A loop begins."""
        if self.is_on:
            self.recorder.open()
            self.looker.open()
        if self.is_quiet:
            return
        self._loops += 1
        self.looker.phases = {*self.looker.phases, *phases}
        self.looker.look_at_first()
        source = self.recorder.mine()
        host, process, _ = source.rsplit("/", 2)
        self._idle_told = time.monotonic()
        self._say(
            "worker.up",
            host=host,
            pid=int(process),
            phases=list(phases),
            tags=self.tags,
            version=__version__,
        )

    def idle(self) -> None:
        """There is nothing to do; called again and again while that is so."""
        if self.is_quiet:
            return
        now = time.monotonic()
        if not self._is_idle or now - self._idle_told >= SIGN:
            self._say("worker.idle")
            self._idle_told = now
            self.looker.ask()
        self._is_idle = True

    def stopping(self) -> None:
        """A loop was told to end, and does so after the job that it runs; from any thread."""
        if not self.is_quiet:
            self._say("worker.leaving", running=True)

    def leaving(self) -> None:
        """A loop ends."""
        if self.is_quiet:
            return
        self._loops -= 1
        if not self._loops:
            self.looker.phases = ()
        self._say("worker.leaving")

    def cancelled(self, delivery: Delivery) -> bool:
        """Whether a job that was just taken is not to be run any more."""
        if self.is_quiet:
            return False
        self.looker.look()
        return self.looker.marks.has_cancelled(delivery.message)

    def paused(self, queues: Iterable[str]) -> tuple[str, ...]:
        """Those from which nothing is to be taken, as far as is known; it costs nothing."""
        return () if self.is_quiet else self.looker.marks.paused(queues)

    def has_paused(self, delivery: Delivery) -> bool:
        """Whether a job that was just taken is to go back, as its phase is paused."""
        if self.is_quiet:
            return False
        self.looker.look()
        return self.looker.marks.pause_of(delivery.queue) is not None

    def report(self, delivery: Delivery, attempt: int) -> Report:
        """What is to be told of a delivery."""
        self._is_idle = False
        return Report(self, delivery, attempt)

    def close(self) -> None:
        """Say what is left to say, while there is a connection; in bounded time."""
        if self.is_on:
            self.recorder.flush(FAREWELL)
        self.recorder.close()
        self.looker.close()

    def _say(self, kind: str, **data: Any) -> None:
        source = self.recorder.mine()
        self.recorder.put(Event(kind, source, time.time(), source, data))


class Report:
    """What is told of one attempt of a job: a ``job.Reporter``.

    Attributes:
        attempt: which one it is.
        result: what it returned, as JSON, if it belongs to a sweep.
    """

    def __init__(self, desk: Desk, delivery: Delivery, attempt: int) -> None:
        self._desk = desk
        self._delivery = delivery
        self.attempt = attempt
        self._began: float | None = None
        self._started: Event | None = None
        self._latest: dict[str, Any] | None = None  # progress that is not written yet
        self._progress_due = self._renewal_due = self._checkpoint_due = 0.0
        self._kept_at = time.monotonic()
        self._has_saved = False
        self.sweep = delivery.message.headers.get(SWEEP)
        self.result: bytes | None = None

    def started(self) -> None:
        """Its callback is about to be called."""
        if self._desk.is_quiet:
            return
        self._began = time.time()
        self._renewal_due = self._began + _RENEWAL
        given = partial(_parameters, self._delivery.message.body)
        self._started = self._say(
            "job.started", more=given if self._desk.tells_parameters else None
        )

    def ended(self, kind: str, **data: Any) -> None:
        """What became of the attempt: the type of an event, without ``job.``."""
        desk = self._desk
        if not desk.is_on or (desk.only_deaths and kind != "died"):
            return
        if self._latest is not None:
            self._say_latest(time.time())
        if "reason" in data:
            data["reason"] = data["reason"][:_REASON]
        if "traceback" in data:
            data["traceback"] = last_lines(data["traceback"], _TRACEBACK)
        if self._began is not None:
            data["started_at"] = self._began
        is_final = kind in ("succeeded", "died", "cancelled")
        if self.sweep is not None and is_final:
            data.update(self._in_full())
        elif kind == "died" and desk.tells_parameters and len(self._delivery.message.body) <= _JOB:
            data["job"] = self._delivery.message.body.decode("utf-8", "replace")
        if self._started is not None:
            self._started.is_withdrawn = True  # in vain, unless it is all in one batch
        self._say("job." + kind, **data)
        if self.sweep is not None and is_final:
            # Nothing else would tell its Director, should this worker die now.
            desk.recorder.flush(PATIENCE)

    def progress(self, done: Any, total: Any, text: Any, figures: dict[str, Any]) -> None:
        """See ``Job.progress``."""
        if self._desk.is_quiet:
            return
        now = time.time()
        self._latest = {"done": done, "total": total, "text": text, "figures": figures}
        if now >= self._progress_due:
            self._say_latest(now)

    def look(self) -> bool:
        """Whether the job was cancelled."""
        return self._desk.cancelled(self._delivery)

    def renewed(self) -> None:
        """The lease was renewed; called from beside the job."""
        if self._desk.is_quiet or self._began is None:
            return
        now, kept_at = time.time(), time.monotonic()
        gap, self._kept_at = kept_at - self._kept_at, kept_at
        self._desk.looker.ask()
        if gap > self._desk.lease * _LATE:
            self._say("job.renewed", is_progress=True, late=round(gap, 3))
        elif self._latest is not None and now >= self._progress_due:
            self._say_latest(now)
        elif now >= self._renewal_due:
            self._renewal_due = now + max(_RENEWAL, (now - self._began) * _OF_AGE)
            self._say("job.renewed", is_progress=True)

    def save(self, state: Any) -> None:
        """See ``Job.save``."""
        try:
            text = json.dumps(state, allow_nan=True)
        except Exception as error:
            if is_from_handler(error):
                raise
            raise InvalidJob(f"a checkpoint is what JSON can write: {quoted(error, 300)}") from None
        if len(text) > MOST_STATE:
            raise InvalidJob(f"a checkpoint is {MOST_STATE:,} bytes at most, not {len(text):,}")
        desk, key = self._desk, self._key()
        self._require()
        source = desk.recorder.mine()
        if not self._has_saved and desk.looker.marks.saved_since(key) is None:
            mark = write(saved_mark(source, key))
            desk.session.call(lambda backend: backend.record(MARKS, [mark]))
        self._has_saved = True
        data = {"key": key, "attempt": self.attempt, "state": text}
        entry = write(Event("checkpoint", source, time.time(), self._subject(), data))
        desk.session.call(lambda backend: backend.record(CHECKPOINTS, [entry]))
        now = time.time()
        if not desk.only_deaths and now >= self._checkpoint_due:
            self._checkpoint_due = now + max(_PROGRESS, (now - (self._began or now)) * _OF_AGE)
            self._say("job.checkpoint", is_progress=True)

    def saved(self) -> Any:
        """See ``Job.saved``."""
        desk, key = self._desk, self._key()
        if not desk.is_on:
            return None
        marks = desk.looker.marks
        desk.session.call(marks.read)
        since = marks.saved_since(key)
        if since is None:
            return None
        found: Any = None
        needle = json.dumps(key).encode()

        def take(event: Event) -> None:
            nonlocal found
            if event.data.get("key") == key:
                found = json.loads(event.data["state"])

        position: str | float = since - 1.0  # whatever the clocks of two servers say
        while True:
            entries = desk.session.call(partial(_checkpoints, after=position))
            if not entries:
                return found
            position = entries[-1].position
            for entry in entries:
                if needle in entry.data:  # before the labour of reading it
                    read_to(take, entry.data)

    def _require(self) -> None:
        if not self._desk.is_on:
            raise Unsupported(
                "there is no journal to save into: this broker keeps none, or "
                "SYNMANAGER_JOURNAL=off is set"
            )

    def _key(self) -> str:
        """The submission's identity; an id may be used again."""
        queue, message_id, submitted_at, mark = submission_of(self._delivery)
        assert isinstance(mark, bytes)
        at = submitted_at if isinstance(submitted_at, float | int) else None
        return f"{queue}/{message_id}/{micro(at):x}/{mark.hex()[:16]}"

    def _subject(self) -> str:
        return f"{self._delivery.queue}/{self._delivery.message.id}"

    def _say_latest(self, now: float) -> None:
        latest, self._latest = self._latest, None
        if latest is None:
            return
        age = now - (self._began or now)
        self._progress_due = now + max(_PROGRESS, age * _OF_AGE)
        self._renewal_due = now + max(_RENEWAL, age * _OF_AGE)  # it is a sign of life as well
        figures = plain(latest.pop("figures").items())
        told = {**hidden(plain(latest.items())), "figures": hidden_figures(figures)}
        self._say("job.progress", is_progress=True, **told)

    def _say(
        self,
        kind: str,
        *,
        is_progress: bool = False,
        more: Callable[[], Mapping[str, Any]] | None = None,
        **data: Any,
    ) -> Event:
        message, recorder = self._delivery.message, self._desk.recorder
        about: dict[str, Any] = {
            "id": message.id,
            "phase": self._delivery.queue,
            "submitted_at": message.submitted_at,
            "rank": RANK_NAMES[message.rank],
            "attempt": self.attempt,
        }
        if self.sweep is not None:
            about["sweep"] = self.sweep
        event = Event(
            kind,
            recorder.mine(),
            time.time(),
            self._subject(),
            {**about, **data},
            is_progress,
            more=more,
        )
        recorder.put(event)
        return event

    def _in_full(self) -> dict[str, Any]:
        """The job and its result; in parts, said beforehand, if they are long."""
        texts = {"job": self._delivery.message.body.decode("utf-8", "replace")}
        if self.result is not None:
            texts["result"] = self.result.decode()
        for name, text in texts.items():
            if len(text) > _PART:
                for begin in range(0, len(text), _PART):
                    self._say("job.part", name=name, begin=begin, text=text[begin : begin + _PART])
                texts[name] = ""
        return {**texts, "parts": [name for name, text in texts.items() if not text]}

    def returned(self, value: Any) -> None:
        """What it returned, where no message of it is published."""
        if self.sweep is None or not isinstance(value, dict):
            return
        try:
            self.result = encode(value, name="result")
        except SynmanagerError:
            self.result = None


def _parameters(body: bytes) -> dict[str, str]:
    """What a job was given, without its secrets; nothing of what cannot be read, or is long."""
    if len(body) > _MOST_READ:
        return {}
    try:
        text = json.dumps(hidden(decode(body)), ensure_ascii=False)
    except (Undecodable, ValueError, RecursionError):
        return {}
    return {"given": text if len(text) <= _GIVEN else text[: _GIVEN - 1] + "…"}


def _checkpoints(backend: QueueBackend, after: str | float) -> list[Entry]:
    return backend.replay(CHECKPOINTS, after, limit=100)

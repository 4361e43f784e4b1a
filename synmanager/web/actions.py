"""What is asked of the grid: each action says first how many jobs it touches, and is recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from synmanager.backends.registry import create_backend
from synmanager.checks import at_hand, count
from synmanager.engine.session import Session
from synmanager.errors import SynmanagerError, Undecodable
from synmanager.journal.actions import acted, record
from synmanager.journal.marks import in_words
from synmanager.message import decode, encode
from synmanager.phases import PHASES, WORK_PHASES, WorkPhase
from synmanager.redact import restored
from synmanager.sweep import Sweep
from synmanager.text import shown
from synmanager.web.dead import Letter, Letters
from synmanager.web.observer import Observer
from synmanager.web.pages import editable
from synmanager.words import plural

__all__ = ["Actions", "Plan", "Refused"]


class Refused(Exception):
    """It cannot be done; says why."""


@dataclass(frozen=True)
class Plan:
    """What an action would do.

    Attributes:
        number: of jobs that it touches.
        question: in words, with that number.
        button: what says yes.
        text: to be edited; None where nothing is.
        is_final: it cannot be undone.
    """

    number: int
    question: str
    button: str
    text: str | None = None
    is_final: bool = False


Form = Mapping[str, str]


class Actions:
    """The actions by name: what each would do, and the doing.

    Neither is for an event loop: both ask the broker.
    """

    def __init__(self, observer: Observer, letters: Letters) -> None:
        self._observer = observer
        self._letters = letters
        self.by_name: dict[str, tuple[Callable[[Form], Plan], Callable[[Form, str], str]]] = {
            "cancel": (self._plan_cancel, self._cancel),
            "cancel-sweep": (self._plan_cancel_sweep, self._cancel_sweep),
            "retry-sweep": (self._plan_retry_sweep, self._retry_sweep),
            "redrive": (self._plan_redrive, self._redrive),
            "purge": (self._plan_purge, self._purge),
            "edit": (self._plan_edit, self._edit),
            "pause": (self._plan_pause, self._pause),
            "resume": (self._plan_resume, self._resume),
        }

    def plan(self, name: str, form: Form) -> Plan:
        """What it would do now.

        Raises:
            Refused: nothing.
            SynmanagerError: the broker does not say.
        """
        return self.by_name[name][0](form)

    def do(self, name: str, form: Form, who: str) -> str:
        """Do it; return in words what was done.

        Raises:
            as :meth:`plan`.
        """
        try:
            return self.by_name[name][1](form, who)
        finally:
            self._letters.forget()
            self._observer.count_soon()

    def _plan_cancel(self, form: Form) -> Plan:
        job = self._observer.jobs.get(form.get("id", ""), form.get("phase"))
        if job is None:
            raise Refused("the journal does not know this job, or no longer")
        if job.ended:
            raise Refused(f"this job has ended: it is {job.state}")
        phases, name = self._phases_of(job.id), shown(job.id, 80)
        number = plural(len(phases), "job")
        if len(phases) > 1:
            named = " and ".join(f"{name} of {shown(phase, 40)}" for phase in phases)
            asked = f"Cancel {number}, {named}, as it goes by the id? What waits will not run. What"
        else:
            asked = f"Cancel {number}, {name}? If it waits, it will not run. If it"
        return Plan(
            len(phases),
            f"{asked} runs is told at its next check() or progress().",
            f"Cancel {number}",
            is_final=True,
        )

    def _cancel(self, form: Form, who: str) -> str:
        job_id, at = form.get("id", ""), time.time()
        phases = self._phases_of(job_id)
        self._observer.jobs.cancel(job_id)
        about = {"phase": phases[0]} if len(phases) == 1 else {}
        self._record("cancel", who, at, len(phases), [job_id], **about)
        return f"{plural(len(phases), 'job was', 'jobs were')} asked to end."

    def _phases_of(self, job_id: str) -> list[str]:
        """Where jobs of an id have not ended: whoever cancels one asks all of them."""
        with self._observer.looking():
            jobs = self._observer.jobs.fold.jobs.values()
            return sorted(job.phase for job in jobs if job.id == job_id and not job.ended)

    def _sweep(self, form: Form) -> tuple[str, Mapping[str, int]]:
        with self._observer.looking():
            sweep = self._observer.sweeps.by_name.get(form.get("name", ""))
            if sweep is None:
                raise Refused("the journal knows no such sweep")
            return sweep.name, sweep.counts.copy()

    def _plan_cancel_sweep(self, form: Form) -> Plan:
        name, counts = self._sweep(form)
        left = sum(counts.get(state, 0) for state in ("queued", "delayed", "running", "retrying"))
        if not left:
            raise Refused("all jobs of this sweep have ended")
        return Plan(
            left,
            f"Cancel {plural(left, 'job')} of the sweep {name}: all that have not ended?",
            f"Cancel {plural(left, 'job')}",
            is_final=True,
        )

    def _cancel_sweep(self, form: Form, who: str) -> str:
        plan = self._plan_cancel_sweep(form)
        name, at = self._sweep(form)[0], time.time()
        with self._attached(name) as sweep:
            sweep.cancel()
        self._record("cancel", who, at, plan.number, [], sweep=name)
        return f"{plural(plan.number, 'job')} of {name} were asked to end."

    def _plan_retry_sweep(self, form: Form) -> Plan:
        name, counts = self._sweep(form)
        dead = counts.get("dead", 0)
        if not dead:
            raise Refused("no job of this sweep is dead")
        return Plan(
            dead,
            f"Submit {plural(dead, 'dead job')} of the sweep {name} once more?",
            f"Retry {plural(dead, 'job')}",
        )

    def _retry_sweep(self, form: Form, who: str) -> str:
        name, at = self._sweep(form)[0], time.time()
        with self._attached(name) as sweep:
            number = sweep.retry_dead()
        self._record("retry", who, at, number, [], sweep=name)
        return f"{plural(number, 'job')} of {name} were submitted once more."

    def _attached(self, name: str) -> Sweep:
        settings = self._observer.settings
        return Sweep.find(Session(create_backend(settings.address), settings.reconnect), name)

    def _plan_redrive(self, form: Form) -> Plan:
        letters = self._chosen(form)
        number = plural(len(letters), "dead letter")
        return Plan(
            len(letters),
            f"Put {number} back, to run again{_of(form, letters)}? Their attempts count anew.",
            f"Put back {number}",
        )

    def _redrive(self, form: Form, who: str) -> str:
        letters, at = self._chosen(form), time.time()
        done = self._settle(letters, again=True)
        self._record(
            "redrive", who, at, done, [each.id for each in letters], **_about(form, letters)
        )
        left = len(letters) - done
        stay = f"; {left:,} stay, as jobs of their ids are queued again" if left else ""
        return f"{plural(done, 'dead letter')} put back{stay}."

    def _plan_purge(self, form: Form) -> Plan:
        letters = self._chosen(form)
        number = plural(len(letters), "dead letter")
        return Plan(
            len(letters),
            f"Remove {number} for good{_of(form, letters)}? Nobody can bring them back.",
            f"Remove {number}",
            is_final=True,
        )

    def _purge(self, form: Form, who: str) -> str:
        letters, at = self._chosen(form), time.time()
        done = self._settle(letters, again=False)
        self._record("purge", who, at, done, [each.id for each in letters], **_about(form, letters))
        return f"{plural(done, 'dead letter')} removed."

    def _chosen(self, form: Form) -> list[Letter]:
        queue, cause, letter_id = (form.get(name, "") for name in ("queue", "cause", "id"))
        if not queue or not (cause or letter_id):
            raise Refused("say which dead letters")
        letters = self._letters.chosen(queue, cause, letter_id, fresh=True)
        if not letters:
            raise Refused("there is no such dead letter, or no longer")
        return letters

    def _settle(self, letters: list[Letter], *, again: bool) -> int:
        (queue,) = {letter.queue for letter in letters}
        ids = {letter.id for letter in letters}
        return self._observer.session.call(
            lambda broker: (
                broker.redrive_letters(queue, ids) if again else broker.purge_letters(queue, ids)
            )
        )

    def _plan_edit(self, form: Form) -> Plan:
        queue, letter_id = form.get("queue", ""), form.get("id", "")
        letter = self._letters.in_full(queue, letter_id)
        if letter is None:
            raise Refused("there is no such dead letter, or no longer")
        text = form.get("job") or editable(letter)
        if text is None or len(text) > 256 * 1024:
            raise Refused(
                "this job cannot be edited here, as it is no JSON object or too long; "
                "synmanager dead edit can"
            )
        return Plan(
            1,
            f"Change 1 job, {shown(letter_id, 80)}, and put it back, to run again? What is hidden "
            "stays as it is.",
            "Save and run 1 job again",
            text=text,
        )

    def _edit(self, form: Form, who: str) -> str:
        queue, letter_id = form.get("queue", ""), form.get("id", "")
        letter = self._letters.in_full(queue, letter_id)
        if letter is None:
            raise Refused("there is no such dead letter, or no longer")
        try:
            edited = decode(form.get("job", "").encode("utf-8", "surrogatepass"))
            body = encode(restored(edited, decode(letter.message.body)))
        except (Undecodable, SynmanagerError) as error:
            raise Refused(f"{shown(error, 500)}; nothing was changed") from None
        session, at = self._observer.session, time.time()
        if not session.call(lambda broker: broker.edit_letter(queue, letter_id, body)):
            raise Refused("the letter has gone meanwhile")
        back = 0
        try:
            back = session.call(lambda broker: broker.redrive_letters(queue, [letter_id]))
        except SynmanagerError as error:
            raise Refused(f"it is changed, and not known to be back: {shown(error, 500)}") from None
        finally:
            self._record("edit", who, at, 1, [letter_id], queue=queue, redriven=back)
        if not back:
            raise Refused(f"it is changed and stays dead: a job of its id is in {queue} already")
        return "1 job was changed, and put back."

    def _plan_pause(self, form: Form) -> Plan:
        phase = self._phase(form)
        if phase in self._observer.jobs.paused():
            raise Refused(f"{phase} is paused already")
        return Plan(
            1,
            f"Pause {phase}, where {self._waiting(phase)}? Workers take no more of its jobs until "
            "it is resumed; what runs goes on to its end.",
            f"Pause {phase}",
        )

    def _pause(self, form: Form, who: str) -> str:
        self._observer.jobs.pause(self._phase(form), who)
        return "It is paused; what runs goes on to its end."

    def _plan_resume(self, form: Form) -> Plan:
        phase = self._phase(form)
        pause = self._observer.jobs.paused().get(phase)
        if pause is None:
            raise Refused(f"{phase} is not paused")
        return Plan(
            1,
            f"Resume {phase}, where {self._waiting(phase)}? {in_words(pause)}.",
            f"Resume {phase}",
        )

    def _resume(self, form: Form, who: str) -> str:
        self._observer.jobs.resume(self._phase(form), who)
        return "It goes on: workers that wait take its jobs within about 3 s."

    def _phase(self, form: Form) -> WorkPhase:
        for phase in WORK_PHASES:
            if phase == form.get("phase"):
                return phase
        raise Refused("there is no such phase to pause")

    def _waiting(self, phase: WorkPhase) -> str:
        queue = PHASES[phase].queue
        return at_hand(self._observer.session.call(lambda broker: count(broker, queue)))

    def _record(
        self, kind: str, who: str, at: float, number: int, ids: list[str], **about: Any
    ) -> None:
        events = acted(kind, self._observer.source, at, number, ids, who=who, **about)
        record(self._observer.session.call, events)


def _about(form: Form, letters: list[Letter]) -> dict[str, str]:
    of_all = {"reason": letters[0].reason} if form.get("cause") else {}
    return {"queue": letters[0].queue, **of_all}


def _of(form: Form, letters: list[Letter]) -> str:
    if not form.get("cause"):
        return ""
    return f", of “{letters[0].reason}” in {shown(letters[0].queue, 60)}"

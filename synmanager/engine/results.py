"""What handlers return, as messages, and the names by which one submission is told from another."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from synmanager.backends.base import Delivery, QueueBackend
from synmanager.engine.outcomes import describe, is_a, let_pass
from synmanager.errors import InvalidJob
from synmanager.interrupts import is_from_handler
from synmanager.message import Message, encode, new_id
from synmanager.text import shown

__all__ = ["Results", "result_id", "submission_of"]

logger = logging.getLogger(__name__)

#: Seconds between two looks at how many results wait, the first included, which short-lived
#: workers never do; and how many are worth a word if they get more.
_BETWEEN_LOOKS, _MANY = 60.0, 100

#: Hexadecimal digits of the mark that tells apart what was submitted under one id.
_MARK = 16


def submission_of(delivery: Delivery) -> tuple[object, ...]:
    """What is the same for every delivery of one submission, and for no other.

    An id alone is not: its submitter may use it again, in another phase or for another job, and
    strangers use what they like.
    """
    message = delivery.message
    return delivery.queue, message.id, message.submitted_at, sha256(message.body).digest()


def result_id(delivery: Delivery) -> str:
    """The id of a job's result: as wide as the job's own identity.

    It is the same for every run of one submission, so that a repeat shows. What says no time of
    submission cannot be told from the next of its kind: its result has a new id each time.
    """
    message = delivery.message
    if message.submitted_at is None:
        mark = new_id()[:_MARK]
    else:
        micro = round(message.submitted_at * 1_000_000)  # what every broker keeps of it
        mark = sha256(b"%d " % micro + message.body).hexdigest()[:_MARK]
    return f"{message.id}.{delivery.queue}.{mark}.result"


@dataclass
class _Backlog:
    """What was seen of the results that wait."""

    due: float | None = None  # the next look
    seen: int | None = None
    tell_at: int = _MANY


@dataclass(frozen=True)
class Results:
    """Where results go, and which of them do.

    Attributes:
        exchange, routing_key: the route.
        max_bytes: the longest, as JSON.
        queue: in which they wait; "" if nobody shall look.
    """

    exchange: str
    routing_key: str
    max_bytes: int
    queue: str = ""
    _backlog: _Backlog = field(default_factory=_Backlog, compare=False, repr=False)
    _warned: set[tuple[str, type]] = field(default_factory=set, compare=False, repr=False)

    def message(self, delivery: Delivery, value: Any) -> Message | None:
        """The message for what a handler returned; None if there is nothing to publish.

        Raises:
            InvalidJob: it is a mapping, and cannot be written.
        """
        if is_a(value, Mapping):
            return Message(self._written(value), id=result_id(delivery))
        kind = (delivery.queue, type(value))
        if value is not None and kind not in self._warned:
            self._warned.add(kind)
            logger.warning(
                "a handler of %s returned a %s, which is no mapping of names to values: its jobs "
                "are done, and nothing is published for them (said once)",
                shown(delivery.queue),
                shown(type(value).__qualname__),
            )
        return None

    def look_at_the_queue(self, backend: QueueBackend) -> None:
        """Say so if results pile up, as they do where nobody reads them; at most once a minute."""
        backlog, now = self._backlog, backend.clock.now()
        if not self.queue or (backlog.due is not None and now < backlog.due):
            return
        is_first, backlog.due = backlog.due is None, now + _BETWEEN_LOOKS
        if is_first:
            return
        try:
            ready = backend.count(self.queue).ready
        except Exception as error:  # the next step tells, where it is to be told
            if is_from_handler(error):
                raise
            return
        if backlog.seen is not None and ready > backlog.seen and ready >= backlog.tell_at:
            backlog.tell_at = 2 * ready
            logger.warning(
                "%s results wait in %s, and they get more: does nobody read them? Run an Archiver "
                "without a name, which shares this queue, or purge it (synmanager purge %s)",
                f"{ready:,}",
                shown(self.queue),
                shown(self.queue),
            )
        backlog.seen = ready

    def _written(self, value: Mapping[str, Any]) -> bytes:
        try:
            return encode(value, self.max_bytes, name="result")
        except InvalidJob:
            raise
        except BaseException as defect:  # of what is in it, as of an __str__
            let_pass(defect)
            raise InvalidJob(f"it cannot be written: {describe(defect)}") from defect

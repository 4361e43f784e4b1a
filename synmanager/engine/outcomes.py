"""What becomes of a job, whatever comes: every step, and everything that can come of it.

Nowhere else in the engine is an error looked at to decide about a job. ARCHITECTURE.md shows this
as one table, and a test reads that table and tries every cell of it.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import AsyncGenerator, Awaitable, Generator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any

from synmanager.engine.callbacks import Unfit
from synmanager.errors import (
    AccessRefused,
    BrokerUnavailable,
    Cancelled,
    ConfigurationError,
    InvalidJob,
    LeaseLost,
    NotConnected,
    Reject,
    Retry,
    TimeLimit,
    TopologyError,
    Unsupported,
)
from synmanager.interrupts import is_from_handler
from synmanager.message import Message
from synmanager.text import last_lines, shown

__all__ = [
    "End",
    "Outcome",
    "Step",
    "after_error",
    "after_failure",
    "after_return",
    "cut",
    "describe",
    "is_a",
    "let_pass",
    "tail",
]

logger = logging.getLogger(__name__)

#: Characters. A dead letter's reason and traceback share RabbitMQ's 128 KiB for all headers.
LONGEST_REASON = 8_000
LONGEST_TRACEBACK = 8_000


class Step(Enum):
    """Where the loop, or a caller, is."""

    CALL = "call"  # an operator's own, such as process()
    OPEN = "open"  # the first connection of a Worker
    TAKE = "take"
    RENEW = "renew"
    RUN = "run"
    PUBLISH = "publish"  # the result
    ACK = "ack"
    NACK = "nack"
    BURY = "bury"
    GIVE_BACK = "give back"  # at the end of the grace period


class End(Enum):
    """What becomes of the job, or of the call."""

    AGAIN = "again"  # and the attempt is counted
    UNCOUNTED = "uncounted"  # again, and it costs no attempt
    WAIT = "wait"  # and repeat the step; the job stays ours
    KEEP = "keep"  # settle by what the callback came to: now, or when the job comes back
    BURY = "bury"  # a dead letter with the reason
    END = "end"  # of the loop, or of the call, with this error


@dataclass(frozen=True)
class Outcome:
    """What a run of a job came to.

    Attributes:
        end: never ``WAIT``.
        reason: one line, for a failure.
        traceback: the end of it, "" if none helps.
        delay: seconds that the callback asked for, None for the policy's own.
        value: what the callback returned.
        result: ``value`` as it goes out, until it has.
        cancelled: it was asked to end, and did.
    """

    end: End
    reason: str = ""
    traceback: str = ""
    delay: float | None = None
    value: Any = None
    result: Message | None = None
    cancelled: bool = False


def after_return(value: object) -> Outcome:
    """What a callback's return value means for its job."""
    if value is None or type(value) is dict or not _has_not_run(value):  # mostly the first two
        return Outcome(End.KEEP, value=value)
    with suppress(BaseException):
        value.close()  # type: ignore[attr-defined]  # else a coroutine warns, unawaited
    return Outcome(
        End.BURY,
        f"the callback returned a {shown(type(value).__qualname__)}, so its work has not "
        "run: call it, await it with asyncio.run(), or wait for it in the callback",
    )


def after_failure(
    came: BaseException, *, stopping: bool, ours: bool, cancelled: bool = False
) -> Outcome:
    """What an exception that a callback raised means for its job.

    Args:
        stopping: the loop was asked to end while the job ran.
        ours: the job is still leased to us.
        cancelled: it was asked to end.
    """
    match came:
        case KeyboardInterrupt():
            return Outcome(End.END)
        case SystemExit() if stopping:
            return Outcome(End.END)
        case LeaseLost() if not ours:
            return Outcome(End.UNCOUNTED, "it lost its lease, and left")
        case Cancelled() if cancelled:
            return Outcome(End.KEEP, _text(came), cancelled=True)
        case Reject():
            return Outcome(End.BURY, _text(came) or "rejected by the callback")
        case Unfit():
            return Outcome(End.BURY, _text(came))
        case Retry():
            end = End.AGAIN if _attribute(came, "count", True) and not stopping else End.UNCOUNTED
            delay = _seconds(_attribute(came, "delay", None))
            return Outcome(end, _text(came) or "the callback asked for a retry", delay=delay)
        case TimeLimit():
            return Outcome(End.AGAIN, describe(came), tail(came))
        case _:
            end = End.UNCOUNTED if stopping else End.AGAIN
            return Outcome(end, describe(came), tail(came), 0.0 if stopping else None)


def after_error(step: Step, error: BaseException) -> End:
    """What an error that a backend raised at a step means."""
    if not isinstance(error, Exception) or is_from_handler(error):
        return End.END  # the interpreter's, or the caller's own: not the broker's
    match step, error:
        case Step.GIVE_BACK, _:
            return End.KEEP  # it goes back when the broker notices
        case Step.RENEW, LeaseLost():
            return End.KEEP
        case Step.RENEW, _:
            return End.WAIT
        case ((Step.CALL | Step.OPEN), BrokerUnavailable()):
            return End.WAIT
        case Step.CALL, TopologyError():
            return End.WAIT  # once: what was declared and is gone is declared again
        case ((Step.CALL | Step.OPEN), _):
            return End.END
        case _, (AccessRefused() | ConfigurationError()):
            return End.END
        case Step.TAKE, (NotConnected() | Unsupported()):
            return End.END
        case _, (LeaseLost() | NotConnected()):
            return End.KEEP
        case ((Step.PUBLISH | Step.NACK), (InvalidJob() | Unsupported())):
            return End.BURY
        case Step.BURY, (InvalidJob() | Unsupported()):
            return End.KEEP  # nothing better can be done: it comes again
        case _:
            return End.WAIT


def describe(error: BaseException) -> str:
    """An exception in words, whatever its own ``__str__`` does."""
    name, text = type(error).__name__, _text(error)
    return f"{name}: {text}" if text else name


def tail(error: BaseException) -> str:
    """The end of an exception's traceback."""
    try:
        text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except BaseException as defect:  # it formats what the callback made
        let_pass(defect)
        return f"(the traceback cannot be written: {type(defect).__name__})"
    return last_lines(text, LONGEST_TRACEBACK)


def cut(text: str) -> str:
    """A reason as it is kept."""
    return text if len(text) <= LONGEST_REASON else text[: LONGEST_REASON - 3] + "..."


def _text(error: BaseException) -> str:
    # Nothing that a callback made is used unguarded: its __str__ may raise, or give no string.
    try:
        return cut(str.__str__(str(error)))
    except BaseException as defect:
        let_pass(defect)
        return f"(its text cannot be had: {type(defect).__name__})"


def _attribute(error: BaseException, name: str, default: object) -> Any:
    # A subclass may not have called our __init__.
    try:
        return getattr(error, name, default)
    except BaseException as defect:
        let_pass(defect)
        return default


def _seconds(value: Any) -> float | None:
    """A delay that a callback asked for; None, with a warning, if it cannot be one."""
    if value is None:
        return None
    try:
        seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
        if 0 <= seconds < float("inf"):
            return float(seconds)
    except BaseException as defect:
        let_pass(defect)
    logger.warning(
        "a callback asked for a retry after %s, which is no time; the usual backoff is taken",
        shown(value),
    )
    return None


def _has_not_run(value: object) -> bool:
    """Whether what a callback returned is work that somebody would still have to do."""
    if is_a(value, Future):
        return not value.done()  # type: ignore[attr-defined]
    return is_a(value, Awaitable, Generator, AsyncGenerator)


def is_a(value: object, *kinds: type) -> bool:
    """``isinstance``, which a proxy of something that is gone cannot stand."""
    try:
        return isinstance(value, kinds)
    except BaseException as defect:
        let_pass(defect)
        return False


def let_pass(defect: BaseException) -> None:
    """Raise what came in the middle of a look at what a callback made, and not from that."""
    if isinstance(defect, KeyboardInterrupt) or is_from_handler(defect):
        raise defect

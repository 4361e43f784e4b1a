"""Every error that synmanager raises, and the two that a callback may raise to it.

All of them derive from :class:`SynmanagerError`; most also derive from the built-in that a
0.1.0 caller would have caught. No message carries a password.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import timedelta

    from synmanager.message import Message

__all__ = [
    "AccessRefused",
    "BrokerUnavailable",
    "Cancelled",
    "ConfigurationError",
    "InvalidCallback",
    "InvalidJob",
    "LeaseLost",
    "NoJob",
    "NotConnected",
    "NotPublished",
    "PublishInterrupted",
    "PublishRefused",
    "Reject",
    "Retry",
    "SynmanagerError",
    "TimeLimit",
    "TopologyError",
    "Undecodable",
    "Unroutable",
    "Unsupported",
]


class SynmanagerError(Exception):
    """The root of the tree."""


class ConfigurationError(SynmanagerError, ValueError):
    """A setting, a URL or an argument is wrong; raised before any I/O."""


class NotConnected(SynmanagerError, RuntimeError):
    """The operator was used before ``connect()`` or after ``disconnect()``."""


class NoJob(SynmanagerError, LookupError):
    """``current_job()`` was asked for outside a callback, or in a thread of the callback's own."""


class BrokerUnavailable(SynmanagerError, ConnectionError):
    """The broker cannot be reached, went away or does not answer. Trying again may help."""


class NotPublished(SynmanagerError):
    """A publish that did not come to its end, and what is known of it.

    Attributes:
        unconfirmed: the messages of the batch that the broker has not accepted, as far as is
            known, in order; what is not among them is queued.
    """

    def __init__(self, reason: str = "", unconfirmed: Sequence[Message] = ()) -> None:
        super().__init__(reason)
        self.unconfirmed = tuple(unconfirmed)


class PublishInterrupted(NotPublished, BrokerUnavailable):
    """The broker went away between a publish and its confirmation.

    The fate of what is ``unconfirmed`` is unknown. Publishing it again, unchanged, is safe: it
    keeps its ids.
    """


class AccessRefused(SynmanagerError, PermissionError):
    """The broker or its certificate refuses us: credentials, virtual host, permission, TLS.

    Trying again does not help, and nothing here tries.
    """


class TopologyError(SynmanagerError, RuntimeError):
    """A queue, an exchange or a key is missing, or is not what this project needs."""


class Unroutable(NotPublished, TopologyError):
    """No queue is bound where the messages were sent; the broker kept none that is unconfirmed."""


class PublishRefused(NotPublished, RuntimeError):
    """The broker is there and refuses what is ``unconfirmed``: out of memory, queue full."""


class InvalidJob(SynmanagerError, ValueError):
    """The job cannot be written as a message that every reader can read; nothing was sent."""


class Undecodable(SynmanagerError, ValueError):
    """A body that arrived is not the JSON object it should be."""


class InvalidCallback(SynmanagerError, TypeError):
    """The callback's signature cannot take a job."""


class LeaseLost(SynmanagerError, RuntimeError):
    """The broker has taken this delivery back: another worker may hold the job now."""


class TimeLimit(SynmanagerError, TimeoutError):
    """The job has run for longer than it may; raised by ``current_job().check()``."""


class Cancelled(SynmanagerError):
    """Somebody has cancelled this job; raised by ``current_job().check()`` and ``progress()``.

    A callback may raise it as well, once ``current_job().cancelled`` is true: the job is settled,
    and nothing is published.

    Example:
        >>> from synmanager import current_job
        >>> from synmanager.testkit import run_job
        >>> def train(lr):
        ...     current_job().check()
        >>> run_job(train, {"lr": 0.1}, cancelled=True).ended
        'cancelled'
    """


class Unsupported(SynmanagerError, NotImplementedError):
    """This broker cannot do that honestly; ``Features`` says so beforehand."""


class Retry(Exception):
    """Raised by a callback: put the job back and run it again.

    Args:
        reason: kept if the job ends as a dead letter.
        delay: seconds to wait, or a timedelta; by default the retry policy's own backoff. More
            than the broker can do is as much as it can.
        count: False if this was no failed attempt, but waiting politely for something: however
            often, it never makes the job a dead letter.

    Raises:
        ValueError: the delay is negative or without end.

    Example:
        >>> from synmanager.testkit import run_job
        >>> def train(lr):
        ...     raise Retry("no GPU is free", delay=60, count=False)
        >>> run_job(train, {"lr": 0.1}).ended
        'given_back'
    """

    def __init__(
        self, reason: str = "", *, delay: float | timedelta | None = None, count: bool = True
    ) -> None:
        super().__init__(reason)
        if delay is not None:
            if hasattr(delay, "total_seconds"):  # importing datetime costs more than this module
                delay = delay.total_seconds()
            if not 0 <= delay < float("inf"):
                raise ValueError(f"delay must be zero or more seconds, not {delay!r}")
        self.delay = delay
        self.count = count


class Reject(Exception):
    """Raised by a callback: this job can never succeed, make it a dead letter now.

    Args:
        reason: kept with the dead letter.

    Example:
        >>> from synmanager.testkit import run_job
        >>> def train(lr):
        ...     raise Reject("the rate must be positive")
        >>> run_job(train, {"lr": -1}).reason
        'the rate must be positive'
    """

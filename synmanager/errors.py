"""Every error that synmanager raises, and the two that a callback may raise to it.

All of them derive from :class:`SynmanagerError`; most also derive from the built-in that a
0.1.0 caller would have caught. No message carries a password.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synmanager.message import Message

__all__ = [
    "AccessRefused",
    "BrokerUnavailable",
    "ConfigurationError",
    "InvalidCallback",
    "InvalidJob",
    "LeaseLost",
    "NotConnected",
    "PublishInterrupted",
    "PublishRefused",
    "Reject",
    "Retry",
    "SynmanagerError",
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


class BrokerUnavailable(SynmanagerError, ConnectionError):
    """The broker cannot be reached, went away or does not answer. Trying again may help."""


class PublishInterrupted(BrokerUnavailable):
    """The broker went away between a publish and its confirmation.

    ``unconfirmed`` holds the messages whose fate is unknown. Publishing them again, unchanged,
    is safe: they keep their ids.
    """

    def __init__(self, reason: str, unconfirmed: Sequence[Message]) -> None:
        super().__init__(reason)
        self.unconfirmed = tuple(unconfirmed)


class AccessRefused(SynmanagerError, PermissionError):
    """The broker or its certificate refuses us: credentials, virtual host, permission, TLS.

    Trying again does not help, and nothing here tries.
    """


class TopologyError(SynmanagerError, RuntimeError):
    """A queue, an exchange or a key is missing, or is not what this project needs."""


class Unroutable(TopologyError):
    """No queue is bound where the message was sent; the broker did not keep it."""


class PublishRefused(SynmanagerError, RuntimeError):
    """The broker is there and refuses the message: out of memory, read-only, queue full."""


class InvalidJob(SynmanagerError, ValueError):
    """The job cannot be written as a message that every reader can read; nothing was sent."""


class Undecodable(SynmanagerError, ValueError):
    """A body that arrived is not the JSON object it should be."""


class InvalidCallback(SynmanagerError, TypeError):
    """The callback's signature cannot take a job."""


class LeaseLost(SynmanagerError, RuntimeError):
    """The broker has taken this delivery back: another worker may hold the job now."""


class Unsupported(SynmanagerError, NotImplementedError):
    """This broker cannot do that honestly; ``Features`` says so beforehand."""


class Retry(Exception):
    """Raised by a callback: put the job back and run it again.

    Args:
        reason: kept if the job ends as a dead letter.
        delay: seconds to wait; by default the retry policy's own backoff.
    """

    def __init__(self, reason: str = "", *, delay: float | None = None) -> None:
        super().__init__(reason)
        if delay is not None and not 0 <= delay < float("inf"):
            raise ValueError(f"delay must be zero or more seconds, not {delay!r}")
        self.delay = delay


class Reject(Exception):
    """Raised by a callback: this job can never succeed, make it a dead letter now."""

"""What PostgreSQL's errors mean for a queue."""

from __future__ import annotations

from synmanager.errors import (
    AccessRefused,
    BrokerUnavailable,
    InvalidJob,
    SynmanagerError,
    TopologyError,
)

__all__ = ["Full", "NotDone", "of_answer", "of_connecting"]


class NotDone(BrokerUnavailable):
    """The server says that nothing was changed; the connection is as good as before."""


class Full(NotDone):
    """There is no room: on the disk, in memory, in a quota."""


#: What ``RAISE`` in our own functions says, see ``schema.sql``.
_NO_QUEUE = "SM001"
_OTHER_TYPE = "SM002"

#: The beginnings of the words for what no further try mends, as a server says them in English.
_REFUSED = (
    "password authentication failed",
    "no pg_hba.conf entry",
    "no password supplied",
    "pg_hba.conf rejects",
    "authentication failed",
    "role ",
    "database ",
    "permission denied",
    "server does not support SSL",
    "certificate verify failed",
    "server certificate for",
    "root certificate file",
    "is not permitted to log in",
    "certificate authentication failed",
    "connection requires a valid client certificate",
)

#: What contains one of those and passes by itself.
_PASSING = ("starting up", "shutting down", "too many connections", "recovery", "in use")


def of_connecting(where: str, words: str, *, needs_password: bool) -> SynmanagerError:
    """Our error for a connection that was not made.

    libpq has no code for it, only words: the server's, in the server's language.
    """
    said = " ".join(words.split())[:500] or "no answer"
    text = f"{where} cannot be used: {said}"
    passing = any(part in said for part in _PASSING)
    if not passing and (needs_password or any(part in said for part in _REFUSED)):
        return AccessRefused(text)
    return BrokerUnavailable(text)


def of_answer(where: str, code: str, words: str) -> SynmanagerError | None:
    """Our error for an SQLSTATE; None for one that says that this connection is of no use."""
    said = " ".join(words.split())[:500]
    if code in (_NO_QUEUE, _OTHER_TYPE):
        return TopologyError(said)
    if code == "42501":
        return AccessRefused(f"{where} does not let this user do that: {said}")
    if code in ("42P01", "42883", "3F000", "42703"):
        return TopologyError(f"the tables of the queues at {where} are not there: {said}")
    if code.startswith(("22", "54")):
        return InvalidJob(f"PostgreSQL cannot store this: {said}")
    if code in ("53100", "53200", "53400"):
        return Full(f"{where} has no room: {said}")
    if code in ("40001", "40P01", "55P03"):
        return NotDone(f"{where} has let another go first: {said}")
    return None

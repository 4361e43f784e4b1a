"""Whether a server's clock can be believed when it says that a lease has run out."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["ClockTrust", "Question"]


class Question(NamedTuple):
    """What a script needs for the decision; all in milliseconds.

    Attributes:
        expected: what the server's clock should show now.
        tolerance: how far from that it may be.
        trusted: for how long it has been seen to go right; -1 if it is not to be trusted.
    """

    expected: int
    tolerance: int
    trusted: int


class _Seen(NamedTuple):
    """What is known of a server's clock; all in seconds, by our own.

    Attributes:
        since, last: the first and the last answer of those that agree.
        low, high: the server's clock less ours lies between these two: a reply was written at
            some moment between the sending of the question and the arrival of the answer.
    """

    since: float
    last: float
    low: float
    high: float


class ClockTrust:
    """Compares a server's wall clock with this machine's monotonic one.

    Leases end by the server's wall clock, and that may jump: then every lease looks expired,
    although all holders live. They renew within a third of their lease, by which the new times
    are right again. So a lease may be taken from its holder only by a client that has seen the
    clock go steadily, and the server answer steadily, for half of that lease. A frozen server is
    such a gap as well: while it stood still, nobody could renew.

    Args:
        lease: seconds; a silence of more than half of it ends the trust.
        monotonic: the clock to compare with.
    """

    def __init__(self, lease: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._longest_silence = lease / 2
        self._tolerance = min(1.0, lease / 4)
        self._monotonic = monotonic
        # Changed as a whole and without a lock, which a signal handler could wait for that
        # interrupted its holder. Of two answers at once one may go unnoticed: the next one is
        # compared with what is known then, and tells the same.
        self._seen: _Seen | None = None

    def question(self) -> Question:
        now, seen = self._monotonic(), self._seen
        if seen is None or now - seen.last > self._longest_silence:
            return Question(0, 0, -1)
        middle = (seen.low + seen.high) / 2
        tolerance = self._tolerance + (seen.high - seen.low) / 2
        return Question(
            int((now + middle) * 1000), int(tolerance * 1000), int((now - seen.since) * 1000)
        )

    def saw(self, sent: float, milliseconds: int) -> None:
        """Take note of the server's time in an answer that has just arrived.

        Args:
            sent: when the question was sent, by ``monotonic``.
            milliseconds: since the epoch, by the server.
        """
        arrived, seen = self._monotonic(), self._seen
        low, high = milliseconds / 1000 - arrived, milliseconds / 1000 - sent
        if (
            seen is None
            or arrived - seen.last > self._longest_silence
            or low - self._tolerance > seen.high
            or high + self._tolerance < seen.low
        ):
            self._seen = _Seen(arrived, arrived, low, high)
        else:
            self._seen = seen._replace(last=arrived)

"""Whether a server's clock can be believed when it says that a lease has run out."""

from __future__ import annotations

import threading
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
        self._lock = threading.Lock()
        self._since = 0.0
        self._last: float | None = None
        # The server's clock less ours lies between these two: a reply was written at some
        # moment between the sending of the question and the arrival of the answer.
        self._low = self._high = 0.0

    def question(self) -> Question:
        now = self._monotonic()
        with self._lock:
            if self._last is None or now - self._last > self._longest_silence:
                return Question(0, 0, -1)
            middle = (self._low + self._high) / 2
            tolerance = self._tolerance + (self._high - self._low) / 2
            return Question(
                int((now + middle) * 1000), int(tolerance * 1000), int((now - self._since) * 1000)
            )

    def saw(self, sent: float, milliseconds: int) -> None:
        """Take note of the server's time in an answer that has just arrived.

        Args:
            sent: when the question was sent, by ``monotonic``.
            milliseconds: since the epoch, by the server.
        """
        arrived = self._monotonic()
        low, high = milliseconds / 1000 - arrived, milliseconds / 1000 - sent
        with self._lock:
            if (
                self._last is None
                or arrived - self._last > self._longest_silence
                or low - self._tolerance > self._high
                or high + self._tolerance < self._low
            ):
                self._since, self._low, self._high = arrived, low, high
            self._last = arrived

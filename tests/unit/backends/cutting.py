"""What cuts the n-th round trip of a client that talks to no server: in its own process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Cutter"]


class Cutter:
    """Counts round trips, and fails one of them as it is told.

    Attributes:
        count: round trips so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._at: int | None = None
        self._acted = False
        self._is_cut = False

    def cut(self, number: int, *, acted: bool) -> Callable[[], bool]:
        """As ``BrokerUnderTest.cut_round_trip`` says."""
        self._at, self._acted, self._is_cut = self.count + number, acted, False
        return self._over

    def trip(self, work: Callable[[], Any], error: Exception) -> Any:
        """Do one round trip, or fail with ``error`` before it or after it."""
        self.count += 1
        if self.count != self._at:
            return work()
        self._is_cut = True
        if self._acted:
            work()
        raise error

    def _over(self) -> bool:
        self._at = None
        return self._is_cut

"""How many jobs have waited in each phase over the last hours."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque

__all__ = ["STEP", "Curves"]

#: Seconds of a point, and how many are kept: six hours. What is younger is shown for five minutes.
STEP = 10

_POINTS, _LEAST = 6 * 3600 // STEP, 300 // STEP

#: Phases that have a curve: anybody may write into a journal.
_MOST = 50


class Curves:
    """Numbers of waiting jobs by phase.

    What the events say is put right by what the broker counts: it knows of purges, and of jobs
    that nobody recorded.
    """

    def __init__(self) -> None:
        self._waiting: Counter[str] = Counter()
        self._points: OrderedDict[str, deque[tuple[int, int]]] = OrderedDict()

    def moved(self, phase: str, change: int, at: float) -> None:
        """So many more, or fewer, wait by the events."""
        self.counted(phase, self._waiting[phase] + change, at)

    def counted(self, phase: str, number: int, at: float) -> None:
        """So many wait."""
        points = self._points.get(phase)
        if points is None:
            if len(self._points) >= _MOST:
                return
            points = self._points[phase] = deque(maxlen=_POINTS)
        self._waiting[phase] = number
        # Writers' clocks differ: what is said late counts for the step that is under way.
        step = int(at) // STEP
        if points and points[-1][0] >= step:
            step, _ = points.pop()
        points.append((step, max(number, 0)))

    def of(self, phase: str, now: float) -> list[int]:
        """A number for each step up to now, the oldest first; none if nothing is known."""
        points = self._points.get(phase)
        if not points:
            return []
        last = int(now) // STEP
        length = min(max(last - points[0][0] + 2, _LEAST), _POINTS)
        found: list[int] = []
        number, rest = 0, deque(points)
        for step in range(last - length + 1, last + 1):
            while rest and rest[0][0] <= step:
                number = rest.popleft()[1]
            found.append(number)
        return found

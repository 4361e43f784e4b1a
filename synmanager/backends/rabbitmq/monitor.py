"""A lock that an interruption cannot leave locked.

A signal's handler may raise between any two instructions of the main thread: also after a lock
was acquired and before anybody could note that it has to be released. So this lock is held not by
a note but by a place in the program: by the frame that wants it, as long as that is on its
thread's stack. Each step of it is a single operation of the interpreter's, before which nothing
has happened and after which all of it has.
"""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from threading import get_ident
from types import FrameType
from typing import NamedTuple

from synmanager.errors import Unsupported
from synmanager.stacks import is_on_stack

__all__ = ["Bell", "Monitor", "Place", "Reentered"]

#: Seconds after which a thread that wants the lock looks whether somebody still holds it, at first;
#: twice as many each next time, or a thousand who wait on a busy machine would keep it busy.
_MOMENT, _LONGEST_MOMENT = 0.05, 0.8

#: Seconds after which a thread that waits looks around, whoever may have forgotten to wake it.
_NAP = 0.5


class Reentered(Unsupported):
    """A signal handler, or a finaliser, calls what its own thread is in the middle of."""

    def __init__(self) -> None:
        super().__init__(
            "this connection is in the middle of another call of the same thread, which a signal "
            "handler or a finaliser has interrupted: give what calls from there an operator of "
            "its own, or let it set a flag that is looked at later"
        )


class Bell:
    """Wakes the one thread that waits for it. Ringing takes no lock, so anybody may, anywhere."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        with suppress(RuntimeError):  # it rings already
            self._lock.release()

    def wait(self, seconds: float) -> None:
        """Return when it rings, or has rung since the last time, or after so many seconds."""
        self._lock.acquire(timeout=max(seconds, 0.0))


class Place(NamedTuple):
    """A frame on a thread's stack."""

    thread: int
    frame: FrameType

    def is_running(self) -> bool:
        """Whether it is still there."""
        return is_on_stack(self.thread, self.frame)


class _Turn:
    """One thread's hold of the lock, and the link to the next one's.

    Attributes:
        place: who has it; None once it is given back.
        following: the next turn, under the key 0, once somebody has taken it.
    """

    __slots__ = ("following", "place")

    def __init__(self, place: Place) -> None:
        self.place: Place | None = place
        self.following: dict[int, _Turn] = {}

    def is_abandoned(self) -> bool:
        """Whether its frame has ended without giving it back."""
        place = self.place
        return place is not None and not place.is_running() and self.place is not None


class Monitor:
    """A lock, and a way to wait in it for something that another thread does.

    ``enter`` and ``leave`` belong into one frame and what that calls, which must not go on after
    an interruption of them: a ``with`` statement whose function catches nothing around it.

    Attributes:
        is_broken: somebody was interrupted in here, so that nobody knows in which state what is
            guarded is. Who enters next sees to that, and resets it.
    """

    def __init__(self) -> None:
        self.is_broken = False
        # Whose turn it is: found by following the chain from here. A thread that is slow may set
        # this back, but not the chain.
        self._next: dict[int, _Turn] = {}
        self._mine: dict[int, _Turn] = {}
        self._inside: dict[int, Place] = {}
        self._wanting: dict[int, Bell] = {}
        self._waiting: dict[int, Bell] = {}

    def __enter__(self) -> Monitor:
        self.enter(sys._getframe(1))
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def enter(self, frame: FrameType) -> None:
        """Take the lock.

        Args:
            frame: which runs for as long as the lock is to be held.

        Raises:
            Reentered: this thread is inside already, further up its stack.
        """
        thread = get_ident()
        outer = self._inside.get(thread)
        if outer is not None and outer.frame is not frame and outer.is_running():
            raise Reentered
        place = self._inside[thread] = Place(thread, frame)
        self._take(place)

    def leave(self) -> None:
        """Give the lock back, if this thread has it."""
        self.step_out()
        self._inside.pop(get_ident(), None)

    @property
    def is_mine(self) -> bool:
        """Whether this thread has the lock."""
        return get_ident() in self._mine

    def step_out(self) -> None:
        """Give the lock back for a while; the same frame then calls :meth:`step_in`."""
        turn = self._mine.pop(get_ident(), None)
        if turn is not None:
            turn.place = None
            self._next = turn.following
            for bell in self._wanting.copy().values():
                bell.ring()
                break  # it rings the next one

    def step_in(self) -> None:
        """Take the lock again."""
        self._take(self._inside[get_ident()])

    def wait(self, seconds: float) -> None:
        """Let others in until one of them calls :meth:`notify`, or earlier, or ``seconds``."""
        thread = get_ident()
        bell = self._waiting[thread] = Bell()
        self.step_out()
        try:
            bell.wait(min(seconds, _NAP))
        finally:
            self._waiting.pop(thread, None)
            self.step_in()

    def notify(self) -> None:
        """Wake all who wait."""
        for bell in self._waiting.copy().values():
            bell.ring()

    def _take(self, place: Place) -> None:
        mine = _Turn(place)
        bell: Bell | None = None
        is_time_to_look = False
        moment = _MOMENT
        while (turn := self._next.setdefault(0, mine)) is not mine:
            holder = turn.place
            if holder is None:
                self._next = turn.following
            elif is_time_to_look or holder.thread == place.thread:
                is_time_to_look = False
                if holder.frame is place.frame or turn.is_abandoned():
                    self.is_broken = True
                    self._next = turn.following
                elif holder.thread == place.thread:
                    raise Reentered
            elif bell is None:
                bell = self._wanting[place.thread] = Bell()  # and look again: it may be free now
            else:
                bell.wait(moment)
                moment = min(moment * 2, _LONGEST_MOMENT)
                is_time_to_look = True
        self._mine[place.thread] = mine
        if bell is not None:
            self._wanting.pop(place.thread, None)

"""What the threads of this process are in the middle of."""

from __future__ import annotations

import gc
import inspect
import sys
from threading import Lock, get_ident
from types import FrameType

__all__ = ["is_held_here", "is_on_stack", "stack_of"]

#: Nothing is collected because we said so. If an interruption leaves this behind, the next call
#: sees to it.
_is_paused = False

#: Held by who looks: one at a time, or the first to end would let garbage be collected while
#: another one looks. An interruption may leave it locked, and then it makes way for another one.
_looking = Lock()

#: Seconds after which it has been.
_LONG = 1.0

#: What a frame is of that can be left and entered again.
_CAN_REST = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR

#: Looks at a stack that changes meanwhile; each next one is needed in less than a hundredth.
_LOOKS = 20


def is_held_here(name: str, value: object) -> bool:
    """Whether a function further up this thread's own stack has this in a variable of that name."""
    return any(frame.f_locals.get(name) is value for frame in stack_of(get_ident()))


def is_on_stack(thread: int, frame: FrameType) -> bool:
    """Whether a frame is on a thread's stack, which may change while it is looked at.

    From a frame that has ended its callers are still found, but not from a generator that rests
    since. So a stack whose outermost frame seems to be one is looked at again.
    """
    for _ in range(_LOOKS):
        frames = stack_of(thread)
        try:
            if frame in frames:
                return True
            if not frames or not frames[-1].f_code.co_flags & _CAN_REST:
                return False
        finally:
            frames.clear()  # this one may be among them, and would keep all of them
    return False


def stack_of(thread: int) -> list[FrameType]:
    """The frames of a thread, by its identifier, the innermost first; none if there is none.

    CPython 3.11 makes a frame's object when somebody asks for it, and may collect garbage just
    then. If that is done under its lock, all threads stand still for good, see
    https://github.com/python/cpython/issues/106883. If it runs code in Python, a finaliser or one
    of gc.callbacks, the frame may end meanwhile, and the object is written into what has taken
    its place in memory: the process crashes, sooner or later. So nothing is collected until the
    way out has been followed to its end.
    """
    global _is_paused, _looking
    if thread == get_ident():  # it does not go on meanwhile
        return _outwards(sys._getframe(1))
    lock = _looking
    if not lock.acquire(timeout=_LONG):
        lock = _looking = Lock()
        lock.acquire()
    is_collecting = gc.isenabled() or _is_paused
    try:
        _is_paused = is_collecting
        gc.disable()
        return _outwards(sys._current_frames().get(thread))
    finally:
        if is_collecting:
            gc.enable()
            _is_paused = False
        lock.release()


def _outwards(frame: FrameType | None) -> list[FrameType]:
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames

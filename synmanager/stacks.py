"""What the threads of this process are in the middle of."""

from __future__ import annotations

import gc
import inspect
import sys
from threading import Lock, get_ident
from types import FrameType

__all__ = ["frame_of", "is_on_stack"]

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


def is_on_stack(thread: int, frame: FrameType) -> bool:
    """Whether a frame is on a thread's stack, which may change while it is looked at.

    From a frame that has ended its callers are still found, but not from a generator that rests
    since. So a stack whose outermost frame seems to be one is looked at again.
    """
    for _ in range(_LOOKS):
        last = each = frame_of(thread)
        while each is not None:
            if each is frame:
                return True
            last, each = each, each.f_back
        if last is None or not last.f_code.co_flags & _CAN_REST:
            return False
    return False


def frame_of(thread: int) -> FrameType | None:
    """The innermost frame of a thread, by its identifier; None if there is no such thread.

    CPython 3.11 may collect garbage in the middle of looking, under a lock for which another
    thread may wait with the interpreter in its hands: then all stand still for good, see
    https://github.com/python/cpython/issues/106883. So nothing is collected meanwhile.
    """
    global _is_paused, _looking
    if thread == get_ident():
        return sys._getframe(1)
    lock = _looking
    if not lock.acquire(timeout=_LONG):
        lock = _looking = Lock()
        lock.acquire()
    is_collecting = gc.isenabled() or _is_paused
    try:
        _is_paused = is_collecting
        gc.disable()
        return sys._current_frames().get(thread)
    finally:
        if is_collecting:
            gc.enable()
            _is_paused = False
        lock.release()

"""A step that blocks fails with its name, and does not hang the suite.

No plugin and no signal is needed for it: a test runs in a thread of its own, and the thread of the
suite looks on. What is stuck stays behind, in a thread that does not keep the run from ending.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from synmanager.stacks import stack_of

__all__ = ["StepBlocked", "bounded", "in_thread", "watched"]

Result = TypeVar("Result")

#: Looks in the time that a step may take.
_LOOKS = 20

#: Steps, each as long as it may take, after which a test that goes on and on has failed as well.
_STEPS = 4

#: The suite's own files: where a step is called, and not where it blocks.
_HERE = str(Path(__file__).parent)


class StepBlocked(AssertionError):
    """A step of a test has not returned in time. Says which, and where it is."""


def in_thread(work: Callable[..., Result], *arguments: Any) -> Future[Result]:
    """Run in a thread that cannot keep the test run from ending, even if it never returns."""
    return _start(work, arguments)[0]


def bounded(patience: float, work: Callable[..., Result], *arguments: Any) -> Result:
    """Return what a single step returns, within ``patience`` seconds.

    Raises:
        StepBlocked: it has not returned.
    """
    future, thread = _start(work, arguments)
    try:
        return future.result(patience)
    except NotYet:
        if future.done():  # its own
            raise
        raise StepBlocked(_story(patience, _stack(thread))) from None


def watched(test: Callable[..., None], patience: float) -> Callable[..., None]:
    """Run a test in a thread, and look every now and then whether it is still in the same step.

    A step is a call of the test's, or of a helper in this package, to something else.
    """

    @wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        future, thread = _start(lambda: test(*arguments, **fixtures), ())
        last: tuple[int, ...] = ()
        seen = 0
        for _ in range(_LOOKS * _STEPS):
            try:
                return future.result(patience / _LOOKS)
            except NotYet:
                if future.done():
                    raise
            frames = _stack(thread)
            step = _step(frames, test)
            seen = seen + 1 if step == last else 0
            last = step
            if seen >= _LOOKS:
                raise StepBlocked(_story(patience, frames))
            story = _story(_STEPS * patience, frames)
            del frames  # they hold what the test may have dropped
        raise StepBlocked(f"the test does not come to an end; {story}")

    return run


def _start(
    work: Callable[..., Result], arguments: tuple[Any, ...]
) -> tuple[Future[Result], threading.Thread]:
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return future, thread


def _stack(thread: threading.Thread) -> list[FrameType]:
    """From the outside in."""
    return stack_of(thread.ident or 0)[::-1]


def _is_of_the_suite(frame: FrameType, files: tuple[str, ...]) -> bool:
    return frame.f_code.co_filename.startswith(files)


def _step(frames: list[FrameType], test: Callable[..., None]) -> tuple[int, ...]:
    """Which call the test is in, or where it is itself if in none; () if it is over.

    As numbers, because a frame that is kept keeps its variables, and a dropped delivery must go.
    """
    files = (_HERE, getattr(test, "__code__", _step.__code__).co_filename)
    own = [n for n, frame in enumerate(frames) if _is_of_the_suite(frame, files)]
    if not own:
        return ()
    called = frames[own[-1] + 1 : own[-1] + 2]
    return tuple(id(frame) for frame in (frames[own[-1]], *called))


def _story(patience: float, frames: list[FrameType]) -> str:
    """Which step it is, and its stack."""
    own = [n for n, frame in enumerate(frames) if _is_of_the_suite(frame, (_HERE,))]
    start = own[-1] if own else 0
    lines = traceback.format_list(
        [
            traceback.FrameSummary(f.f_code.co_filename, f.f_lineno or 0, f.f_code.co_name)
            for f in frames[start:]
        ]
    )
    blocked = frames[start + 1].f_code.co_name if start + 1 < len(frames) else "a step"
    return f"{blocked}() has not returned within {patience:g} s; it is here:\n{''.join(lines)}"

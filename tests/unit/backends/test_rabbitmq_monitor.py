"""A lock that an interruption cannot leave locked: interrupted wherever it can be."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from types import FrameType
from typing import Any

import pytest
from threads import WAIT, in_thread, until

from synmanager.backends.rabbitmq import monitor as module
from synmanager.backends.rabbitmq.monitor import Bell, Monitor, Reentered
from synmanager.errors import Unsupported

SOON = 5.0


class Interrupted(BaseException):
    """As a signal's handler raises."""


def use(monitor: Monitor) -> None:
    with monitor:
        pass


def use_and_wait(monitor: Monitor) -> None:
    with monitor:
        monitor.wait(0.001)


def use_and_step_out(monitor: Monitor) -> None:
    with monitor:
        monitor.step_out()
        try:
            pass
        finally:
            monitor.step_in()


def interrupt_at(step: int, action: Callable[[], object]) -> bool:
    """Raise at an instruction of the lock's, or of who uses it; False if it has not so many."""
    steps = count()
    mine = {__file__, module.__file__}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in mine:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and next(steps) == step:
            raise Interrupted
        return trace

    sys._getframe().f_trace_opcodes = True  # or CPython 3.12 does not begin to tell of them
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    except Interrupted:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("action", [use, use_and_wait, use_and_step_out])
def test_it_is_free_after_an_interruption_at_any_instruction(
    action: Callable[[Monitor], None],
) -> None:
    broken = 0
    for step in count():
        monitor = Monitor()
        was_interrupted = interrupt_at(step, partial(action, monitor))
        if step % 5 == 0:  # it takes a moment for another thread
            in_thread(use, monitor)()
        use(monitor)
        broken += monitor.is_broken
        use(monitor)
        if not was_interrupted:
            assert not monitor.is_broken
            break
    assert step > 100
    assert 0 < broken < step  # mostly, it was not held


@pytest.mark.parametrize("action", [use, use_and_wait, use_and_step_out])
def test_an_interruption_lets_no_two_in(action: Callable[[Monitor], None]) -> None:
    """Another thread that uses it meanwhile is alone in it, each time."""
    monitor = Monitor()
    over = threading.Event()
    inside: list[int] = []

    def note() -> None:
        inside.append(1)
        assert len(inside) == 1
        inside.pop()

    def guarded() -> None:
        with monitor:
            note()

    def use_it_all_the_time() -> None:
        while not over.is_set():
            guarded()

    other = in_thread(use_it_all_the_time)
    try:
        for step in count():
            was_interrupted = interrupt_at(step, partial(action, monitor))
            guarded()
            if not was_interrupted:
                break
    finally:
        over.set()
    other()
    assert step > 100


def test_threads_take_turns() -> None:
    monitor, total = Monitor(), [0]

    def add() -> None:
        for _ in range(500):
            with monitor:
                before = total[0]
                if before % 50 == 0:
                    time.sleep(0)
                total[0] = before + 1

    threads = [in_thread(add) for _ in range(8)]
    for thread in threads:
        thread()
    assert total == [8 * 500]
    assert not monitor.is_broken
    assert not monitor._wanting


def test_who_waits_lets_others_in_and_is_woken() -> None:
    monitor = Monitor()
    heard: list[int] = []

    def wait() -> None:
        with monitor:
            while not heard:
                monitor.wait(SOON)

    waiting = in_thread(wait)
    until(lambda: monitor._waiting)
    with monitor:
        heard.append(1)
        monitor.notify()
    waiting()
    assert not monitor._waiting


def test_a_second_call_of_one_thread_says_so_at_once() -> None:
    monitor = Monitor()
    with monitor, pytest.raises(Reentered, match="signal handler"):
        use(monitor)
    use(monitor)
    assert issubclass(Reentered, Unsupported)


def test_so_it_does_while_the_first_is_waiting() -> None:
    monitor = Monitor()
    with monitor:
        monitor.step_out()
        with pytest.raises(Reentered):
            use(monitor)
        monitor.step_in()
    assert not monitor.is_broken


def test_nothing_of_who_held_it_is_kept() -> None:
    monitor = Monitor()

    def hold(what: object) -> int:
        with monitor:
            return sys.getrefcount(what)

    what = object()
    before = sys.getrefcount(what)
    hold(what)
    assert sys.getrefcount(what) == before


def test_a_bell_that_rang_before_is_heard() -> None:
    bell = Bell()
    bell.ring()
    bell.ring()
    bell.wait(SOON)
    began = time.monotonic()
    bell.wait(0.01)
    assert time.monotonic() - began >= 0.009


@pytest.fixture
def interruptions() -> Iterator[list[int]]:
    """Real signals, all the time, each of which raises if it comes in the middle of a use."""
    seen: list[int] = []

    def interrupt(_: int, frame: FrameType | None) -> None:
        code = None if frame is None else frame.f_code
        if code is not None and (
            code is use_and_wait.__code__ or code.co_filename == module.__file__
        ):
            seen.append(1)
            raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
    yield seen
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_thousands_of_signals(interruptions: list[int]) -> None:
    monitor = Monitor()
    over = threading.Event()

    def use_it_all_the_time() -> int:
        uses = 0
        while not over.is_set():
            use(monitor)
            uses += 1
            time.sleep(0.0001)
        return uses

    other = in_thread(use_it_all_the_time)
    deadline = time.monotonic() + WAIT
    while len(interruptions) < 2000 and time.monotonic() < deadline:
        with suppress(Interrupted):
            use_and_wait(monitor)
    signal.setitimer(signal.ITIMER_REAL, 0)  # what follows is not to be interrupted
    over.set()
    assert other() > 10
    use(monitor)
    assert len(interruptions) >= 500

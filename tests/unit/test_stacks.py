"""What other threads are in the middle of, looked at while they start, end and leave garbage."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from synmanager.stacks import is_on_stack, stack_of

LOOKED_AT_BY_MANY = """
import gc, sys, threading
from synmanager.stacks import stack_of

class Cycle:
    def __init__(self):
        self.me = self
    def __del__(self):
        for _ in range(20):
            pass

def look():
    for _ in range(1000):
        Cycle()
        assert stack_of(main)

def start_threads():
    for _ in range(300):
        thread = threading.Thread(target=Cycle)
        thread.start()
        thread.join()

main = threading.get_ident()
sys.setswitchinterval(1e-6)
gc.set_threshold(50, 1000, 1000)
threads = [threading.Thread(target=each) for each in (look, look, look, start_threads)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert gc.isenabled()
"""

LOOKED_AT_WHILE_IT_GOES_ON = """
import gc, random, sys, threading, time
from synmanager.stacks import stack_of

def go_on(phase, info):
    if phase == "start" and threading.get_ident() == looker:
        time.sleep(0.0002)  # the others do

def down(depth, *rest):
    some = [depth] * 3
    return up(depth - 1, rest, key=some) if depth else sum(each for each in some)

def up(depth, rest, key=None, **more):
    a, b, c, d, e = range(5)
    return next(down(depth - 1) for _ in range(1)) if depth else len(rest)

def many(depth):
    a, b, c, d, e, f, g, h = range(8)
    return [down(less) for less in range(depth)]

def work():
    while not over:
        many(random.randrange(12))
        down(random.randrange(20))
        up(random.randrange(7), ())

looker, over, end = threading.get_ident(), [], time.monotonic() + 5
sys.setswitchinterval(1e-5)
gc.callbacks.append(go_on)
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
gc.set_threshold(7)
try:
    for _ in range(5000):
        for thread in threads:
            frames = stack_of(thread.ident)
            assert all(frame.f_code.co_name for frame in frames)
        if time.monotonic() > end:
            break
finally:
    over.append(True)
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(LOOKED_AT_BY_MANY, id="by many"),
        pytest.param(LOOKED_AT_WHILE_IT_GOES_ON, id="while it goes on"),
    ],
)
def test_nobody_stands_still_and_nothing_breaks(program: str) -> None:
    """CPython 3.11 stood still for good within a second, or took other things for frames."""
    source = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", program], cwd=source, timeout=50, check=False)
    assert run.returncode == 0


def test_whose_frames_they_are() -> None:
    inside, over = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        over.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    inside.wait()
    names = [frame.f_code.co_name for frame in stack_of(thread.ident or 0)]
    over.set()
    thread.join()
    assert "wait" in names
    assert names.index("wait") < names.index("run")
    assert stack_of(thread.ident or 0) == []
    assert stack_of(threading.get_ident())[0].f_code.co_name == "test_whose_frames_they_are"


def test_who_collects_nothing_goes_on_so() -> None:
    gc.disable()
    try:
        stack_of(0)
        assert not gc.isenabled()
    finally:
        gc.enable()
    stack_of(0)
    assert gc.isenabled()


def test_a_stack_that_is_full_of_generators() -> None:
    """They begin, rest and end while the way from them to their caller is followed."""
    over: list[bool] = []
    found: list[FrameType] = []

    def count(depth: int) -> Iterator[int]:
        if depth:
            yield from count(depth - 1)
        yield depth

    def work() -> None:
        found.append(sys._getframe())
        while not over:
            for _ in count(5):
                next(count(0))

    before = sys.getswitchinterval()
    thread = threading.Thread(target=work)
    thread.start()
    try:
        sys.setswitchinterval(1e-6)
        while not found:
            time.sleep(0.001)
        assert thread.ident is not None
        lost = sum(not is_on_stack(thread.ident, found[0]) for _ in range(20_000))
    finally:
        sys.setswitchinterval(before)
        over.append(True)
        thread.join()
    assert lost == 0
    assert not is_on_stack(thread.ident, found[0])

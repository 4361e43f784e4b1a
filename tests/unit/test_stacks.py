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

from synmanager.stacks import frame_of, is_on_stack

LOOKED_AT_BY_MANY = """
import gc, sys, threading
from synmanager.stacks import frame_of

class Cycle:
    def __init__(self):
        self.me = self
    def __del__(self):
        for _ in range(20):
            pass

def look():
    for _ in range(1000):
        Cycle()
        assert frame_of(main) is not None

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


def test_nobody_stands_still() -> None:
    """CPython 3.11 did, for good, within a second of this."""
    source = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-c", LOOKED_AT_BY_MANY], cwd=source, timeout=50, check=False
    )
    assert run.returncode == 0


def test_whose_frame_it_is() -> None:
    inside, over = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        over.wait()

    thread = threading.Thread(target=wait)
    thread.start()
    inside.wait()
    frame, names = frame_of(thread.ident or 0), []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    over.set()
    thread.join()
    assert "wait" in names
    assert frame_of(thread.ident or 0) is None
    mine = frame_of(threading.get_ident())
    assert mine is not None
    assert mine.f_code.co_name == "test_whose_frame_it_is"


def test_who_collects_nothing_goes_on_so() -> None:
    gc.disable()
    try:
        frame_of(0)
        assert not gc.isenabled()
    finally:
        gc.enable()
    frame_of(0)
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

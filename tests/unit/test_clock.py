from __future__ import annotations

import threading
import time

from synmanager.backends import Address, ExchangeSpec, QueueSpec
from synmanager.backends.memory import MemoryBackend, MemoryBroker
from synmanager.clock import Clock, ManualClock
from synmanager.message import Message

DAY = 24 * 3600.0
JOBS = QueueSpec("jobs", ExchangeSpec("exchange", "topic"), "key")


def test_a_clock_shows_monotonic_seconds() -> None:
    clock = Clock()
    before, shown, after = time.monotonic(), clock.now(), time.monotonic()
    assert before <= shown <= after


def test_a_wait_ends_when_its_time_is_over() -> None:
    condition = threading.Condition()
    begin = time.monotonic()
    with condition:
        Clock().wait(condition, 0.02)
    assert 0.01 < time.monotonic() - begin < 5


def test_a_wait_ends_when_it_is_notified() -> None:
    condition = threading.Condition()
    woken = threading.Event()

    def wait() -> None:
        with condition:
            Clock().wait(condition, DAY)
        woken.set()

    threading.Thread(target=wait, daemon=True).start()
    deadline = time.monotonic() + 10
    while not woken.wait(0.01) and time.monotonic() < deadline:
        with condition:
            condition.notify_all()
    assert woken.is_set()


def test_a_manual_clock_stands_still_until_it_is_moved() -> None:
    clock = ManualClock()
    begin = clock.now()
    time.sleep(0.01)
    assert clock.now() == begin
    clock.advance(DAY)
    clock.advance(0.5)
    assert clock.now() == begin + DAY + 0.5


def test_a_day_passes_at_once_for_those_who_wait_by_a_manual_clock() -> None:
    clock = ManualClock()
    backend = MemoryBackend(Address("memory", lease=2 * DAY), MemoryBroker(clock))
    backend.open()
    backend.declare(JOBS)
    backend.publish("exchange", "key", [Message(b"{}")], delay=DAY)
    taken: list[object] = []
    waiting = threading.Thread(
        target=lambda: taken.append(backend.receive(["jobs"], 3 * DAY)), daemon=True
    )
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    clock.advance(DAY - 1)
    waiting.join(0.1)
    assert waiting.is_alive()
    clock.advance(1)
    waiting.join(10)
    assert len(taken) == 1
    assert taken[0] is not None


def test_a_receive_by_a_manual_clock_ends_when_its_wait_is_over() -> None:
    clock = ManualClock()
    backend = MemoryBackend(Address("memory"), MemoryBroker(clock))
    backend.open()
    backend.declare(JOBS)
    taken: list[object] = []
    waiting = threading.Thread(
        target=lambda: taken.append(backend.receive(["jobs"], DAY)), daemon=True
    )
    waiting.start()
    clock.advance(0.5 * DAY)
    waiting.join(0.1)
    assert waiting.is_alive()
    # The wait may have begun before the first half day or after it.
    clock.advance(DAY)
    waiting.join(10)
    assert taken == [None]

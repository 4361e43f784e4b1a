"""What blocks in a test of the contract is ended, and named."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from synmanager.testing.watchdog import StepBlocked, bounded, watched

PATIENCE = 0.2

never = threading.Event()


@pytest.fixture(autouse=True)
def _what_blocks_goes_on_in_the_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """By an event of the test's own: who is between two looks would miss one that is cleared."""
    monkeypatch.setitem(globals(), "never", threading.Event())
    yield
    never.set()


def blocks() -> None:
    never.wait(30)


def goes_on_and_on() -> None:
    over = never
    while not over.is_set():
        over.wait(0.001)


def test_a_single_step_that_blocks_is_named() -> None:
    with pytest.raises(StepBlocked, match=r"blocks\(\) has not returned within 0.2 s"):
        bounded(PATIENCE, blocks)


def test_a_single_step_gives_what_it_gives() -> None:
    assert bounded(10, max, 1, 2) == 2
    with pytest.raises(ZeroDivisionError):
        bounded(10, lambda: 1 / 0)
    with pytest.raises(TimeoutError, match="its own"):
        bounded(10, lambda: _raise(TimeoutError("its own")))


def test_a_step_of_a_test_that_blocks_is_named() -> None:
    with pytest.raises(StepBlocked, match=r"has not returned within 0.2 s(?s:.)*in blocks"):
        watched(blocks, PATIENCE)()


def test_a_test_without_an_end_is_ended() -> None:
    with pytest.raises(StepBlocked, match="goes_on_and_on"):
        watched(goes_on_and_on, PATIENCE)()


@pytest.mark.parametrize("outcome", [pytest.skip, pytest.fail])
def test_a_test_ends_as_it_ends(outcome: Callable[[str], None]) -> None:
    done = []
    watched(lambda: done.append(1), 30)()
    assert done == [1]
    with pytest.raises(BaseException, match="for a reason"):
        watched(lambda: outcome("for a reason"), 30)()


def _raise(error: Exception) -> None:
    raise error

"""What a caller's signal handler raises is told from what a broker does."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import pytest

from synmanager.interrupts import is_from_handler


class Alarm:
    def __call__(self, number: int, frame: FrameType | None) -> None:
        raise TimeoutError("mine")

    def ring(self, number: int, frame: FrameType | None) -> None:
        raise TimeoutError("mine")


def ring(*args: Any) -> None:
    raise TimeoutError("mine")


def ring_deeper(*args: Any) -> None:
    ring()


@pytest.fixture(autouse=True)
def _handlers_are_restored() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(
    "handler",
    [ring, ring_deeper, Alarm(), Alarm().ring, partial(ring, 1)],
    ids=["function", "that calls", "object", "method", "partial"],
)
def test_what_a_handler_raises_is_the_caller_s(handler: Callable[..., Any]) -> None:
    signal.signal(signal.SIGUSR1, handler)
    with pytest.raises(TimeoutError) as caught:
        signal.raise_signal(signal.SIGUSR1)
    assert is_from_handler(caught.value)


def test_what_a_socket_raises_is_not() -> None:
    signal.signal(signal.SIGUSR1, ring)
    one, other = socket.socketpair()
    with one, other:
        one.settimeout(0.01)
        with pytest.raises(TimeoutError) as caught:
            one.recv(1)
    assert not is_from_handler(caught.value)


def test_nor_what_was_never_raised() -> None:
    assert not is_from_handler(TimeoutError("mine"))

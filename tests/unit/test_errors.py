"""Errors cross processes: a pool that cannot read a worker's error hangs, or loses it."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from synmanager import errors
from synmanager.errors import NotPublished, Reject, Retry
from synmanager.message import Message, Rank

CLASSES: list[type[Exception]] = [getattr(errors, name) for name in errors.__all__]

MESSAGE = Message(b"{}", id="a", rank=Rank.HIGH, headers={"time-limit": "2.0"})


def examples() -> list[Exception]:
    made = [kind(*arguments) for kind in CLASSES for arguments in ((), ("why",))]
    for kind in CLASSES:
        if issubclass(kind, NotPublished):
            made += [kind("why", [MESSAGE]), kind(reason="why", unconfirmed=(MESSAGE, MESSAGE))]
    made += [
        Retry("busy", delay=7),
        Retry(delay=timedelta(minutes=1)),
        Retry("waiting", count=False),
        Reject("never", 7),
    ]
    for number, error in enumerate(made):
        error.noted = number  # type: ignore[attr-defined]  # as add_note() and callers do
    return made


def told(error: BaseException) -> Any:
    return type(error), str(error), error.args, vars(error)


def raise_it(error: Exception) -> None:
    raise error


def test_every_error_is_an_example() -> None:
    assert {type(error) for error in examples()} == set(CLASSES)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_keeps_all_that_an_error_tells(protocol: int) -> None:
    for error in examples():
        assert told(pickle.loads(pickle.dumps(error, protocol))) == told(error)
        assert told(copy.copy(error)) == told(error)


def test_an_error_reaches_the_parent_of_a_pool() -> None:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        futures = [(error, pool.submit(raise_it, error)) for error in examples()]
        for error, future in futures:
            came = future.exception(timeout=60)
            assert came is not None
            assert told(came)[:3] == told(error)[:3]
            assert vars(error).items() <= vars(came).items()


class TestRetry:
    def test_by_default_counts_and_waits_as_the_policy_says(self) -> None:
        assert (Retry().delay, Retry().count) == (None, True)

    def test_takes_seconds_or_a_timedelta(self) -> None:
        assert Retry(delay=0).delay == 0
        assert Retry(delay=timedelta(minutes=2)).delay == 120.0
        assert Retry(delay=timedelta(days=100)).delay == 8_640_000.0

    @pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), timedelta(seconds=-1)])
    def test_refuses_a_delay_that_cannot_be(self, delay: Any) -> None:
        with pytest.raises(ValueError, match="delay must be"):
            Retry(delay=delay)

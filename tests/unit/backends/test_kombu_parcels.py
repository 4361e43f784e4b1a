"""What kombu carries beside a body is read as it was written, and where a delayed job waits."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("kombu", reason="kombu is not installed")

from synmanager.backends.kombu.parcels import Parcel, read, write
from synmanager.backends.kombu.queues import DELAYED, LEVELS, wait_for
from synmanager.message import Message, Rank

MESSAGE = Message(
    b'{"a": 1}', "an id", Rank.HIGH, 1234567890.125, 7, {"trace-id": "ünusual", "rank": "its own"}
)


@pytest.mark.parametrize(
    "parcel",
    [
        Parcel(MESSAGE),
        Parcel(Message(b"", submitted_at=None)),
        Parcel(MESSAGE, attempts=3, due=2e9, until=1.5e9),
        Parcel(MESSAGE, attempts=2).dead("a reason", "a traceback"),
    ],
    ids=["new", "without a time", "delayed", "dead"],
)
def test_it_comes_back(parcel: Parcel) -> None:
    headers, properties = write(parcel)
    assert all(isinstance(value, str) for value in headers.values())
    assert read(parcel.message.body, headers, properties) == parcel


def test_a_dead_one_starts_anew() -> None:
    assert Parcel(MESSAGE, attempts=2).dead("a reason", "").anew() == Parcel(MESSAGE)


def test_a_reason_of_any_kind_is_kept_in_part() -> None:
    headers, _ = write(Parcel(MESSAGE).dead("begin" + "x" * 10**6, "\udcff" + "y" * 10**6))
    assert headers["x-synmanager-reason"].startswith("begin")
    assert headers["x-synmanager-traceback"].startswith("\\udcffyyy")
    assert sum(map(len, headers.values())) < 50_000
    "".join(headers.values()).encode()


def test_a_stranger_s_message_is_a_normal_one() -> None:
    headers: dict[Any, Any] = {1: 2, "CC": ["train"]}
    parcel = read("text", headers, {})
    assert parcel.message.body == b"text"
    assert (parcel.message.rank, parcel.message.schema) == (Rank.NORMAL, 0)
    assert parcel.message.submitted_at is None
    assert parcel.defect is None
    assert not write(parcel)[0].keys() & {"CC"}


@pytest.mark.parametrize("value", ["many", "-1", "nan", "inf", b"\xff", [1], None, 2**2000])
def test_a_number_that_is_none(value: object) -> None:
    parcel = read(b"", {"x-synmanager-attempts": value}, {})
    assert (parcel.defect is None) is (value is None)
    assert parcel.attempts == 0


def test_a_count_is_capped() -> None:
    assert read(b"", {"x-synmanager-attempts": str(2**63 - 1)}, {}).attempts == 1_000_000_000


@pytest.mark.parametrize("delay", [0.01, 0.25, 0.3, 1, 3.99, 4, 100, 5000, 86_400, 1e9])
def test_a_delay_comes_to_its_end_level_by_level(delay: float) -> None:
    now, steps, due = 1000.0, 0, 1000.0 + delay
    while (wait := wait_for(due, now, LEVELS)) is not None and steps < 100:
        assert now < wait.until <= due
        now = wait.until
        steps += 1
    assert wait is not None or now == pytest.approx(due)
    assert steps < 40 or delay > 86_400


def test_all_in_one_level_wait_equally_long() -> None:
    for delay, time in ((1.0, 1.0), (3.9, 1.0), (4.0, 4.0), (15.0, 4.0)):
        wait = wait_for(delay, 0.0, LEVELS)
        assert wait is not None
        assert wait.until == time


def test_a_broker_that_delays_holds_as_long_as_it_can() -> None:
    assert wait_for(1e6, 0.0, DELAYED) == (".delayed", 900.0)
    assert wait_for(5.0, 0.0, DELAYED) == (".delayed", 5.0)
    assert wait_for(5.0, 5.0, DELAYED) is None

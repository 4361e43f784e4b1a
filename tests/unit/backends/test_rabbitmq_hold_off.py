"""How long a job is held off, by the clocks of who wrote that and who reads it."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pika
import pytest

from synmanager.backends.rabbitmq import backend, properties

NOW = 1_764_000_000.0


def arrival(begins_at: float) -> Any:
    headers = properties.not_before(begins_at)
    return SimpleNamespace(properties=pika.BasicProperties(headers=headers))


@pytest.mark.parametrize(
    ("clock", "seconds"),
    [
        (NOW, 2.0),
        (NOW + 0.5, 1.5),
        (NOW - 0.5, 2.0),  # a clock that is a little slow holds off no longer, and no shorter
        (NOW + 2.0, 0.0),
        (NOW - 3600.0, 0.0),  # one that is far from the other says nothing
    ],
)
def test_by_another_clock(clock: float, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: clock)
    assert backend._written_hold_off(arrival(NOW + 2.0)) == pytest.approx(seconds)


def test_a_stranger_s_nonsense_says_nothing() -> None:
    strange = arrival(NOW)
    for value in ("soon", None, -1, True, 2**63 - 1):
        strange.properties.headers = {"x-synmanager-not-before": value}
        assert backend._written_hold_off(strange) == 0

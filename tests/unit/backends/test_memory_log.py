"""A log in memory: what it keeps, and for how long."""

from __future__ import annotations

from synmanager.backends.memory import _Log


def fill(log: _Log, *numbers: int, now: float, age: float = 1e9, most: int = 10**9) -> None:
    for number in numbers:
        log.append(b"%04d" % number, now, age, most)


def numbers(log: _Log, after: str | float = 0.0, limit: int = 10**6) -> list[int]:
    return [int(entry.data) for entry in log.behind(after, limit)]


def test_positions_hold_while_what_is_old_goes() -> None:
    log = _Log()
    for number in range(1, 3000):
        fill(log, number, now=float(number), most=400)
        kept = list(range(max(1, number - 99), number + 1))
        assert numbers(log) == kept
        assert numbers(log, str(number)) == []
        assert numbers(log, str(number - 1)) == [number]
        assert numbers(log, str(max(number - 500, 0)), limit=3) == kept[:3]
        assert numbers(log, number - 5.5) == kept[-6:]


def test_what_is_too_old_goes_but_for_the_last() -> None:
    log = _Log()
    fill(log, 1, 2, 3, now=100.0, age=10)
    fill(log, 4, now=105.0, age=10)
    assert numbers(log) == [1, 2, 3, 4]
    fill(log, 5, now=112.0, age=10)
    assert numbers(log) == [4, 5]
    fill(log, 6, now=900.0, age=10)
    assert numbers(log) == [6]


def test_a_clock_that_is_set_back_keeps_the_order() -> None:
    log = _Log()
    fill(log, 1, now=100.0)
    fill(log, 2, now=50.0)
    fill(log, 3, now=101.0)
    assert numbers(log, 100.0) == [1, 2, 3]
    assert numbers(log, 100.5) == [3]


def test_a_long_log_is_followed_at_once() -> None:
    log = _Log()
    for _ in range(100):
        fill(log, *range(1000), now=1.0)
    position = log.behind("99998", 1)[0].position
    assert position == "99999"
    for _ in range(3000):  # each of a millisecond, if it walked there
        assert len(log.behind(position, 10)) == 1
        assert log.behind(2.0, 10) == []

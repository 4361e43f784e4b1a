"""A lease that looks expired is believed only by who has watched the clock go right."""

from __future__ import annotations

import pytest

from synmanager.trust import ClockTrust


class World:
    """A server's wall clock, this machine's monotonic one, and the time in between."""

    def __init__(self, lease: float = 10.0) -> None:
        self.now = 100.0
        self.offset = 1_000_000.0
        self.trust = ClockTrust(lease, lambda: self.now)

    def ask(self, there: float = 0.0, back: float = 0.0) -> None:
        """A round trip, with seconds on the way."""
        sent = self.now
        self.now += there
        time = int((self.now + self.offset) * 1000)
        self.now += back
        self.trust.saw(sent, time)

    def watch(self, seconds: float, every: float = 1.0) -> None:
        for _ in range(int(seconds / every)):
            self.now += every
            self.ask()

    @property
    def believes(self) -> bool:
        """Whether what the server's clock shows now is what is expected, as trust() has it."""
        expected, tolerance, trusted = self.trust.question()
        shown = (self.now + self.offset) * 1000
        return trusted >= 0 and abs(shown - expected) <= tolerance


def test_nothing_is_trusted_that_was_never_seen() -> None:
    assert World().trust.question().trusted == -1


def test_trust_grows_with_the_time_of_watching() -> None:
    world = World()
    world.ask()
    assert world.trust.question().trusted == 0
    world.watch(20)
    assert world.trust.question().trusted == 20_000
    assert world.believes


@pytest.mark.parametrize("jump", [3600, -3600, 3, -3])
def test_a_clock_that_jumps_is_not_believed_and_watched_anew(jump: float) -> None:
    world = World()
    world.ask()
    world.watch(20)
    world.offset += jump
    assert not world.believes
    world.ask()
    assert world.trust.question().trusted == 0
    world.watch(5)
    assert world.trust.question().trusted == 5_000
    assert world.believes


def test_a_clock_that_drifts_a_little_stays_trusted() -> None:
    world = World()
    world.ask()
    for _ in range(60):
        world.offset += 0.01
        world.watch(1)
    assert world.trust.question().trusted == 60_000


@pytest.mark.parametrize("silence", [5.5, 3600])
def test_silence_of_more_than_half_a_lease_ends_the_trust(silence: float) -> None:
    world = World()
    world.ask()
    world.watch(20)
    world.now += silence
    assert world.trust.question().trusted == -1
    world.ask()
    assert world.trust.question().trusted == 0


def test_a_server_that_stood_still_is_watched_anew() -> None:
    # Nobody could renew meanwhile, and the first answer comes before the first renewal.
    world = World()
    world.ask()
    world.watch(20)
    world.ask(there=6)
    assert world.trust.question().trusted == 0


def test_a_slow_way_is_no_jump() -> None:
    world = World()
    world.ask()
    for _ in range(10):
        world.now += 1
        world.ask(there=0.05, back=1.5)
    assert world.trust.question().trusted >= 10_000
    assert world.believes

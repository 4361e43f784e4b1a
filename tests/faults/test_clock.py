"""Row: clock jumps by an hour. No early reclaim."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.brokers import Broker
from harness.catalogue import brokers_are_required
from harness.director import Director
from harness.processes import Processes
from harness.redis_server import RedisServer

_LIBRARIES = list(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))

pytestmark = pytest.mark.skipif(
    not _LIBRARIES and not brokers_are_required(),
    reason="no libfaketime: apt-get install libfaketime",
)


class Clock:
    """A wall clock of its own for some processes. The monotonic one never jumps."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "clock"
        self.jump("+0")
        self.env = {
            # The C library's malloc before Redis's own, which asks the time before it can tell.
            "LD_PRELOAD": f"{_LIBRARIES[0]} libc.so.6",
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def jump(self, offset: str) -> None:
        """Set the offset from the true time, such as "+1h"."""
        new = self._file.with_suffix(".new")
        new.write_text(offset + "\n")
        new.rename(self._file)


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


def _run_one_long_job(
    clock: Clock, director: Director, processes: Processes, env: dict[str, str]
) -> None:
    env = {"SYNMANAGER_LEASE": "4", **env}  # renewed in time also where a process stands still
    director.submit([{"key": "long", "work": 8}])
    processes.worker("holder", env=env)
    processes.await_event("started", 30)
    processes.worker("waiting", env=env)
    processes.await_event("ready", 30, who="waiting")
    for number, offset in enumerate(("+1h", "-1h", "+0")):
        clock.jump(offset)
        # The clock of whoever is under it has moved when the broker has answered once more.
        keys = director.submit([{"key": f"between-{number}"}])
        processes.await_done(keys, 30)
    processes.await_done({"long"}, 30)
    history = processes.history()
    history.check_nothing_lost()
    history.check_no_overlap()
    assert len(history.runs_of("long")) == 1, "nobody took it early"
    assert history.extra_runs == 0


# A client of a file waits in poll(2) and sleeps, both of which libfaketime breaks as it jumps;
# its unit tests set its clock by hand.
@pytest.mark.server
def test_clock_of_the_workers_jumps(clock: Clock, director: Director, processes: Processes) -> None:
    _run_one_long_job(clock, director, processes, clock.env)


@pytest.fixture
def jumping_redis(clock: Clock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    pytest.importorskip("redis")
    directory = tmp_path_factory.mktemp("jumping")
    server = RedisServer("redis-7", "redis-server", directory, env=clock.env)
    try:
        server.start()
        yield server
    finally:
        server.destroy()


@pytest.mark.only("redis-7")  # which is the one that jumps
def test_clock_of_the_redis_server_jumps(
    clock: Clock,
    broker: Broker,
    jumping_redis: RedisServer,
    processes: Processes,
    figures: Callable[[str], None],
) -> None:
    """Leases are times of the server's clock."""
    processes.url = jumping_redis.url()
    director = Director(jumping_redis.url(), processes.journal)
    before = int(jumping_redis.command("TIME")[0])
    _run_one_long_job(clock, director, processes, {})
    clock.jump("+1h")
    after = int(jumping_redis.command("TIME")[0])
    assert after - before >= 3600, "the server's clock does jump"
    figures("server's clock +1 h, -1 h: 1 run")

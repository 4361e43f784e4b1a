"""Row: Redis's primary is lost, or the slot moves. Checks L D X T, with ``replicas=1``."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.brokers import CANARY
from harness.catalogue import brokers_are_required
from harness.director import Director
from harness.processes import Processes
from harness.redis_cluster import ClusterGroup
from harness.redis_group import RedisGroup
from harness.redis_sentinels import SentinelGroup

pytestmark = pytest.mark.xdist_group("failover")

GROUPS = (SentinelGroup, ClusterGroup)

#: Seconds between two jobs of one producer.
PACE = 0.02

ENV = {"SYNMANAGER_LEASE": "6", "SYNMANAGER_MAX_ATTEMPTS": "1000"}


@pytest.fixture(scope="module")
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RedisGroup]:
    if shutil.which("redis-server") is None:
        if brokers_are_required():
            pytest.fail("there is no redis-server", pytrace=False)
        pytest.skip("there is no redis-server")
    made: RedisGroup = request.param(tmp_path_factory.mktemp("group"))
    try:
        made.start()
        yield made
    finally:
        made.destroy()


@pytest.fixture
def group(servers: RedisGroup) -> RedisGroup:
    servers.recover()
    return servers


@pytest.fixture
def running(group: RedisGroup, tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path, group.url(replicas=1))
    try:
        yield started
    finally:
        started.end()
    for path in (*tmp_path.glob("*.out"), *tmp_path.glob("*.jsonl")):
        assert CANARY not in path.read_text(errors="replace"), f"the password is in {path.name}"


def kill(group: RedisGroup) -> float:
    before = group.primary
    before.launcher.kill()
    group.wait_other(before)
    return time.monotonic()


def fail_over(group: RedisGroup) -> float:
    group.fail_over()
    return time.monotonic()


def hand_over(group: RedisGroup) -> float:
    """The same, but nobody has the clients wait meanwhile."""
    assert isinstance(group, SentinelGroup)
    group.hand_over()
    return time.monotonic()


def freeze(group: RedisGroup) -> float:
    """The primary stands still until there is another one, and comes back as its replica."""
    before = group.primary
    before.launcher.freeze()
    group.wait_other(before)
    back = time.monotonic()
    before.launcher.thaw()
    return back


def restart(group: RedisGroup) -> float:
    group.kill_all()
    group.start_all()
    group.wait_whole()
    return time.monotonic()


def move(group: RedisGroup) -> float:
    """The slot moves to another shard, key by key; nobody is lost."""
    assert isinstance(group, ClusterGroup)
    group.move_slot()
    return time.monotonic()


@pytest.mark.limit(120)
@pytest.mark.parametrize(
    ("servers", "fault"),
    [
        *((kind, fault) for kind in GROUPS for fault in (kill, fail_over, freeze, restart)),
        (SentinelGroup, hand_over),
        (ClusterGroup, move),
    ],
    indirect=["servers"],
    ids=lambda value: value.__name__,
)
def test_the_primary_is_lost(
    group: RedisGroup,
    running: Processes,
    fault: Callable[[RedisGroup], float],
    is_long: bool,
    figures: Callable[[str], None],
) -> None:
    if fault not in (kill, move) and not is_long:
        pytest.skip("in the long form")
    count = 5000 if is_long else 150
    patience = 60 + 2 * PACE * count  # seconds
    for who in ("single", "batches"):
        batch = 20 if who == "batches" else 1
        running.producer(who, keys=[0, count], pace=PACE * batch, batch=batch, env=ENV)
    for number in range(2):
        running.worker(f"worker-{number}", env=ENV)
    for who in ("single", "batches"):
        running.await_event("ready", 30, who=who)
    director = Director(group.url(), running.journal)
    running.await_event("finished", 30, count=20)
    long = director.submit({"key": f"long-{number}", "work": 7} for number in range(1))
    running.await_event("started", 20, key="long-0")

    lost = time.monotonic()
    back = fault(group)

    for who in ("single", "batches"):
        running.await_event("left", patience, who=who)
    keys = {f"{who}-{n}" for who in ("single", "batches") for n in range(count)} | long
    running.await_done(keys, patience)
    history = running.history()
    assert history.count("confirmed") == 2 * count + 1, (
        "every publish was repeated until it counted"
    )
    history.check_nothing_lost()
    history.check_extra_runs()
    history.check_no_overlap()
    resumed = history.check_resumed(since=back, within=10)
    published = min(e["at"] for e in history.events if e["event"] == "confirmed" if e["at"] > back)
    assert published - back <= 10
    figures(
        f"{fault.__name__}: another primary after {back - lost:.1f} s; consuming again "
        f"{resumed:.2f} s after that, publishing {published - back:.2f} s; "
        f"{history.extra_runs} extra runs, {history.repeated_publishes} repeated publishes"
    )

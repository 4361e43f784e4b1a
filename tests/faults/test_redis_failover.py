"""Row: Redis's servers are lost, restarted or cut off, or the slot moves.

Checks L D X T, with ``replicas=1``.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from harness.brokers import CANARY
from harness.catalogue import brokers_are_required
from harness.director import Director
from harness.network import Network, NoNetwork
from harness.processes import Processes
from harness.redis_cluster import ClusterGroup
from harness.redis_group import RedisGroup
from harness.redis_sentinels import SentinelGroup

from synmanager.backends.registry import create_backend
from synmanager.errors import BrokerUnavailable
from synmanager.settings import load_settings
from synmanager.train import TrainProducerOperator

pytestmark = pytest.mark.xdist_group("failover")

GROUPS = (SentinelGroup, ClusterGroup)

#: Seconds between two jobs of one producer.
PACE = 0.02

#: The host of all producers and workers, but for those beside a server that is cut off.
CLIENTS = "127.0.2.1"

ENV = {"SYNMANAGER_LEASE": "6", "SYNMANAGER_MAX_ATTEMPTS": "1000"}

#: Does something to a group, and tells when there was a new primary; all is well from then on.
Fault = Callable[[RedisGroup], list[float]]


@pytest.fixture(scope="module")
def network() -> Iterator[Network | str]:
    """A network for all of this module, or why there is none: then nobody can be cut off."""
    with ExitStack() as stack:
        try:
            made: Network | str = stack.enter_context(Network())
        except NoNetwork as error:
            made = str(error)
        yield made


@pytest.fixture(scope="module")
def servers(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    network: Network | str,
) -> Iterator[RedisGroup]:
    if shutil.which("redis-server") is None:
        give_up("there is no redis-server")
    own = network if isinstance(network, Network) else None
    made: RedisGroup = request.param(tmp_path_factory.mktemp("group"), own)
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


def give_up(reason: str) -> None:
    if brokers_are_required():
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def kill(group: RedisGroup) -> list[float]:
    before = group.primary
    before.launcher.kill()
    group.wait_other(before)
    return [time.monotonic()]


def kill_replica(group: RedisGroup) -> list[float]:
    group.followers[0].launcher.kill()
    return [time.monotonic()]


def kill_sentinel(group: RedisGroup) -> list[float]:
    group.guards[0].kill()
    return [time.monotonic()]


def fail_over(group: RedisGroup) -> list[float]:
    group.fail_over()
    return [time.monotonic()]


def hand_over(group: RedisGroup) -> list[float]:
    """The same, but nobody has the clients wait meanwhile."""
    assert isinstance(group, SentinelGroup)
    group.hand_over()
    return [time.monotonic()]


def freeze(group: RedisGroup) -> list[float]:
    """The primary stands still until there is another one, and comes back as its replica."""
    before = group.primary
    before.launcher.freeze()
    group.wait_other(before)
    back = time.monotonic()
    before.launcher.thaw()
    return [back]


def cut_off(group: RedisGroup) -> list[float]:
    """The others do not hear of the primary, whom all clients still reach."""
    before = group.primary
    group.cut_off(before)
    group.wait_other(before)
    return [time.monotonic()]


def cut_off_with_clients(group: RedisGroup) -> list[float]:
    """Most clients do not either; some, beside the primary, reach nobody else."""
    before = group.primary
    group.cut_off(before, CLIENTS)
    group.wait_other(before)
    return [time.monotonic()]


def restart(group: RedisGroup) -> list[float]:
    group.kill_all()
    group.start_all()
    group.wait_whole()
    return [time.monotonic()]


def restart_each(group: RedisGroup) -> list[float]:
    """One after the other, as for an upgrade by somebody who prepares nothing."""
    backs = [time.monotonic()]
    for node in group.nodes:
        leads = node is group.primary
        node.launcher.stop()
        if leads:
            group.wait_other(node)
            backs.append(time.monotonic())
        node.start()
        group.wait_whole()
    for guard in group.guards:
        guard.stop()
        guard.start()
        group.wait_whole()
    return backs


def move(group: RedisGroup) -> list[float]:
    """The slot moves to another shard, key by key; nobody is lost."""
    assert isinstance(group, ClusterGroup)
    group.move_slot()
    return [time.monotonic()]


BOTH = (kill, kill_replica, fail_over, freeze, cut_off, cut_off_with_clients, restart, restart_each)

#: The cases of the short form, and of the long one.
SHORT = ((SentinelGroup, kill), (ClusterGroup, kill), (ClusterGroup, move))
ALL = (
    *((kind, fault) for kind in GROUPS for fault in BOTH),
    (SentinelGroup, kill_sentinel),
    (SentinelGroup, hand_over),
    (ClusterGroup, move),
)

#: Seconds for which a job runs, so that it is still there when all is over.
WORK: dict[Fault, int] = {cut_off: 30, cut_off_with_clients: 30, restart_each: 90}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "fault" in metafunc.fixturenames:
        cases = ALL if metafunc.config.getoption("--long") else SHORT
        metafunc.parametrize(
            ("servers", "fault"), cases, indirect=["servers"], ids=lambda value: value.__name__
        )


@pytest.mark.limit(120)
def test_service_goes_on_and_nothing_is_lost(
    network: Network | str,
    group: RedisGroup,
    running: Processes,
    fault: Fault,
    is_long: bool,
    figures: Callable[[str], None],
) -> None:
    if fault in (cut_off, cut_off_with_clients) and isinstance(network, str):
        give_up(f"nobody can be cut off: {network}")
    count = 5000 if is_long else 160
    patience = 60 + 2 * PACE * count + WORK.get(fault, 7)  # seconds
    producers = ["single", "batches"]
    gate = running.directory / "gate"
    for who in producers:
        batch = 20 if who == "batches" else 1
        running.producer(
            who,
            host=CLIENTS,
            keys=[0, count],
            pace=PACE * batch,
            batch=batch,
            # The last ones are for when all is well, however long it takes until then.
            gate={"number": count - 40, "file": str(gate)},
            env=ENV,
        )
    for number in range(2):
        running.worker(f"worker-{number}", host=CLIENTS, env=ENV)
    for who in producers:
        running.await_event("ready", 30, who=who)
    director = Director(group.url(), running.journal)
    running.await_event("finished", 30, count=20)
    long = director.submit([{"key": "long", "work": WORK.get(fault, 7)}])
    running.await_event("started", 30, key="long")
    if fault is cut_off_with_clients:
        # Only now: a worker that no primary hears from cannot keep a long job.
        beside = {"host": group.primary.host, "env": ENV}
        running.producer("beside", keys=[0, count], pace=PACE, **beside)
        producers.append("beside")
        running.worker("worker-beside", **beside)
        running.await_event("finished", 30, who="worker-beside", count=20)

    lost = time.monotonic()
    backs = fault(group)

    back = backs[-1]
    gate.touch()
    if is_long:  # what was lost stays away for a while
        running.await_event("finished", 60, count=running.count("finished") + 100)
    if fault is cut_off_with_clients:
        running.await_event("repeated", 60, who="beside")
    group.mend()

    for who in producers:
        running.await_event("left", patience, who=who)
    keys = {f"{who}-{n}" for who in producers for n in range(count)} | long
    running.await_done(keys, patience)
    history = running.history()
    assert history.count("confirmed") == len(keys), "every publish was repeated until it counted"
    history.check_nothing_lost()
    history.check_extra_runs()
    history.check_no_overlap()
    resumed = max(history.check_resumed(since=each, within=10) for each in backs)
    published = max(
        min(e["at"] for e in history.events if e["event"] == "confirmed" if e["at"] > each) - each
        for each in backs
    )
    assert published <= 10
    figures(
        f"{fault.__name__}: {len(keys)} jobs; another primary after {back - lost:.1f} s; consuming "
        f"again {resumed:.2f} s after that, publishing {published:.2f} s; longest gap "
        f"{history.longest_gap(lost):.1f} s; {history.extra_runs} extra runs, "
        f"{history.repeated_publishes} repeated publishes"
    )


@pytest.mark.parametrize("servers", [SentinelGroup], indirect=True, ids=["SentinelGroup"])
def test_a_renewal_counts_when_a_replica_has_it(group: RedisGroup) -> None:
    url = group.url(replicas=1)
    with TrainProducerOperator(url=url) as producer:
        producer.process(key="a")
    backend = create_backend(replace(load_settings(url=url).address, heartbeat=5.0))
    backend.open()
    try:
        delivery = backend.receive(["train"], 10.0)
        assert delivery is not None
        backend.renew(delivery)
        for node in group.followers:
            node.launcher.freeze()
        with pytest.raises(BrokerUnavailable, match="0 of the 1 replicas"):
            backend.renew(delivery)
        group.mend()
        backend.open()
        backend.renew(delivery)
    finally:
        group.mend()
        backend.close()

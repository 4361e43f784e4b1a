"""Three nodes of RabbitMQ, new ones and old ones: any one may be lost while jobs flow."""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pika
import pytest
from cluster import NODES, QUEUE, Cluster
from conftest import AMQP_URL, Brokers
from threads import in_thread, until

from synmanager import Worker, current_job
from synmanager.backends import DeadLetter
from synmanager.backends.rabbitmq import RabbitMQBackend
from synmanager.cli import main
from synmanager.settings import parse_url
from synmanager.testing.steps import make_message, make_spec
from synmanager.train import TrainConsumerOperator, TrainProducerOperator

#: With the other tests of that image, in one process.
pytestmark = pytest.mark.xdist_group("mq_image rabbitmq-4.3")

QUEUES = ("preprocess", "train", "evaluate", "completed")

#: How many jobs run while a node is away, and once it is back; and seconds for them.
MANY, LONG = 5_000, 300.0

#: Seconds without a job: more than it takes nodes, and clients, to give up one that is silent.
GAP = 30.0

#: Seconds from a queue's new leader to the first job.
BACK = 10.0


@pytest.fixture(scope="module")
def cluster(docker: str, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    if not request.config.getoption("--long"):
        pytest.skip("three nodes at once are for the long form: tox -e integration -- --long")
    if AMQP_URL:
        pytest.skip("SYNMANAGER_TEST_AMQP_URL is set, so no image is built")
    brokers: Brokers = request.getfixturevalue("brokers")
    if request.param == "4.3":
        brokers.prepare("rabbitmq-4.3", "build")
        made = Cluster("synergos_mq:test-4.3")
    else:
        made = Cluster(brokers.find_image(f"rabbitmq-{request.param}"), is_ours=False)
    try:
        with made:
            yield made
    except BaseException:
        made.__exit__()
        raise


class Traffic:
    """A Director that submits without a pause, and workers that run what it submits.

    Some jobs, whose numbers are below zero, run until the trouble is over.
    """

    def __init__(self, url: str, workers: int) -> None:
        self.confirmed = 0
        self.ran: Counter[int] = Counter()
        self.at_once: set[int] = set()  # which ran here and there in the same moment
        self.is_past = threading.Event()
        self._long = range(0)
        self._running: Counter[int] = Counter()
        # By the wall clock, which the nodes share with us.
        self.begun: list[float] = []
        self.led: list[float] = []  # since when the queue had another leader
        self._url = url
        self._lock = threading.Lock()
        self._over, self._ended = threading.Event(), threading.Event()
        self.workers = [Worker({QUEUE: self._note}, url=url) for _ in range(workers)]

    def _note(self, number: int) -> None:
        with self._lock:
            self.begun.append(time.time())
            self.ran[number] += 1
            if self._running[number]:
                self.at_once.add(number)
            self._running[number] += 1
        try:
            if number < 0:
                while not self.is_past.wait(0.1):
                    current_job().check()
        finally:
            with self._lock:
                self._running[number] -= 1

    def _submit(self) -> None:
        try:
            with TrainProducerOperator(url=self._url) as producer:
                while not self._over.is_set():
                    producer.process(number=self.confirmed)
                    self.confirmed += 1
        finally:
            self._ended.set()

    def __enter__(self) -> Traffic:
        self._joins: list[Callable[[], Any]] = [in_thread(self._submit)]
        self._joins += [in_thread(worker.run) for worker in self.workers]
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for worker in self.workers:
            worker.stop()
        for join in self._joins:
            join()

    def begin_long(self, jobs: int) -> None:
        """Submit jobs that are longer than the trouble, and wait until they run."""
        self._long = range(-jobs, 0)
        with TrainProducerOperator(url=self._url) as producer:
            producer.submit_many([{"number": number} for number in self._long], priority="high")
        until(lambda: self.ran.keys() >= {*self._long}, "the long ones run")

    def flows(self, jobs: int) -> None:
        """Wait until so many more have run."""
        before = len(self.ran)
        until(lambda: len(self.ran) >= before + jobs, f"{jobs} more jobs have run", LONG)

    def gap(self, since: float) -> float:
        """Seconds, the longest without a job."""
        begun = self.begun[bisect(self.begun, since) :]
        return max(after - before for before, after in pairwise([since, *begun]))

    def back(self) -> list[float]:
        """Seconds from each new leader to the next job."""
        begun = [*self.begun, float("inf")]
        return [begun[bisect(begun, moment)] - moment for moment in self.led]

    def settle(self) -> None:
        """Submit no more, let the long ones end, and wait until all that was confirmed has run."""
        self._over.set()
        self.is_past.set()
        until(self._ended.is_set, "the last job is confirmed", 60)
        self._joins.pop(0)()
        all_of_them = self.confirmed + len(self._long)
        until(lambda: len(self.ran) >= all_of_them, "all confirmed jobs have run", LONG)
        until(lambda: not any(self._running.values()), "all of them have ended")


@contextmanager
def losing(cluster: Cluster, traffic: Traffic, node: str) -> Iterator[None]:
    """Note since when the others, while a node is away, have a new leader."""
    with cluster.watching(next(other for other in NODES if other != node)) as changes:
        yield
    traffic.led += changes


def without(
    cluster: Cluster,
    traffic: Traffic,
    node: str,
    lose: Callable[[str], None],
    bring_back: Callable[[str], None],
) -> None:
    """Let jobs flow while a node is lost, and when it is back."""
    with losing(cluster, traffic, node):
        lose(node)
        try:
            traffic.flows(MANY)
        finally:
            bring_back(node)
        traffic.flows(MANY)


def kill_the_leader(cluster: Cluster, traffic: Traffic) -> None:
    without(cluster, traffic, cluster.leader("mq1"), cluster.kill, cluster.start)


def kill_a_clients_node(cluster: Cluster, traffic: Traffic) -> None:
    ports = {port: node for node, port in cluster.ports.items()}
    backend = traffic.workers[0]._session.backend
    assert isinstance(backend, RabbitMQBackend)
    without(cluster, traffic, ports[backend._nodes.current.port], cluster.kill, cluster.start)


def freeze_the_leader(cluster: Cluster, traffic: Traffic) -> None:
    without(cluster, traffic, cluster.leader("mq1"), cluster.freeze, cluster.thaw)


def cut_the_leader_off(cluster: Cluster, traffic: Traffic) -> None:
    without(cluster, traffic, cluster.leader("mq1"), cluster.cut_off, cluster.join)


def restart_one_after_the_other(cluster: Cluster, traffic: Traffic) -> None:
    for node in NODES:
        with losing(cluster, traffic, node):
            cluster.stop(node)
            traffic.flows(MANY)
            cluster.start(node)
            cluster.wait_until_whole()


@pytest.mark.parametrize("cluster", ["4.3", "3.10"], indirect=True, scope="module")
@pytest.mark.parametrize(
    "trouble",
    [
        kill_the_leader,
        kill_a_clients_node,
        freeze_the_leader,
        cut_the_leader_off,
        restart_one_after_the_other,
    ],
    ids=lambda trouble: trouble.__name__,
)
def test_a_node_is_lost(
    cluster: Cluster,
    trouble: Callable[[Cluster, Traffic], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Any,
) -> None:
    caplog.set_level(logging.CRITICAL)
    monkeypatch.setenv("SYNMANAGER_HEARTBEAT", "4")  # seconds; twice that, and a node is given up
    monkeypatch.setenv("SYNMANAGER_TIMEOUT", "9")  # seconds, for three nodes
    cluster.wait_until_whole()
    with ExitStack() as stack:
        client = RabbitMQBackend(parse_url(cluster.url))
        client.open()
        stack.callback(client.close)
        with TrainProducerOperator(url=cluster.url):
            pass  # nobody has made the queue yet, perhaps
        client.purge(QUEUE)
        traffic = stack.enter_context(Traffic(cluster.url, workers=6))
        traffic.begin_long(3)
        traffic.flows(100)
        since = time.time()
        trouble(cluster, traffic)
        traffic.settle()
    twice = [number for number, times in traffic.ran.items() if times > 1]
    gap, back = traffic.gap(since), traffic.back()
    figures = (
        f"{traffic.confirmed} jobs, {len(twice)} twice, {len(traffic.at_once)} of them at once, "
        f"{sum(traffic.ran[number] > 1 for number in range(-3, 0))} of 3 long ones again, "
        f"{gap:.1f} s without any, the next {[f'{seconds:.2f}' for seconds in back]} s after "
        f"a new leader"
    )
    record_property("measured", figures)
    print(f"{trouble.__name__}: {figures}")
    assert set(traffic.ran) >= set(range(traffic.confirmed))  # nothing confirmed is lost
    # What each held, or had just acknowledged, when its connection ended.
    assert len(twice) <= 2 * len(traffic.workers) * len(NODES), (twice, traffic.confirmed)
    assert gap < GAP
    assert back or trouble is kill_a_clients_node
    assert max(back, default=0.0) <= BACK


@pytest.mark.parametrize("cluster", ["4.3"], indirect=True, scope="module")
def test_queues_are_of_the_kind_that_their_virtual_host_says(cluster: Cluster) -> None:
    client = RabbitMQBackend(parse_url(cluster.url.partition("?")[0]))
    client.open()
    with ExitStack() as stack:
        stack.callback(client.close)
        spec = make_spec()
        client.declare(spec)
        names = [spec.name, f"{spec.name}.dead"]
        arguments = client.facts(names).arguments
        assert [arguments[name]["x-queue-type"] for name in names] == ["quorum", "quorum"]


@pytest.mark.parametrize("cluster", ["4.3"], indirect=True, scope="module")
def test_from_classic_to_quorum_queues(cluster: Cluster, tmp_path: Path) -> None:
    """As docs/clusters.md has it: away, the old queues deleted, and back."""
    old = cluster.classic("old")
    new, parked = f"{old}?queues=quorum", f"sqlite:///{tmp_path / 'parked.db'}"
    with TrainProducerOperator(url=old) as producer:
        for number in range(30):
            producer.submit({"number": number}, priority=("low", "normal", "high")[number % 3])
        producer.submit({"number": 30}, delay=3.0, job_id="later")
    with closing(RabbitMQBackend(parse_url(old))) as client:
        client.open()
        assert client.facts([QUEUE]).arguments[QUEUE]["x-queue-type"] == "classic"
        client.add_letters(QUEUE, [DeadLetter(make_message(), QUEUE, "why", 5, 1764094604.5)])

    assert main(["move", "--from", old, "--to", parked]) == 0
    one = f"amqp://guest:guest@127.0.0.1:{cluster.ports['mq2']}/old"
    with pika.BlockingConnection(pika.URLParameters(one)) as connection:
        channel = connection.channel()
        for name in [*QUEUES, *(f"{queue}.dead" for queue in QUEUES)]:
            channel.queue_delete(name, if_empty=True)
    assert main(["move", "--from", old, "--to", new]) != 0  # they are one
    assert main(["move", "--from", parked, "--to", new]) == 0

    taken: list[int] = []
    with TrainConsumerOperator(url=new) as consumer:
        until(lambda: consumer.check_message_count() == 31, "the delayed one has come", 60)
        consumer.listen_message(lambda number: taken.append(number), max_jobs=31)
        (letter,) = consumer.dead_letters(10)
        assert letter.reason == "why"
    in_order = [number for last in (2, 1, 0) for number in range(last, 30, 3)]
    assert [number for number in taken if number != 30] == in_order
    assert sorted(taken) == list(range(31))
    with closing(RabbitMQBackend(parse_url(new))) as client:
        client.open()
        for name, arguments in client.facts([QUEUE, f"{QUEUE}.dead"]).arguments.items():
            assert arguments["x-queue-type"] == "quorum", name

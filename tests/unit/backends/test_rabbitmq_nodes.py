"""Which node of a RabbitMQ cluster is tried next."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pika
import pytest

from synmanager.backends import Address
from synmanager.backends.rabbitmq import RabbitMQBackend
from synmanager.backends.rabbitmq.nodes import Nodes
from synmanager.backends.rabbitmq.parameters import connection_parameters
from synmanager.errors import AccessRefused, BrokerUnavailable, SynmanagerError

THREE = Address.from_url("amqp://guest:pa55word@a:5673,b,[::1]:5674/grid")


class Cluster:
    """Nodes that fail as they are told, and in which order they were tried."""

    def __init__(self, **failing: SynmanagerError) -> None:
        self.failing = failing
        self.tried: list[str] = []
        self.seconds: list[float] = []
        self.nodes = Nodes(connection_parameters(THREE))

    def connect(self) -> str:
        """Connect; which node it was."""
        self.nodes.connect(30.0, self.attempt)
        return str(self.nodes.current.host)

    def attempt(self, parameters: pika.ConnectionParameters, seconds: float) -> None:
        self.tried.append(parameters.host)
        self.seconds.append(seconds)
        if error := self.failing.get(parameters.host):
            raise error


def test_each_host_has_its_port_and_all_have_one_login() -> None:
    parameters = connection_parameters(replace(THREE, scheme="amqps"))
    assert [(each.host, each.port) for each in parameters] == [
        ("a", 5673),
        ("b", 5671),
        ("::1", 5674),
    ]
    assert {each.virtual_host for each in parameters} == {"grid"}
    assert {each.credentials.password for each in parameters} == {"pa55word"}
    assert [each.ssl_options.server_hostname for each in parameters] == ["a", "b", "::1"]


def test_clients_spread_over_the_nodes() -> None:
    found = Counter(Cluster().connect() for _ in range(300))
    assert len(found) == 3
    assert min(found.values()) > 50  # of 100 each


def test_the_next_is_tried_at_once_and_each_has_its_part_of_the_time() -> None:
    cluster = Cluster(a=BrokerUnavailable("away"), b=BrokerUnavailable("away"))
    for _ in range(20):
        assert cluster.connect() == "::1"
    assert cluster.seconds[0] == pytest.approx(10.0, abs=1.0)
    assert cluster.tried[-1] == "::1"
    assert cluster.tried[-5:] == ["::1"] * 5  # those that failed of late come last


def test_a_lost_one_is_tried_last() -> None:
    cluster = Cluster()
    for _ in range(50):
        lost = cluster.connect()
        cluster.nodes.avoid()
        assert cluster.connect() != lost


def test_the_error_names_all_of_them() -> None:
    away = {host: BrokerUnavailable(f"{host} is away") for host in ("a", "b", "::1")}
    cluster = Cluster(**away)
    with pytest.raises(BrokerUnavailable, match=r"a:5673, b:5672, \[::1\]:5674") as failed:
        cluster.connect()
    assert sorted(cluster.tried) == ["::1", "a", "b"]
    assert all(str(error) in str(failed.value) for error in away.values())


def test_a_refusal_is_told_though_others_are_away() -> None:
    cluster = Cluster(
        a=BrokerUnavailable("away"),
        b=AccessRefused("wrong password"),
        **{"::1": BrokerUnavailable()},
    )
    with pytest.raises(AccessRefused, match="wrong password"):
        cluster.connect()
    del cluster.failing["::1"]
    assert cluster.connect() == "::1"


def test_a_backend_names_all_of_them() -> None:
    backend = RabbitMQBackend(THREE)
    with pytest.raises(BrokerUnavailable, match=r"a:5673, b:5672, \[::1\]:5674"):
        backend.count("train")

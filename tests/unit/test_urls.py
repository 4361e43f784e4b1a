"""Addresses from URLs, and URLs that may be shown."""

from __future__ import annotations

import random

import pytest

from synmanager.backends import Address
from synmanager.backends.urls import spread
from synmanager.errors import ConfigurationError


def test_a_url_and_what_no_url_says() -> None:
    address = Address.from_url("nats://me:p%2Fw@[::1]:4222/a%20b?cafile=/ca.pem", timeout=3.0)
    assert address == Address(
        "nats", "::1", 4222, "me", "p/w", "a b", {"cafile": "/ca.pem"}, timeout=3.0
    )
    assert Address.from_url("nats://host", port=7, host=None) == Address("nats", port=7)


@pytest.mark.parametrize("url", ["", "nats", "nats:host", "://host", "//host", "nats://a,b,"])
def test_what_is_no_url_of_a_broker(url: str) -> None:
    with pytest.raises(ConfigurationError):
        Address.from_url(url)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://me:canary@host:1/path?token=canary", "nats://me@host:1/path"),
        ("nats://:canary@host", "nats://@host"),
        ("nats://host", "nats://host"),
        ("nats://me:canary@a:1,[::1],b:2/x?y=canary", "nats://me@a:1,[::1],b:2/x"),
        ("nats:///a/b", "nats:///a/b"),
        ("sqlite:////data/jobs.db", "sqlite:////data/jobs.db"),
        ("sqlite:///my%20jobs.db", "sqlite:///my%20jobs.db"),
        ("memory://me:canary@host:1", "memory://"),
        ("nats://%40a%0A:canary@[fe80::1]:2/%1B[2J", "nats://%40a%0A@[fe80::1]:2/%1B%5B2J"),
        ("nats://[fe80::1%25eth0]:2,[fe80::2%eth1]", "nats://[fe80::1%25eth0]:2,[fe80::2%25eth1]"),
    ],
)
def test_a_safe_url_shows_neither_password_nor_options(url: str, shown: str) -> None:
    address = Address.from_url(url)
    assert address.safe_url == shown
    again = Address.from_url(shown)
    assert again.path == address.path
    assert again.hosts in (address.hosts, ())  # none is shown where it means nothing


def test_several_hosts() -> None:
    address = Address.from_url("nats://a:1,b,[fe80::1]:3,[::1]/path")
    hosts = (("a", 1), ("b", None), ("fe80::1", 3), ("::1", None))
    assert address.hosts == hosts
    assert (address.host, address.port, address.path) == ("a", 1, "path")
    assert Address("nats").hosts == ()


def test_the_zone_of_an_address_is_written_in_two_ways() -> None:
    hosts = (("fe80::1%eth0", 1), ("fe80::1%eth0", None), ("fe80::1%en.5", None))
    assert (
        Address.from_url("nats://[fe80::1%25eth0]:1,[fe80::1%eth0],[fe80::1%25en.5]").hosts == hosts
    )
    with pytest.raises(ConfigurationError, match="IPv6 address must be whole"):
        Address.from_url("nats://[fe80::1%25]")


def test_hosts_are_tried_in_many_orders() -> None:
    hosts = Address.from_url("nats://a,b,c").hosts
    orders = []
    for _ in range(200):
        random.seed(0)  # as programs do that want their results again
        orders.append(tuple(spread(hosts)))
    assert {frozenset(order) for order in orders} == {frozenset(hosts)}
    assert len(set(orders)) == 6

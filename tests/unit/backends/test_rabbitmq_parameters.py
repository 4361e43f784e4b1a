"""An address as pika's parameters, and pika's errors as ours."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pika import exceptions as pika_errors

from synmanager.backends import Address
from synmanager.backends.rabbitmq import RabbitMQBackend
from synmanager.backends.rabbitmq.delays import way
from synmanager.backends.rabbitmq.faults import translate
from synmanager.backends.rabbitmq.parameters import connection_parameters
from synmanager.errors import (
    AccessRefused,
    BrokerUnavailable,
    ConfigurationError,
    LeaseLost,
    SynmanagerError,
    TopologyError,
)

PLAIN = Address("amqp", host="mq.example")
TLS = Address("amqps", host="mq.example")


def test_what_an_address_says() -> None:
    address = replace(PLAIN, port=5673, username="alice", password="s3cret", path="grid")
    (parameters,) = connection_parameters(replace(address, heartbeat=7.4))
    assert (parameters.host, parameters.port, parameters.virtual_host) == (
        "mq.example",
        5673,
        "grid",
    )
    assert (parameters.credentials.username, parameters.credentials.password) == ("alice", "s3cret")
    assert parameters.heartbeat == 7
    assert parameters.ssl_options is None


def test_what_an_address_leaves_open() -> None:
    (parameters,) = connection_parameters(replace(PLAIN, heartbeat=0.2))
    assert (parameters.port, parameters.virtual_host, parameters.heartbeat) == (5672, "/", 1)
    assert parameters.credentials.username == "guest"
    assert connection_parameters(TLS)[0].port == 5671


@pytest.mark.parametrize(
    ("url", "user", "password"),
    [
        ("amqp://mq", "guest", "guest"),
        ("amqp://@mq", "guest", "guest"),
        ("amqp://u:@mq", "u", ""),
        ("amqp://u@mq", "u", ""),
        ("amqp://guest@mq", "guest", "guest"),
        ("amqp://guest:@mq", "guest", ""),
        ("amqp://:pw@mq", "guest", "pw"),
    ],
)
def test_guest_is_meant_where_nobody_else_is_named(url: str, user: str, password: str) -> None:
    address = Address.from_url(url)
    (parameters,) = connection_parameters(address)
    assert (parameters.credentials.username, parameters.credentials.password) == (user, password)


def test_tls_checks_the_chain_and_the_host_name() -> None:
    options = connection_parameters(TLS)[0].ssl_options
    assert options.context.verify_mode is ssl.CERT_REQUIRED
    assert options.context.check_hostname
    assert options.server_hostname == "mq.example"


@pytest.mark.parametrize(
    "address",
    [
        replace(PLAIN, options={"cafile": "/dev/null"}),
        replace(PLAIN, options={"colour": "red"}),
        replace(PLAIN, options={"queues": "mirrored"}),
        replace(TLS, options={"colour": "red"}),
        replace(TLS, options={"cafile": "/does/not/exist.pem"}),
        replace(TLS, options={"certfile": "/dev/null"}),
        replace(TLS, options={"keyfile": "/dev/null"}),
    ],
)
def test_what_can_never_work_is_refused_before_any_io(address: Address) -> None:
    with pytest.raises(ConfigurationError):
        RabbitMQBackend(address)


def test_a_certificate_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(ConfigurationError, match="certificate"):
        RabbitMQBackend(replace(TLS, options={"cafile": str(tmp_path / "ca.pem")}))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (pika_errors.ConnectionClosedByBroker(403, "ACCESS_REFUSED - login"), AccessRefused),
        (pika_errors.ConnectionClosedByBroker(530, "NOT_ALLOWED - vhost"), AccessRefused),
        (pika_errors.ConnectionClosedByBroker(320, "CONNECTION_FORCED"), BrokerUnavailable),
        (pika_errors.ConnectionClosedByBroker(530, "NOT_ALLOWED - limit (1)"), BrokerUnavailable),
        (pika_errors.ConnectionClosedByBroker(530, "vhost '/' is down"), BrokerUnavailable),
        (pika_errors.AuthenticationError("PLAIN"), AccessRefused),
        (pika_errors.StreamLostError("cut"), BrokerUnavailable),
        (pika_errors.ChannelClosedByBroker(403, "ACCESS_REFUSED - write"), AccessRefused),
        (pika_errors.ChannelClosedByBroker(404, "NOT_FOUND - no queue"), TopologyError),
        (pika_errors.ChannelClosedByBroker(406, "PRECONDITION_FAILED"), TopologyError),
        (pika_errors.IncompatibleProtocolError("x"), BrokerUnavailable),
        (ssl.SSLCertVerificationError("self-signed"), AccessRefused),
        (ssl.SSLError("WRONG_VERSION_NUMBER"), AccessRefused),
        (ssl.SSLEOFError("cut off"), BrokerUnavailable),
        (ConnectionRefusedError("refused"), BrokerUnavailable),
        (TimeoutError(), BrokerUnavailable),
        (LeaseLost("ours"), LeaseLost),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else type(value).__name__,
)
def test_every_error_has_a_class_of_ours(error: Any, expected: type[SynmanagerError]) -> None:
    if isinstance(error, ssl.SSLCertVerificationError):
        error.verify_message = "self-signed certificate"
    translated = translate(error, "mq.example:5672")
    assert type(translated) is expected
    assert str(translated)


@pytest.mark.parametrize(
    ("seconds", "tenths"), [(0.001, 1), (0.1, 1), (0.3, 3), (0.35, 4), (1.0, 10), (3600.0, 36_000)]
)
def test_a_delay_is_a_binary_number_of_tenths_and_never_too_short(
    seconds: float, tenths: int
) -> None:
    headers = way(seconds, queue="train")
    digits = [name for name, value in headers.items() if value is True]
    assert sum(1 << int(name.rpartition("-")[2]) for name in digits) == tenths


def test_the_longest_delay_sets_every_digit() -> None:
    longest = RabbitMQBackend.features.longest_delay
    digits = [value for value in way(longest, queue="train").values() if isinstance(value, bool)]
    assert longest > 76 * 24 * 3600.0
    assert all(digits)
    with pytest.raises(AssertionError):
        way(longest + 0.1, queue="train")

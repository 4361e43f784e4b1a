"""The options of a broker's URL, on every driver alike."""

from __future__ import annotations

from typing import Any

import pytest

from synmanager.backends import Address, create_backend
from synmanager.backends.options import choice, flag, read_options, text, whole
from synmanager.backends.tls import tls_context
from synmanager.errors import ConfigurationError

TYPES = {"mkdir": flag, "stream": text, "replicas": whole(0, 5), "queues": choice("a", "b")}


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("mkdir=true", True),
        ("mkdir=FALSE", False),
        ("stream=%20x", " x"),
        ("replicas=5", 5),
        ("replicas=00", 0),
        ("queues=b", "b"),
    ],
)
def test_a_value_is_of_its_type(given: str, value: Any) -> None:
    name = given.partition("=")[0]
    assert read_options(Address.from_url(f"nats://host?{given}"), TYPES) == {name: value}


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("mkdir=yes", "'mkdir' must be true or false, not 'yes'"),
        ("replicas=6", "'replicas' must be a whole number from 0 to 5"),
        ("replicas=-1", "whole number"),
        ("replicas=1.5", "whole number"),
        ("replicas=%D9%A3", "whole number"),  # a digit, but not one of ours
        ("replicas=" + 9000 * "9", "whole number"),
        ("queues=c", "'queues' must be one of a, b, not 'c'"),
        ("Mkdir=true", "no option 'Mkdir'; it has mkdir, stream, replicas, queues"),
        ("cafile=x", "the option 'cafile' needs TLS: natss://, not nats://"),
    ],
)
def test_what_is_no_value_is_refused(given: str, what: str) -> None:
    address = Address.from_url(f"nats://host?{given}")
    with pytest.raises(ConfigurationError) as refusal:
        read_options(address, TYPES, over_tls="natss")
    assert what in str(refusal.value)
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("url", ["memory://", "sqlite:///jobs.db", "redis://h", "amqp://h"])
def test_every_driver_refuses_what_it_does_not_know(url: str) -> None:
    with pytest.raises(ConfigurationError, match="has no option 'nonsense'; it has"):
        create_backend(Address.from_url(f"{url}?nonsense=1"))


@pytest.mark.parametrize("url", ["amqp://h", "redis://h"])
def test_a_certificate_without_tls_is_refused(url: str) -> None:
    scheme = url.partition(":")[0]
    with pytest.raises(ConfigurationError, match=f"needs TLS: {scheme}s://, not {scheme}://"):
        create_backend(Address.from_url(f"{url}?cafile=x"))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"cafile": "/no/such"}, "cannot read the cafile '/no/such': No such file"),
        ({"certfile": "x"}, "come together"),
        ({"certfile": "/no/such", "keyfile": "/none"}, "cannot use the certfile '/no/such'"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_named(options: dict[str, str], what: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        tls_context(options)
    assert what in str(refusal.value)

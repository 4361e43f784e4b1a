"""Addresses that can never work are refused before any I/O."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis

from synmanager.backends import Address
from synmanager.backends.redis import RedisBackend
from synmanager.backends.redis.options import connection_options, patience
from synmanager.errors import ConfigurationError

CANARY = "canary7c1f"


@pytest.mark.parametrize(
    ("scheme", "fields", "word"),
    [
        ("redis", {"path": "jobs"}, "number of a database"),
        ("redis", {"path": "-1"}, "number of a database"),
        ("redis", {"path": "0/1"}, "number of a database"),
        ("redis", {"path": "²"}, "number of a database"),
        ("redis", {"options": {"db": "1"}}, "no option 'db'"),
        ("redis", {"options": {"cafile": "ca.pem"}}, "rediss://"),
        ("redis", {"options": {"prefix": "a{b"}}, "prefix"),
        ("redis", {"options": {"prefix": ""}}, "prefix"),
        ("rediss", {"options": {"ca": "x"}}, "no option 'ca'"),
        ("rediss", {"options": {"certfile": "x"}}, "come together"),
        ("rediss", {"options": {"keyfile": "x"}}, "come together"),
        ("rediss", {"options": {"cafile": "/no/such/file"}}, "/no/such/file"),
        ("rediss", {"options": {"certfile": "/no/such", "keyfile": "/no/key"}}, "/no/key"),
    ],
)
def test_refused(scheme: str, fields: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigurationError, match=word) as caught:
        RedisBackend(Address(scheme, username="alice", password=CANARY, **fields))
    assert CANARY not in f"{caught.value!r} {caught.value.__context__!r}"


def test_a_file_that_is_no_certificate(tmp_path: Path) -> None:
    empty = tmp_path / "ca.pem"
    empty.write_text("nothing")
    with pytest.raises(ConfigurationError, match=r"ca\.pem"):
        connection_options(Address("rediss", options={"cafile": str(empty)}))


def test_defaults() -> None:
    options = connection_options(Address("redis"))
    connection: Any = redis.Connection
    assert (options["host"], options["port"], options["db"]) == ("localhost", 6379, 0)
    assert connection(**options).retry.get_retries() == 0


def test_tls_always_checks_the_chain_and_the_host_name() -> None:
    options = connection_options(Address("rediss", host="redis.example"))
    kind: Any = redis.SSLConnection
    connection = kind(**options)
    assert connection.check_hostname is True
    assert connection.cert_reqs.name == "CERT_REQUIRED"


@pytest.mark.parametrize(
    ("timeout", "heartbeat", "expected"), [(30, 20, 30), (30, 2, 4), (1, 20, 1)]
)
def test_a_silent_server_is_given_up(timeout: float, heartbeat: float, expected: float) -> None:
    address = Address("redis", timeout=timeout, heartbeat=heartbeat)
    assert patience(address) == expected

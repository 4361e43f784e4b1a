"""What kombu's pgmq is asked: names that are never mixed up, and TLS that checks."""

from __future__ import annotations

from itertools import product

import pytest

pytest.importorskip("kombu", reason="kombu is not installed")

from synmanager.backends.base import Address
from synmanager.backends.kombu.address import pgmq_conninfo
from synmanager.backends.kombu.faults import translate
from synmanager.backends.kombu.pgmq import pgmq_name
from synmanager.errors import AccessRefused, BrokerUnavailable, ConfigurationError


def test_a_name_that_fits_stays_and_its_parts_can_be_read() -> None:
    assert pgmq_name("train") == "train"
    assert pgmq_name("train_2") == "train_2"
    assert pgmq_name("train.dead") == "train__dead"


def test_no_two_queues_are_one() -> None:
    names = ["".join(letters) for size in range(1, 6) for letters in product("aA_.-", repeat=size)]
    names += ["x" * length for length in range(1, 70)]
    names += [pgmq_name(name) for name in names]
    made = {name: pgmq_name(name) for name in names}
    assert len(set(made.values())) == len(made)
    for name in made.values():
        assert len(name) <= 47
        assert name == name.lower()  # as which pgmq takes it
        assert name.replace("_", "").isalnum()


def test_the_host_name_is_checked_where_an_authority_is_named() -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed; tox -e kombu has it")
    assert "sslmode=prefer" in pgmq_conninfo(Address("kombu+pgmq"))
    assert "sslmode=disable" in pgmq_conninfo(Address("kombu+pgmq", options={"tls": "false"}))
    checked = pgmq_conninfo(Address("kombu+pgmq", options={"tls": "true"}))
    assert "sslmode=verify-full" in checked
    assert "sslrootcert=system" in checked
    with pytest.raises(ConfigurationError):
        pgmq_conninfo(Address("kombu+pgmq", options={"cafile": "/no/such/file"}))
    with pytest.raises(ConfigurationError, match="tls"):
        pgmq_conninfo(Address("kombu+pgmq", options={"tls": "yes"}))


def test_refused_is_not_unavailable() -> None:
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed; tox -e kombu has it")
    words = {
        'connection failed: FATAL:  password authentication failed for user "a"': AccessRefused,
        'connection failed: FATAL:  database "jobs" does not exist': AccessRefused,
        "connection failed: Connection refused": BrokerUnavailable,
        "the server has not answered in time": BrokerUnavailable,
    }
    for said, error in words.items():
        assert type(translate(psycopg.OperationalError(said), "x")) is error
    assert type(translate(psycopg.errors.InsufficientPrivilege("x"), "x")) is AccessRefused

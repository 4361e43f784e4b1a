"""Addresses that can never work, or may lose a job, are refused before any I/O."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

pytest.importorskip("kombu", reason="kombu is not installed")

from synmanager.backends import Address, create_backend
from synmanager.backends.kombu import KombuBackend
from synmanager.backends.kombu.address import _azureservicebus, connection
from synmanager.backends.kombu.guarantees import ROWS
from synmanager.errors import ConfigurationError
from synmanager.settings import load_settings, parse_url

CANARY = "canary7c1f"


def refusal(scheme: str, **fields: Any) -> str:
    with pytest.raises(ConfigurationError) as caught:
        KombuBackend(Address(scheme, username="alice", password=CANARY, **fields))
    assert CANARY not in f"{caught.value!r} {caught.value.__context__!r}"
    return str(caught.value)


@pytest.mark.parametrize("name", sorted(name for name, row in ROWS.items() if not row.keeps))
def test_a_transport_that_loses_jobs_is_refused(name: str) -> None:
    said = refusal(f"kombu+{name}")
    assert name in said
    assert "allow_loss=true" in said
    assert "pyamqp" in said  # what to take instead


@pytest.mark.parametrize("name", ["qpid", "confluentkafka", "slmq", "nothing"])
def test_a_transport_that_nobody_has_looked_at_is_refused(name: str) -> None:
    assert "is not known here" in refusal(f"kombu+{name}")


def test_the_loss_is_allowed_by_name() -> None:
    options = {"allow_loss": "true"}
    backend = KombuBackend(Address("kombu+memory", options=options))
    assert backend.features.keeps_held is False
    assert refusal("kombu+memory", options={"allow_loss": "false"})
    assert "true or false" in refusal("kombu+memory", options={"allow_loss": "yes"})
    assert "no transport" in refusal("kombu+nothing", options=options)


@pytest.mark.parametrize("name", sorted(name for name, row in ROWS.items() if row.keeps))
def test_what_keeps_a_job_needs_no_permission(name: str) -> None:
    assert ROWS[name].features().keeps_held


@pytest.mark.parametrize(
    ("scheme", "fields", "word"),
    [
        ("kombu+redis", {"options": {"db": "1"}}, "no option 'db'"),
        ("kombu+redis", {"options": {"cafile": "x"}}, "needs TLS"),
        ("kombu+pyamqp", {"options": {"region": "x"}}, "no option 'region'"),
        ("kombu+amqps", {"options": {"certfile": "x"}}, "come together"),
        ("kombu+amqps", {"options": {"cafile": "/no/such/file"}}, "the cafile"),
        ("kombu+rediss", {"options": {"cafile": "/no/such/file"}}, "the cafile"),
        ("kombu+filesystem", {"options": {"allow_loss": "true"}}, "folder"),
        ("kombu+redis", {"host": "a", "others": (("b", 7),)}, "has one host, not 2"),
    ],
)
def test_refused(scheme: str, fields: dict[str, Any], word: str) -> None:
    assert word in refusal(scheme, **fields)


def test_sqlalchemy_needs_a_dialect() -> None:
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed; tox -e kombu has it")
    assert "dialect" in refusal("kombu+sqla", options={"allow_loss": "true"})


def test_the_host_name_is_checked_over_tls() -> None:
    amqps = connection(Address("kombu+amqps", host="mq.example")).ssl
    assert amqps["server_hostname"] == "mq.example"
    assert amqps["cert_reqs"] is ssl.CERT_REQUIRED
    rediss = connection(Address("kombu+rediss", host="mq.example")).ssl
    assert rediss["ssl_check_hostname"] is True
    assert rediss["ssl_cert_reqs"] == "required"


def test_publishing_is_confirmed() -> None:
    assert connection(Address("kombu+pyamqp")).transport_options["confirm_publish"] is True


def test_a_url_is_passed_through() -> None:
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed; tox -e kombu has it")
    address = parse_url("kombu+sqla+sqlite:////a/b.db?allow_loss=true")
    assert (address.scheme, address.path) == ("kombu+sqla+sqlite", "/a/b.db")
    assert connection(address).hostname == "sqlite:////a/b.db"
    assert isinstance(create_backend(address), KombuBackend)


def test_a_password_arrives_as_it_is() -> None:
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed; tox -e kombu has it")
    address = parse_url("kombu+amqp://a%2Fb:p%23%2F@mq.example:5673/v%2Fhost")
    made = connection(address)
    assert (made.userid, made.password, made.virtual_host) == ("a/b", "p#/", "v/host")
    address = parse_url("kombu+sqla+postgresql://u:p%2F%40@db/jobs?allow_loss=true")
    assert connection(address).hostname == "postgresql://u:p%2F%40@db/jobs"


def test_azure_gets_its_key_and_renews_its_locks() -> None:
    made = _azureservicebus(parse_url("kombu+azureservicebus://policy:a%2Fb@space"))
    assert made["hostname"] == "azureservicebus://policy:a/b@space"
    assert made["transport_options"]["use_lock_renewal"] is True


def test_no_host_means_the_service_of_amazon() -> None:
    assert load_settings(url="kombu+sqs://", environ={}).address.host is None
    assert load_settings(url="memory", environ={}).address.host == "localhost"

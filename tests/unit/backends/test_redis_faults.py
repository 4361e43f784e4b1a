"""What Redis answers and redis-py raises, as this project's errors."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from redis import exceptions as redis_errors
from redis._parsers import BaseParser

from synmanager.backends.redis.faults import code_of, translate
from synmanager.errors import AccessRefused, BrokerUnavailable, PublishRefused, TopologyError

#: (what Redis writes, the error while publishing, the error otherwise, a word of both)
ANSWERS = [
    ("OOM command not allowed", PublishRefused, BrokerUnavailable, "memory"),
    ("MISCONF Redis is configured to save", PublishRefused, BrokerUnavailable, "disk"),
    ("NOREPLICAS Not enough", PublishRefused, BrokerUnavailable, "replicas"),
    ("LOADING Redis is loading", BrokerUnavailable, BrokerUnavailable, "loading"),
    ("BUSY Redis is busy", BrokerUnavailable, BrokerUnavailable, "script"),
    ("MASTERDOWN Link with MASTER", BrokerUnavailable, BrokerUnavailable, "master"),
    ("CLUSTERDOWN down", BrokerUnavailable, BrokerUnavailable, "cluster"),
    ("READONLY You can't write", BrokerUnavailable, BrokerUnavailable, "primary"),
    ("UNBLOCKED force unblock from blocking", BrokerUnavailable, BrokerUnavailable, "primary"),
    ("MOVED 1 127.0.0.1:1", BrokerUnavailable, BrokerUnavailable, "cluster"),
    ("CROSSSLOT Keys", BrokerUnavailable, BrokerUnavailable, "Keys"),
    ("WRONGTYPE Operation against a key", TopologyError, TopologyError, "WRONGTYPE"),
    ("NOAUTH Authentication required.", AccessRefused, AccessRefused, "password"),
    ("WRONGPASS invalid username-password pair", AccessRefused, AccessRefused, "password"),
    ("NOPERM this user has no permissions", AccessRefused, AccessRefused, "ACL"),
    ("ERR ACL failure in script: no permissions", AccessRefused, AccessRefused, "ACL"),
    ("ERR The user executing the script can't run", AccessRefused, AccessRefused, "ACL"),
    ("ERR The stream has exhausted the last possible ID", TopologyError, TopologyError, "last"),
    ("ERR unknown command", BrokerUnavailable, BrokerUnavailable, "unknown command"),
    ("PROXYERROR backend on fire", BrokerUnavailable, BrokerUnavailable, "on fire"),
]


def as_redis_py_raises(answer: str) -> Exception:
    parser: Any = BaseParser
    error: Exception = parser.parse_error(answer)
    return error


@pytest.mark.parametrize(
    ("answer", "publishing", "otherwise", "word"), ANSWERS, ids=[row[0] for row in ANSWERS]
)
def test_an_answer(
    answer: str, publishing: type[Exception], otherwise: type[Exception], word: str
) -> None:
    error = as_redis_py_raises(answer)
    for kind, flag in ((publishing, True), (otherwise, False)):
        ours = translate(error, "host:1", publishing=flag)
        assert type(ours) is kind
        assert "host:1" in str(ours)
        assert word in str(ours)
    assert code_of(error)


@pytest.mark.parametrize(
    "error", [redis_errors.ConnectionError("reset"), redis_errors.TimeoutError(), OSError("gone")]
)
def test_no_answer(error: Exception) -> None:
    assert code_of(error) == ""
    assert type(translate(error, "host:1")) is BrokerUnavailable


def wrapped(cause: Exception) -> Exception:
    error = redis_errors.ConnectionError("Error connecting")
    error.__context__ = cause
    return error


def ssl_error(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("cause", "word"),
    [
        (ssl_error("TLSV1_ALERT_UNKNOWN_CA"), "refuses our certificate"),
        (ssl_error("WRONG_VERSION_NUMBER"), "does not speak TLS"),
    ],
)
def test_no_trust(cause: ssl.SSLError, word: str) -> None:
    ours = translate(wrapped(cause), "host:1")
    assert type(ours) is AccessRefused
    assert word in str(ours)


def test_a_certificate_that_is_not_valid() -> None:
    cause = ssl.SSLCertVerificationError(1, "certificate verify failed")
    cause.verify_message = "Hostname mismatch"
    ours = translate(wrapped(cause), "host:1")
    assert type(ours) is AccessRefused
    assert "Hostname mismatch" in str(ours)


def test_a_tls_connection_that_broke_may_come_back() -> None:
    assert type(translate(wrapped(ssl_error("UNEXPECTED_EOF")), "host:1")) is BrokerUnavailable

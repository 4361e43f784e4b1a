"""What redis-py raises and Redis answers, as this project's errors."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

from redis import exceptions as redis_errors

from synmanager.errors import (
    AccessRefused,
    BrokerUnavailable,
    PublishRefused,
    SynmanagerError,
    TopologyError,
)

__all__ = ["code_of", "translate"]

# redis-py takes the code off the text of those for which it has a class.
_CODES: list[tuple[type[Exception], str]] = [
    (redis_errors.OutOfMemoryError, "OOM"),
    (redis_errors.ReadOnlyError, "READONLY"),
    (redis_errors.NoPermissionError, "NOPERM"),
    (redis_errors.AuthenticationError, "NOAUTH"),
    (redis_errors.AuthenticationWrongNumberOfArgsError, "NOAUTH"),
    (redis_errors.AuthorizationError, "NOAUTH"),
    (redis_errors.BusyLoadingError, "LOADING"),
    (redis_errors.MasterDownError, "MASTERDOWN"),
    (redis_errors.ClusterDownError, "CLUSTERDOWN"),
    (redis_errors.TryAgainError, "TRYAGAIN"),
    (redis_errors.MovedError, "MOVED"),
    (redis_errors.AskError, "MOVED"),
    (redis_errors.ClusterCrossSlotError, "CROSSSLOT"),
]

_NO_WRITES = {
    "OOM": "it is out of memory (maxmemory)",
    "MISCONF": "it cannot save to its disk",
    "NOREPLICAS": "too few of its replicas are connected",
}

_WAIT = {
    "LOADING": "it is still loading its data",
    "BUSY": "it is busy with a script",
    "MASTERDOWN": "it is a replica without its master",
    "CLUSTERDOWN": "its cluster is down",
    "TRYAGAIN": "its cluster is moving our keys",
}

_TOPOLOGY = {
    "READONLY": "it is a read-only replica; connect to the primary",
    "MOVED": "it is a node of a cluster, and our keys are on another one; connect to that",
    "CROSSSLOT": "it is a cluster, and our keys are not on one node",
}


def code_of(error: BaseException) -> str:
    """The word with which Redis began its answer, such as ``WRONGTYPE``; "" if it gave none."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    if isinstance(error, redis_errors.ResponseError):
        return str(error).partition(" ")[0]
    return ""


def translate(error: Exception, where: str, *, publishing: bool = False) -> SynmanagerError:
    """Return our error for one of redis-py's or of the socket's.

    Args:
        where: the server, as ``host:port``.
        publishing: whether messages were being added; a server that cannot write refuses them.
            Everything else may be repeated until it can.
    """
    tls = _tls_refusal(error)
    if tls:
        return AccessRefused(f"no trust between us and {where}: {tls}")
    code = code_of(error)
    if code in ("NOAUTH", "NOPERM", "WRONGPASS"):
        return AccessRefused(
            f"Redis at {where} does not let us in: {error}; check user, password and ACL"
        )
    if code in _NO_WRITES:
        kind = PublishRefused if publishing else BrokerUnavailable
        return kind(f"Redis at {where} takes no writes: {_NO_WRITES[code]} ({error})")
    if code in _WAIT:
        return BrokerUnavailable(f"Redis at {where} is not ready: {_WAIT[code]}")
    if code in _TOPOLOGY:
        return TopologyError(f"Redis at {where} cannot hold our queues: {_TOPOLOGY[code]}")
    if isinstance(error, redis_errors.ResponseError):
        return TopologyError(f"Redis at {where} answered: {error}")
    return BrokerUnavailable(
        f"no connection to Redis at {where}: {error}; is it running, and can it be reached?"
    )


def _tls_refusal(error: BaseException) -> str | None:
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not valid here: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError) and cause.reason:
            if "ALERT" in cause.reason:
                return f"it refuses our certificate or our TLS ({cause.reason})"
            if cause.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
                return "it does not speak TLS; use redis:// or its TLS port"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__

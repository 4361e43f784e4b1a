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
from synmanager.interrupts import is_from_handler

__all__ = [
    "SENTINELS",
    "TOO_FEW_REPLICAS",
    "Failed",
    "OutOfTurn",
    "RefusedByGuide",
    "callers_own",
    "code_of",
    "is_answer",
    "is_refusal",
    "takes_no_writes",
    "translate",
]

# redis-py takes the code off the text of those for which it has a class.
_CODES: list[tuple[type[Exception], str]] = [
    (redis_errors.OutOfMemoryError, "OOM"),
    (redis_errors.ReadOnlyError, "READONLY"),
    (redis_errors.NoPermissionError, "NOPERM"),
    (redis_errors.AuthenticationError, "NOAUTH"),
    (redis_errors.AuthenticationWrongNumberOfArgsError, "NOAUTH"),
    (redis_errors.AuthorizationError, "NOAUTH"),
    (redis_errors.NoScriptError, "NOSCRIPT"),
    (redis_errors.BusyLoadingError, "LOADING"),
    (redis_errors.MasterDownError, "MASTERDOWN"),
    (redis_errors.ClusterDownError, "CLUSTERDOWN"),
    (redis_errors.TryAgainError, "TRYAGAIN"),
    (redis_errors.MovedError, "MOVED"),
    (redis_errors.AskError, "MOVED"),
]

# Parts of answers that have no code of their own.
_PHRASES = [
    ("ACL failure in script", "NOPERM"),
    ("The user executing the script can't", "NOPERM"),  # Redis 7.0
    ("exhausted the last possible ID", "EXHAUSTED"),
    ("the stream key no longer exists", "NOGROUP"),  # deleted while somebody waited for it
]

_REFUSALS = ("NOAUTH", "NOPERM", "WRONGPASS")

#: What Redis answers to SELECT; it has no code of its own.
_NO_DATABASE = "DB index is out of range"

_NO_WRITES = {
    "OOM": "it is out of memory (maxmemory)",
    "MISCONF": "it cannot save to its disk",
    "NOREPLICAS": "too few of its replicas are connected",
}

_NOT_READY = {
    "LOADING": "it is still loading its data",
    "BUSY": "it is busy with a script",
    "MASTERDOWN": "it is a replica without its master",
    "CLUSTERDOWN": "its cluster is down",
    "TRYAGAIN": "its cluster is moving our keys",
    "READONLY": "it is a read-only replica; the primary is needed",
    "UNBLOCKED": "it has become a replica; the primary is needed",
    "MOVED": "it is a node of a cluster, and our keys are on another one; that is needed",
}

#: What is said by who was asked where the server is and cannot know it, and what to do then.
_NO_GUIDES = {
    "cluster support disabled": "is no node of a cluster; leave +cluster out of the URL's scheme",
    "unknown command 'CLUSTER'": "is no node of a cluster; leave +cluster out of the URL's scheme, "
    "or use +sentinel where it is a Sentinel",
    "unknown command 'SENTINEL'": "is no Sentinel; name the Sentinels, whose port is 26379 unless "
    "they are told otherwise, or leave +sentinel, and the primary's name, out of the URL",
}

#: How a place goes on that Sentinels tell.
SENTINELS = " (Sentinels "

#: The code of an answer of ours: the server has it, and fewer replicas than were asked for.
TOO_FEW_REPLICAS = "UNREPLICATED"

# A key that is not what it should be; its name is found by who knows which may be meant.
_TOPOLOGY = ("WRONGTYPE", "NOGROUP", "EXHAUSTED")

# With the connection as good as before: nothing but the answer is wrong.
_ANSWERS = {"NOSCRIPT", *_TOPOLOGY, *_NO_WRITES, *_REFUSALS}


class OutOfTurn(redis_errors.InvalidResponse):
    """An answer that cannot be one to what was asked."""


class RefusedByGuide(redis_errors.AuthenticationError):
    """Who was asked where the server is has refused us, and not the server."""


class Failed(Exception):
    """A command that came to nothing.

    Attributes:
        error: what redis-py or the socket raised. What a signal handler of the caller's raises
            never is one of these, and passes through as it is.
        code: of the server's answer, see :func:`code_of`.
        sent: whether the command may have been carried out.
    """

    def __init__(self, error: Exception, *, sent: bool) -> None:
        super().__init__(str(error))
        self.error = error
        self.code = code_of(error)
        self.sent = sent and not (self.code in _ANSWERS or self.code in _NOT_READY)


def code_of(error: BaseException) -> str:
    """The word with which Redis began its answer, such as ``WRONGTYPE``; "" if it gave none."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code
    if isinstance(error, redis_errors.ResponseError):
        text = str(error)
        for phrase, code in _PHRASES:
            if phrase in text:
                return code
        return text.partition(" ")[0]
    return ""


def is_answer(error: BaseException) -> bool:
    """Whether a server refused one command in words that are known, and will answer the next."""
    return code_of(error) in _ANSWERS and not is_from_handler(error)


def takes_no_writes(error: BaseException) -> bool:
    """Whether a server said that it takes no writes for now."""
    return code_of(error) in _NO_WRITES


def is_refusal(error: BaseException) -> bool:
    """Whether somebody said that we may not do what was asked, or not come in at all."""
    return code_of(error) in _REFUSALS


def callers_own(error: BaseException, before: BaseException | None) -> BaseException | None:
    """What a signal handler of the caller's raised in the middle of a call, if that is behind it.

    redis-py takes a handler's ``TimeoutError`` for the socket's, and raises its own.

    Args:
        before: what was being handled when the call began, and is older than it.
    """
    for cause in _causes(error):
        if cause is before:
            return None
        if is_from_handler(cause):
            return cause
    return None


def translate(error: BaseException, where: str, *, publishing: bool = False) -> SynmanagerError:
    """Return our error for one of redis-py's or of the socket's.

    What is not recognised is ``BrokerUnavailable``, and says what was answered.

    Args:
        where: the server, as ``host:port``.
        publishing: whether messages were being added; a server that cannot write refuses them.
            Everything else may be repeated until it can.
    """
    tls = _tls_refusal(error)
    if tls:
        return AccessRefused(f"no trust between us and {where}: {tls}")
    if isinstance(error, RefusedByGuide) and SENTINELS in where:  # a cluster's nodes have our user
        return AccessRefused(
            f"a Sentinel of {where} does not let us in: {error}; check sentinel_username= and "
            "sentinel_password= in the URL"
        )
    for answer, told in _NO_GUIDES.items():
        if answer in str(error).replace("`", "'"):
            return AccessRefused(f"what was asked about {where} {told} ({error})")
    code = code_of(error)
    if is_refusal(error):
        return AccessRefused(
            f"Redis at {where} does not let us in: {error}; check user, password and ACL"
        )
    if str(error).startswith(_NO_DATABASE):
        return AccessRefused(
            f"Redis at {where} has no such database: {error}; check the URL's path"
        )
    if code in _NO_WRITES:
        kind = PublishRefused if publishing else BrokerUnavailable
        return kind(f"Redis at {where} takes no writes: {_NO_WRITES[code]} ({error})")
    if code in _NOT_READY:
        return BrokerUnavailable(f"Redis at {where} is not ready: {_NOT_READY[code]} ({error})")
    if code == TOO_FEW_REPLICAS:
        found = str(error).partition(" ")[2]
        return BrokerUnavailable(f"what is written to Redis at {where} reaches only {found}")
    if code in _TOPOLOGY:
        return TopologyError(f"Redis at {where} answered: {error}")
    if isinstance(error, (redis_errors.ResponseError, redis_errors.InvalidResponse)):
        return BrokerUnavailable(f"what is at {where} gave an answer that is not known: {error}")
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

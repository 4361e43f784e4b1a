"""What pika raises and RabbitMQ answers, as this project's errors."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from pika import exceptions as pika_errors

from synmanager.errors import (
    AccessRefused,
    BrokerUnavailable,
    SynmanagerError,
    TopologyError,
)

__all__ = [
    "ACCESS_REFUSED",
    "NOT_FOUND",
    "PRECONDITION_FAILED",
    "TRANSLATED",
    "translate",
    "translated",
]

# AMQP's reply codes.
ACCESS_REFUSED = 403
NOT_FOUND = 404
PRECONDITION_FAILED = 406
_NOT_ALLOWED = 530

#: What the driver and its socket raise.
TRANSLATED = (pika_errors.AMQPError, OSError)

#: What RabbitMQ also answers with "not allowed", although it will pass.
_FOR_NOW = ("limit", "is down")

#: TLS errors of a connection that ended in the middle, as any may.
_CUT_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError)


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Raise our errors for pika's; ``where`` is the broker, as ``host:port``."""
    try:
        yield
    except SynmanagerError:
        raise
    except TRANSLATED as error:
        raise translate(error, where) from error


def translate(error: BaseException, where: str) -> SynmanagerError:
    """Return our error for one of pika's or of the socket's."""
    if isinstance(error, SynmanagerError):
        return error
    if isinstance(error, ssl.SSLCertVerificationError):
        return AccessRefused(
            f"no trust between us and {where}: its certificate is not valid here: "
            f"{error.verify_message}"
        )
    if isinstance(error, ssl.SSLError) and not isinstance(error, _CUT_OFF):
        return AccessRefused(f"TLS with {where} fails: {error}; does it speak TLS on this port?")
    if isinstance(error, pika_errors.ChannelClosedByBroker):
        kind = AccessRefused if error.reply_code == ACCESS_REFUSED else TopologyError
        return kind(f"RabbitMQ at {where}: {error.reply_text}")
    if isinstance(error, pika_errors.AuthenticationError) or _is_refusal(error):
        return AccessRefused(
            f"RabbitMQ at {where} does not let us in: {_in_words(error)}; "
            "check user, password, virtual host and permissions"
        )
    return BrokerUnavailable(
        f"no connection to RabbitMQ at {where}: {_in_words(error)}; "
        "is it running, and can it be reached?"
    )


def _in_words(error: BaseException) -> str:
    if isinstance(error, pika_errors.ConnectionClosed):
        return f"{error.reply_code} {error.reply_text}"
    return str(error) or type(error).__name__


def _is_refusal(error: BaseException) -> bool:
    if not isinstance(error, pika_errors.ConnectionClosedByBroker):
        return False
    if error.reply_code == _NOT_ALLOWED:
        return not any(words in error.reply_text for words in _FOR_NOW)
    return bool(error.reply_code == ACCESS_REFUSED)

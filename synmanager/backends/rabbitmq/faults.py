"""What pika raises and RabbitMQ answers, as this project's errors."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from pika import exceptions as pika_errors

from synmanager.errors import (
    AccessRefused,
    BrokerUnavailable,
    ConfigurationError,
    SynmanagerError,
    TopologyError,
)
from synmanager.interrupts import is_from_handler

__all__ = [
    "ACCESS_REFUSED",
    "NOT_FOUND",
    "PRECONDITION_FAILED",
    "TRANSLATED",
    "harms_the_connection",
    "is_interruption",
    "translate",
    "translated",
]

# AMQP's reply codes.
ACCESS_REFUSED = 403
NOT_FOUND = 404
_RESOURCE_LOCKED = 405
PRECONDITION_FAILED = 406
_NOT_ALLOWED = 530

#: What it says about a queue or an exchange, where others are about a connection's state.
_ABOUT_TOPOLOGY = (NOT_FOUND, _RESOURCE_LOCKED, PRECONDITION_FAILED)

#: What the driver and its socket raise.
TRANSLATED = (pika_errors.AMQPError, OSError)

_NOT_IMPLEMENTED = 540

#: What pika raises before it has sent anything.
_NOTHING_SENT = (pika_errors.ShortStringTooLong, UnicodeEncodeError, pika_errors.NoFreeChannels)

#: What RabbitMQ also answers with "not allowed", although it will pass.
_FOR_NOW = ("limit", "is down")

#: TLS errors of a connection that ended in the middle, as any may.
_CUT_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError)


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Raise our errors for pika's; ``where`` is the broker, as ``host:port``."""
    try:
        yield
    except Exception as error:
        if is_from_handler(error) or isinstance(error, SynmanagerError):
            raise
        raise translate(error, where) from error


def is_interruption(error: BaseException) -> bool:
    """Whether an error is no answer of the broker's: Ctrl-C, or what a caller's handler raises."""
    return not isinstance(error, Exception) or is_from_handler(error)


def harms_the_connection(error: BaseException, ours: SynmanagerError) -> bool:
    """Whether nobody knows what is still to come on a connection on which this was raised."""
    return isinstance(ours, BrokerUnavailable) and not isinstance(error, _NOTHING_SENT)


def translate(error: BaseException, where: str) -> SynmanagerError:
    """Return our error for one of pika's, of the socket's, or for one that nobody foresaw."""
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
        is_in_use = "exclusive use" in error.reply_text
        if error.reply_code == ACCESS_REFUSED and not is_in_use:
            return AccessRefused(f"RabbitMQ at {where}: {error.reply_text}")
        if error.reply_code in _ABOUT_TOPOLOGY or is_in_use:
            return TopologyError(f"RabbitMQ at {where}: {error.reply_text}")
        return BrokerUnavailable(f"RabbitMQ at {where} closed a channel: {_in_words(error)}")
    if _is_no_job_queue(error):
        return TopologyError(f"RabbitMQ at {where}: {_in_words(error)}")
    if isinstance(error, (pika_errors.ShortStringTooLong, UnicodeEncodeError)):
        return ConfigurationError(f"a name that RabbitMQ cannot have: {error!s:.300}")
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
    if isinstance(error, (pika_errors.ConnectionClosed, pika_errors.ChannelClosed)):
        return f"{error.reply_code} {error.reply_text}"
    if isinstance(error, pika_errors.InvalidFrameError):
        return f"what it answers is no AMQP ({error.args[0]!r:.200})"
    if isinstance(error, pika_errors.UnexpectedFrameError):
        return f"it answers out of turn ({error.args[0]!r:.200})"
    if isinstance(error, TRANSLATED):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"


def _is_no_job_queue(error: BaseException) -> bool:
    """Whether a stream was asked for a message, for which RabbitMQ ends the connection."""
    return (
        isinstance(error, pika_errors.ConnectionClosedByBroker)
        and error.reply_code == _NOT_IMPLEMENTED
    )


def _is_refusal(error: BaseException) -> bool:
    if isinstance(error, pika_errors.StreamLostError):
        return any(isinstance(each, ssl.SSLError) and _is_of_trust(each) for each in error.args)
    if not isinstance(error, pika_errors.ConnectionClosedByBroker):
        return False
    if error.reply_code == _NOT_ALLOWED:
        text = error.reply_text
        return "vhost" in text and not any(words in text for words in _FOR_NOW)
    return bool(error.reply_code == ACCESS_REFUSED)


def _is_of_trust(error: ssl.SSLError) -> bool:
    """Whether the broker says, once TLS 1.3 is set up, that it does not trust our certificate."""
    return "ALERT" in (error.reason or "") and any(
        word in (error.reason or "") for word in ("CERTIFICATE", "UNKNOWN_CA")
    )

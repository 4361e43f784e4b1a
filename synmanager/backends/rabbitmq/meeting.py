"""The first meeting with a log's stream, on a connection that may be lost.

While somebody makes a stream, RabbitMQ (3.10, 4.0) shows it to everybody, and ends the connection
of whoever reads it or writes to it, and with that the leases that are held there. One that knows no
streams may end the connection of whoever makes one. Who has met an earlier stream, which somebody
has deleted, does not come too early: the exchange leads to the new one once it has taken an entry.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import pika
from pika.exceptions import ChannelClosedByBroker, ConnectionClosedByBroker

from synmanager.backends.base import Address
from synmanager.backends.rabbitmq.faults import ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED
from synmanager.backends.rabbitmq.journal import EXCHANGE, Journal, stream
from synmanager.backends.rabbitmq.link import Link
from synmanager.backends.rabbitmq.nodes import place
from synmanager.errors import BrokerUnavailable, TopologyError, Unsupported

__all__ = ["first_look", "first_words"]

Result = TypeVar("Result")

#: How RabbitMQ ends the connection of who is too early: AMQP's resource error, and internal error.
_TOO_EARLY = (506, 541)

#: Seconds until the next try.
_PAUSE = 0.05

#: A stream lets go of whole segments, so it has some: bytes of one, at least and at most.
_SEGMENTS = 8
_SMALLEST_SEGMENT = 64 * 1024
_LARGEST_SEGMENT = 32 * 1024 * 1024


def first_words(
    parameters: pika.ConnectionParameters,
    address: Address,
    log: str,
    entries: Sequence[bytes],
    *,
    is_there: bool,
) -> None:
    """Append to a log in which nothing is known to be.

    Args:
        is_there: it has a stream. Who only writes need not have the right to make one.

    Raises:
        Unsupported: the broker makes no streams.
        AccessRefused: this user must not make one.
        TopologyError: somebody deletes it.
    """

    def write(link: Link) -> Sequence[bytes]:
        if not is_there:
            _make(link, place(parameters), address, log)
        left = Journal(link).append(log, entries, exchange="")
        if not left:  # so it is not too early
            _bind(link, log)
        return left

    if _try(write, parameters, address):
        raise TopologyError(f"the stream {stream(log)!r} went away while it was written to")


def first_look(parameters: pika.ConnectionParameters, address: Address, log: str) -> bool:
    """Wait until a log's stream can be read; False if there is none.

    Raises:
        AccessRefused: this user must not read it.
    """

    def read(link: Link) -> bool:
        journal = Journal(link)
        journal.meet(log, is_there=True)
        journal.read(log, 0.0, time.monotonic(), 1, is_waited_for=False)
        return bool(journal.is_met(log))

    return _try(read, parameters, address)


def _try(
    work: Callable[[Link], Result], parameters: pika.ConnectionParameters, address: Address
) -> Result:
    """Do something on a connection of its own, until it is not too early."""
    deadline = time.monotonic() + address.timeout
    while True:
        link = Link(parameters, place(parameters), address.timeout, address.heartbeat)
        link.open()
        try:
            return _on(link, work)
        except (BrokerUnavailable, TopologyError) as error:
            if not _is_too_early(error.__cause__) or time.monotonic() > deadline:
                raise
        finally:
            link.close()
        time.sleep(_PAUSE)


def _on(link: Link, work: Callable[[Link], Result]) -> Result:
    with link:
        return work(link)


def _is_too_early(error: BaseException | None) -> bool:
    if isinstance(error, ChannelClosedByBroker):
        return "replica on the local node" in error.reply_text
    return isinstance(error, ConnectionClosedByBroker) and error.reply_code in _TOO_EARLY


def _make(link: Link, where: str, address: Address, log: str) -> None:
    """Make a log's stream, or take what is there."""
    most = address.journal_bytes
    arguments = {
        "x-queue-type": "stream",
        "x-max-age": f"{max(math.ceil(address.journal_age), 1)}s",
        "x-max-length-bytes": most,
        "x-stream-max-segment-size-bytes": min(
            max(most // _SEGMENTS, _SMALLEST_SEGMENT), _LARGEST_SEGMENT
        ),
    }
    try:
        with link.lane() as lane:
            lane.call("queue_declare", stream(log), durable=True, arguments=arguments)
    except (ConnectionClosedByBroker, ChannelClosedByBroker) as error:
        is_refused = isinstance(error, ChannelClosedByBroker)
        if is_refused and error.reply_code != PRECONDITION_FAILED:
            raise
        if not (is_refused and "inequivalent" in error.reply_text):
            raise Unsupported(
                f"RabbitMQ at {where} makes no stream for the journal: {error}"
            ) from error


def _bind(link: Link, log: str) -> None:
    """Lead entries to a log's stream. Who may not waits here each time, until somebody else has."""
    try:
        with link.lane() as lane:
            lane.call("exchange_declare", EXCHANGE, "direct", durable=True)
            lane.call("queue_bind", stream(log), EXCHANGE, stream(log))
    except ChannelClosedByBroker as error:
        if error.reply_code not in (ACCESS_REFUSED, NOT_FOUND):
            raise

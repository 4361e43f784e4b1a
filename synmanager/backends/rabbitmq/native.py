"""Connections of pika's blocking kind, for callers that publish and consume by themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from threading import get_ident
from typing import Any

import pika

from synmanager.backends.rabbitmq.lane import Arrival, Lane
from synmanager.interrupts import is_from_handler
from synmanager.sockets import stdio_taken

__all__ = ["Native", "NativeLane"]


def blocking_connection(parameters: pika.ConnectionParameters, timeout: float) -> Any:
    """Connect as 0.1.0 did, for callers whose callbacks block the connection's thread.

    So its heartbeat is off; TCP's own probes find out about a dead peer.
    """
    own = copy.copy(parameters)
    own.heartbeat = 0
    own.socket_timeout = own.stack_timeout = own.blocked_connection_timeout = timeout
    own.tcp_options = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
    with stdio_taken():
        return pika.BlockingConnection(own)


class Native:
    """A connection that its callers use by themselves, in the thread that made it."""

    def __init__(self, parameters: pika.ConnectionParameters, timeout: float) -> None:
        self.connection = blocking_connection(parameters, timeout)
        self._thread = get_ident()
        self._channels: list[Any] = []

    @property
    def is_open(self) -> bool:
        return bool(self.connection.is_open)

    @property
    def is_mine(self) -> bool:
        """Whether the calling thread is the one that may use it."""
        return self._thread == get_ident()

    def open_channel(self) -> Any:
        self._channels = [each for each in self._channels if each.is_open]
        self._channels.append(self.connection.channel())
        return self._channels[-1]

    def synchronise(self, queues: Iterable[str]) -> None:
        """Return when what was published before is in these queues, which have to exist.

        The broker answers a channel's question after all that came before it on that channel.
        """
        for channel, queue in product(self._channels, queues):
            if channel.is_open:
                _try(partial(channel.queue_declare, queue, passive=True))

    def close(self) -> None:
        if self.is_open:
            _try(self.connection.close)


def _try(call: Callable[[], object]) -> None:
    """Do something with what is the caller's, who may have broken it, and will notice."""
    try:
        call()
    except Exception as error:
        if is_from_handler(error):
            raise


class NativeLane(Lane):
    """A caller's own channel, in the place of a lane: it settles, and no more."""

    is_reusable = False
    is_stopping = False

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    @property
    def is_lost(self) -> bool:
        return not self._channel.is_open

    def holds(self, tag: int) -> bool:
        return False  # it is for its owner to settle, who has the channel's number for it

    def close(self) -> None:
        if self._channel.is_open:  # pika's blocking channels know no other state
            self._channel.close()

    def stop_listening(self) -> list[Arrival]:
        return []  # the consumer is its owner's

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        self._channel.basic_ack(tag, multiple)

    def arrival(self, queue: str, method: Any, properties: Any, body: bytes) -> Arrival:
        return Arrival(self, method.delivery_tag, queue, method.redelivered, properties, body)

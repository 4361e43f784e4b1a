"""Connections of pika's blocking kind, for callers that publish and consume by themselves."""

from __future__ import annotations

import copy
from typing import Any

import pika

from synmanager.backends.rabbitmq.lane import Arrival, Lane

__all__ = ["NativeLane", "blocking_connection"]


def blocking_connection(parameters: pika.ConnectionParameters, timeout: float) -> Any:
    """Connect as 0.1.0 did, for callers whose callbacks block the connection's thread.

    So its heartbeat is off; TCP's own probes find out about a dead peer.
    """
    own = copy.copy(parameters)
    own.heartbeat = 0
    own.socket_timeout = own.stack_timeout = own.blocked_connection_timeout = timeout
    own.tcp_options = {"TCP_KEEPIDLE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
    return pika.BlockingConnection(own)


class NativeLane(Lane):
    """A caller's own channel, in the place of a lane: it settles, and no more."""

    is_reusable = False
    is_stopping = False

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    @property
    def is_lost(self) -> bool:
        return not self._channel.is_open

    def close(self) -> None:
        if self._channel.is_open:  # pika's blocking channels know no other state
            self._channel.close()

    def stop_listening(self) -> list[Arrival]:
        return []  # the consumer is its owner's

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        self._channel.basic_ack(tag, multiple)

    def arrival(self, queue: str, method: Any, properties: Any, body: bytes) -> Arrival:
        return Arrival(self, method.delivery_tag, queue, method.redelivered, properties, body)

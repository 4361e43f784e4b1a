"""Waiting until replicas have what was written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis import exceptions as redis_errors

from synmanager.backends.redis.checks import facts_of
from synmanager.backends.redis.faults import TOO_FEW_REPLICAS, Failed
from synmanager.backends.redis.shapes import Fits, each, whole

__all__ = ["Replicas", "replicas_at"]


class Replicas:
    """A command to send behind another one, and what its answer means.

    Args:
        command: such as ``WAIT 1 5000``.
        fits: tells what an answer looks like.
        number: how many replicas there must be.
    """

    def __init__(self, command: tuple[str | int, ...], fits: Fits, number: int) -> None:
        self.command = command
        self.fits = fits
        self._number = number

    def check(self, reply: Any) -> None:
        """Look at an answer of the right shape.

        Raises:
            redis_errors.ResponseError: too few have it. The server itself does.
        """
        found = reply if whole(reply) else reply[1]
        if found < self._number:
            raise redis_errors.ResponseError(
                f"{TOO_FEW_REPLICAS} {found} of the {self._number} replicas that replicas= asks for"
            )


def replicas_at(call: Callable[..., Any], number: int, seconds: float) -> Replicas:
    """The strictest way to wait that a server and its replicas know.

    Args:
        call: sends one command, see ``Connections.call``.
        number: how many replicas, at least one.
        seconds: after which there are too few.

    Raises:
        Failed: there are too few of them at present, or no answer.
    """
    limit = int(seconds * 1000)
    memory = Replicas(("WAIT", number, limit), whole, number)
    disk = Replicas(("WAITAOF", 1, number, limit), each(whole, whole), number)
    settings = facts_of(call).settings
    # With another appendfsync it would wait for a second, each time.
    if (settings.get("appendonly"), settings.get("appendfsync")) == ("yes", "always"):
        try:
            _try(call, disk)
        except Failed as failed:
            if not failed.code:
                raise
            # It is older than 7.2, or a replica writes no such file.
        else:
            return disk
    _try(call, memory)
    return memory


def _try(call: Callable[..., Any], replicas: Replicas) -> None:
    reply = call(*replicas.command, fits=replicas.fits)
    try:
        replicas.check(reply)
    except redis_errors.ResponseError as error:
        raise Failed(error, sent=False) from error

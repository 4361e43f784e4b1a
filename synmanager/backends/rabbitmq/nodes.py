"""The nodes of a cluster, and which of them to try next."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import pika

from synmanager.backends.urls import spread, written_hosts
from synmanager.errors import AccessRefused, BrokerUnavailable, SynmanagerError

__all__ = ["Nodes", "place"]


def place(parameters: pika.ConnectionParameters) -> str:
    """A node, as errors name it."""
    return written_hosts([(parameters.host, parameters.port)])


class Nodes:
    """The hosts of one broker, tried one after the other until one lets us in.

    Args:
        parameters: one for each.

    Attributes:
        where: all of them, as errors name them.
        are_several: whether it is a cluster.
        current: the one that was connected to last.
    """

    def __init__(self, parameters: Sequence[pika.ConnectionParameters]) -> None:
        self._all = {(each.host, each.port): each for each in parameters}
        self.where = ", ".join(map(place, self._all.values()))
        self.are_several = len(self._all) > 1
        self.current = parameters[0]
        self._avoided: set[tuple[str, int | None]] = set()

    def avoid(self) -> None:
        """Try the current one last the next time: its connection was lost."""
        self._avoided = {(self.current.host, self.current.port)}

    def connect(
        self, seconds: float, attempt: Callable[[pika.ConnectionParameters, float], None]
    ) -> None:
        """Connect to one of them.

        Those that failed of late come last. Until then the order is another one each time, which
        spreads the clients over the nodes.

        Args:
            seconds: for all; each has an equal part of what is left, so that one that is frozen
                does not use it up.
            attempt: connects to one, in so many seconds.

        Raises:
            AccessRefused: none lets us in, and at least one has said so.
            BrokerUnavailable: none answers.
        """
        deadline = time.monotonic() + seconds
        order = sorted(spread(self._all), key=self._avoided.__contains__)
        failures: list[SynmanagerError] = []
        for number, node in enumerate(order):
            left = max(deadline - time.monotonic(), 0.0) / (len(order) - number)
            self.current = self._all[node]
            try:
                attempt(self.current, left)
            except (AccessRefused, BrokerUnavailable) as error:
                failures.append(error)
                self._avoided.add(node)
            else:
                self._avoided.discard(node)
                return
        if len(failures) == 1:
            raise failures[0]
        refused = [error for error in failures if isinstance(error, AccessRefused)]
        kind = AccessRefused if refused else BrokerUnavailable
        words = "; ".join(dict.fromkeys(map(str, refused or failures)))
        raise kind(f"no node of RabbitMQ at {self.where} lets us in: {words}") from failures[-1]

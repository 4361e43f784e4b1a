"""A queue for each rank behind one name, where quorum queues cannot rank: before RabbitMQ 4.3.

::

    SynMQ_topic_logs.high ──▶ train.high
      ╎ (where that is not)
    SynMQ_topic_logs      ──▶ train
      ╎
    SynMQ_topic_logs.low  ──▶ train.low

The queue that has the name takes the jobs of normal rank, so that those who know no ranks, such as
0.1.0, meet theirs in it. Its sisters are fed by exchanges of their own, whose alternate is the
first: where somebody has made no sisters, all jobs are in the one queue. Dead letters are in one
queue for all. Whoever does not know of a sister never looks into it, so what applies to one
connection is found out there, see :class:`~synmanager.backends.rabbitmq.topology.Topology`.

A fanout's queues have no sisters: each subscriber of another program would miss some results.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from synmanager.backends.base import QueueSpec
from synmanager.message import Rank

__all__ = ["Ranks", "Sister", "sister_name", "sisters"]

#: In the order in which they are received, and published: what ranks higher is there first.
_SUFFIXES = {Rank.HIGH: ".high", Rank.NORMAL: "", Rank.LOW: ".low"}


@dataclass(frozen=True)
class Sister(QueueSpec):
    """A queue for one rank of another's jobs."""


def sister_name(name: str, rank: Rank) -> str:
    """Where jobs of a rank are, or to which exchange they go."""
    return name + _SUFFIXES[rank]


def sisters(spec: QueueSpec) -> list[Sister]:
    """The queues beside one, each with the exchange that feeds it."""
    return [
        Sister(
            sister_name(spec.name, rank),
            replace(spec.exchange, name=sister_name(spec.exchange.name, rank)),
            spec.routing_key,
            spec.durable,
        )
        for rank, suffix in _SUFFIXES.items()
        if suffix
    ]


class Ranks:
    """Which queues and exchanges have sisters, as far as one connection knows."""

    def __init__(self) -> None:
        #: Whether they have. Of those that are not in it, nobody has asked yet.
        self.queues: dict[str, bool] = {}
        self.exchanges: dict[str, bool] = {}
        #: Queues of a fanout, which has no sisters, by whatever other route they are reached too.
        self.flat: set[str] = set()
        self._names: dict[str, str] = {}

    def note(self, queue: str, *, has_sisters: bool) -> None:
        self.queues[queue] = has_sisters
        if has_sisters:
            self._names.update(dict.fromkeys(self.family(queue), queue))

    def forget(self) -> None:
        """Ask again. What has come from a queue is still its family's."""
        self.queues.clear()
        self.exchanges.clear()

    def name(self, queue: str) -> str:
        """The name of the family of a queue."""
        return self._names.get(queue, queue)

    def family(self, queue: str) -> list[str]:
        """All queues behind a name, highest rank first."""
        if not self.queues.get(queue):
            return [queue]
        return [sister_name(queue, rank) for rank in _SUFFIXES]

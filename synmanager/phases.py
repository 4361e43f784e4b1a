"""The four phases of a federated cycle, and where each lives on the broker."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from synmanager import config
from synmanager.backends.base import ExchangeSpec, QueueSpec

__all__ = [
    "COMPLETED",
    "EVALUATE",
    "PHASES",
    "PREPROCESS",
    "TRAIN",
    "WORK_PHASES",
    "Phase",
    "WorkPhase",
    "with_phases",
]

#: The phases that carry work, by name.
WorkPhase: TypeAlias = Literal["preprocess", "train", "evaluate"]

#: The same, highest rank first.
WORK_PHASES: tuple[WorkPhase, ...] = ("preprocess", "train", "evaluate")


@dataclass(frozen=True)
class Phase:
    """A name, and the queue, exchange and routing key that carry its jobs."""

    name: str
    queue: str
    exchange: ExchangeSpec
    routing_key: str

    @property
    def spec(self) -> QueueSpec:
        return QueueSpec(self.queue, self.exchange, self.routing_key)


_TOPIC = ExchangeSpec(config.EXCHANGE_NAME, config.EXCHANGE_TYPE)
_FANOUT = ExchangeSpec(config.COMPLETED_EXCHANGE_NAME, config.COMPLETED_EXCHANGE_TYPE)

PREPROCESS = Phase("preprocess", config.PREPROCESS_QUEUE, _TOPIC, config.PREPROCESS_ROUTING_KEY)
TRAIN = Phase("train", config.TRAIN_QUEUE, _TOPIC, config.TRAIN_ROUTING_KEY)
EVALUATE = Phase("evaluate", config.EVALUATE_QUEUE, _TOPIC, config.EVALUATE_ROUTING_KEY)
COMPLETED = Phase("completed", config.COMPLETED_QUEUE, _FANOUT, config.COMPLETED_ROUTING_KEY)

#: By name, highest rank first.
PHASES = {phase.name: phase for phase in (PREPROCESS, TRAIN, EVALUATE, COMPLETED)}


def with_phases(known: Iterable[str] | None) -> list[str]:
    """The names of all queues: the phases' by rank, then the others that a broker lists."""
    names = [phase.queue for phase in PHASES.values()]
    return names + sorted(name for name in known or () if name not in names)

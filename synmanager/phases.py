"""The four phases of a federated cycle, and where each lives on the broker."""

from __future__ import annotations

from dataclasses import dataclass

from synmanager import config
from synmanager.backends.base import ExchangeSpec, QueueSpec

__all__ = ["COMPLETED", "EVALUATE", "PHASES", "PREPROCESS", "TRAIN", "Phase"]


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

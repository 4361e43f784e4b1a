"""synmanager's Worker over three phases, with the jobs spread evenly over them."""

from __future__ import annotations

from typing import Any

from benchmarks.job import JOB
from benchmarks.peers.filling import BROKER
from benchmarks.peers.stopwatch import tick
from synmanager import Worker
from synmanager.base import ProducerOperator
from synmanager.evaluate import EvaluateProducerOperator
from synmanager.preprocess import PreprocessProducerOperator
from synmanager.train import TrainProducerOperator

PRODUCERS: tuple[type[ProducerOperator], ...] = (
    PreprocessProducerOperator,
    TrainProducerOperator,
    EvaluateProducerOperator,
)


SETTINGS = {"everything": "as it comes"}


def handle(**kwargs: Any) -> None:
    tick()


def submit(count: int) -> None:
    for number, producer_class in enumerate(PRODUCERS):
        with producer_class(url=BROKER) as producer:
            producer.submit_many([JOB] * ((count + number) // len(PRODUCERS)))


if __name__ == "__main__":
    Worker({"preprocess": handle, "train": handle, "evaluate": handle}, url=BROKER).run()

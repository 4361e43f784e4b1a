"""synmanager's side: one phase's producer and consumer on one broker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter
from types import TracebackType
from typing import Any

from benchmarks.job import JOB
from synmanager.base import ConsumerOperator, ProducerOperator
from synmanager.preprocess import PreprocessConsumerOperator, PreprocessProducerOperator
from synmanager.train import TrainConsumerOperator, TrainProducerOperator

__all__ = ["Ours"]

#: How many jobs are submitted at once when a queue is filled.
_BATCH = 10_000

_OPERATORS: dict[str, tuple[type[ProducerOperator], type[ConsumerOperator]]] = {
    "preprocess": (PreprocessProducerOperator, PreprocessConsumerOperator),
    "train": (TrainProducerOperator, TrainConsumerOperator),
}


def _nothing(kwargs: Mapping[str, Any], host: str) -> None:
    pass


def _busy(seconds: float) -> Callable[[Mapping[str, Any], str], None]:
    """A handler that uses the processor for so long."""

    def work(kwargs: Mapping[str, Any], host: str) -> None:
        end = perf_counter() + seconds
        while perf_counter() < end:
            pass

    return work


class Ours:
    """A phase's queue; a context manager that leaves it empty.

    The methods that measure return jobs per second.
    """

    def __init__(self, url: str, phase: str = "preprocess", job: Mapping[str, Any] = JOB) -> None:
        producer, consumer = _OPERATORS[phase]
        self._producer = producer(url=url)
        self._consumer = consumer(url=url)
        self._job = job

    def __enter__(self) -> Ours:
        self._producer.connect()
        self._consumer.connect()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._consumer.purge()
        self._producer.disconnect()
        self._consumer.disconnect()

    def process(self, count: int) -> float:
        """``process()`` one by one."""
        began = perf_counter()
        for _ in range(count):
            self._producer.process(**self._job)
        rate = count / (perf_counter() - began)
        self._consumer.purge()
        return rate

    def submit_many(self, count: int) -> float:
        jobs = [self._job] * count
        began = perf_counter()
        self._producer.submit_many(jobs)
        rate = count / (perf_counter() - began)
        self._consumer.purge()
        return rate

    def listen(self, count: int) -> float:
        """``listen_message`` with an empty callback, over a queue that holds the jobs already."""
        self.fill(count)
        return self.drain(count)

    def process_and_listen(self, count: int, work: float = 0.0) -> float:
        """Submit all, then consume all; the rate counts a job once.

        Args:
            work: seconds that each job takes.
        """
        callback = _busy(work) if work else _nothing
        began = perf_counter()
        for _ in range(count):
            self._producer.process(**self._job)
        self._consumer.listen_message(process_callback=callback, max_jobs=count)
        return count / (perf_counter() - began)

    def fill(self, count: int) -> float:
        began = perf_counter()
        for start in range(0, count, _BATCH):
            self._producer.submit_many([self._job] * min(_BATCH, count - start))
        return count / (perf_counter() - began)

    def drain(self, count: int) -> float:
        began = perf_counter()
        self._consumer.listen_message(process_callback=_nothing, max_jobs=count)
        return count / (perf_counter() - began)

    def depth(self) -> int:
        return self._consumer.check_message_count()

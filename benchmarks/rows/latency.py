"""How soon an idle Worker starts a job."""

from __future__ import annotations

import json
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any

from benchmarks.bench import Bench, Row
from benchmarks.job import JOB
from benchmarks.method import Goal, Result, Samples
from benchmarks.programs.processes import Program
from synmanager import Worker
from synmanager.base import ProducerOperator
from synmanager.evaluate import EvaluateProducerOperator
from synmanager.preprocess import PreprocessProducerOperator
from synmanager.train import TrainProducerOperator

#: Seconds between two jobs: long enough for the worker to be idle again, and never in step with
#: anything that happens at a fixed interval.
_PAUSE = (0.01, 0.03)

_WORK = "idle Worker: submit to handler start"


def _sample(producer: ProducerOperator, hear: Callable[[], float], count: int) -> list[float]:
    """Submit a job, wait until its handler has said how long it took, pause; in milliseconds."""
    latencies = []
    for _ in range(count):
        time.sleep(random.uniform(*_PAUSE))
        producer.submit({**JOB, "sent": perf_counter()})
        latencies.append(hear() * 1000)
    return latencies


def _results(
    title: str, samples: list[float], median: float, tail: float | None, setting: str
) -> Iterator[Result]:
    work = f"{_WORK}, {title}"
    limit = None if tail is None else Goal("<", tail, "ms")
    yield Samples(work, "median", "ms", samples, 0.5, Goal("<", median, "ms"), [setting])
    yield Samples(work, "99th percentile", "ms", samples, 0.99, limit, [setting])


def _broker(scheme: str, bench: Bench) -> Iterator[Result]:
    url = bench.brokers.amqp if scheme == "amqp" else bench.brokers.redis
    warm_up = 20
    with Program("echo", url) as worker, TrainProducerOperator(url=url) as producer:
        samples = _sample(producer, worker.hear, bench.count(1_000) + warm_up)[warm_up:]
    title = "RabbitMQ" if scheme == "amqp" else "Redis"
    setting = "Worker and producer are two processes; the clock starts before submit()"
    yield from _results(title, samples, 2, 10, setting)


def _memory(bench: Bench) -> Iterator[Result]:
    url = "memory:///latency"
    heard: queue.SimpleQueue[float] = queue.SimpleQueue()

    def handle(sent: float, **kwargs: Any) -> None:
        heard.put(perf_counter() - sent)

    worker = Worker({"preprocess": handle, "train": handle, "evaluate": handle}, url=url)
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        with TrainProducerOperator(url=url) as producer:
            samples = _sample(producer, heard.get, bench.count(1_000))
    finally:
        worker.stop()
        thread.join()
    setting = "Worker and producer are two threads; the clock starts before submit()"
    yield from _results("memory", samples, 0.2, None, setting)
    floor = _hand_over(bench.count(500))
    setting = "two threads, json.dumps, queue.SimpleQueue, json.loads, and nothing else"
    yield Samples(
        "two threads with a queue", "median, the floor", "ms", floor, 0.5, None, [setting]
    )


def _hand_over(count: int) -> list[float]:
    """What the least that there is takes to move such a job from a thread to one that waits."""
    jobs: queue.SimpleQueue[str] = queue.SimpleQueue()
    heard: queue.SimpleQueue[float] = queue.SimpleQueue()

    def wait() -> None:
        for _ in range(count):
            sent = json.loads(jobs.get())["sent"]
            heard.put(perf_counter() - sent)

    thread = threading.Thread(target=wait)
    thread.start()
    samples = []
    for _ in range(count):
        time.sleep(random.uniform(*_PAUSE))
        jobs.put(json.dumps({**JOB, "sent": perf_counter()}, default=str, sort_keys=True))
        samples.append(heard.get() * 1000)
    thread.join()
    return samples


def _loop(bench: Bench) -> Iterator[Result]:
    """The same for 0.1.0's loop: a few jobs, submitted at any moment of its five seconds."""
    url = bench.brokers.amqp
    for producer_class in (PreprocessProducerOperator, EvaluateProducerOperator):
        with producer_class(url=url):
            pass  # its queue exists now
    samples = []
    with TrainProducerOperator(url=url) as producer, Program("echo_0_1_0", url) as worker:
        for _ in range(2 if bench.quick else 10):
            time.sleep(random.uniform(0, 5))
            producer.submit({**JOB, "sent": perf_counter()})
            samples.append(worker.hear() * 1000)
    setting = "three pika.BlockingConnections, a passive declare on each, basic_get, sleep(5)"
    work = "idle loop of 0.1.0: submit to handler start, RabbitMQ"
    yield Samples(work, "median, for comparison", "ms", samples, 0.5, None, [setting])


ROWS = (
    Row(
        "rabbitmq-latency",
        "how soon an idle Worker starts a job, RabbitMQ",
        partial(_broker, "amqp"),
    ),
    Row("redis-latency", "how soon an idle Worker starts a job, Redis", partial(_broker, "redis")),
    Row("memory-latency", "how soon an idle Worker starts a job, memory", _memory),
    Row("rabbitmq-latency-0.1.0", "how soon 0.1.0's loop starts a job", _loop),
)

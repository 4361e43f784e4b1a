"""A TTP: runs jobs, notes each, and dies where it is told to.

Config:
    phases: what it takes from; by default ["train"].
    listen: use a consumer operator's ``listen_message`` instead of a Worker.
    results: return a result from each job (a Worker publishes it).
    die: {"at": "received" | "before" | "in" | "after" | "result" | "acked", "key": ...}
    burst, max_jobs, idle_timeout: as for ``run``.

A job is {"key": ..., "work": seconds, "act": what to do}; see ``act``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from program import begin, die, run_noted

from synmanager import Reject, Retry, Worker, current_job
from synmanager.backends.base import Delivery, QueueBackend
from synmanager.backends.registry import create_backend
from synmanager.engine.shutdown import Shutdown
from synmanager.errors import LeaseLost
from synmanager.evaluate import EvaluateConsumerOperator
from synmanager.preprocess import PreprocessConsumerOperator
from synmanager.settings import load_settings
from synmanager.train import TrainConsumerOperator

CONSUMERS = {
    "preprocess": PreprocessConsumerOperator,
    "train": TrainConsumerOperator,
    "evaluate": EvaluateConsumerOperator,
}

config, journal = begin()
doom = config.get("die", {"at": None, "key": None})


def handle(**job: Any) -> dict[str, Any] | None:
    key = str(job.get("key"))
    if doom["at"] == "before" and key == doom["key"]:
        die(journal)
    noted = run_noted(journal, key)
    try:
        act(job.get("act"))
        work(float(job.get("work", 0)), dies=doom["at"] == "in" and key == doom["key"])
    except BaseException as error:
        journal.write("failed", error=type(error).__name__, **noted)
        raise
    running = current_job()
    assert running is not None
    journal.write("finished", lease_lost=running.lease_lost, **noted)
    if doom["at"] == "after" and key == doom["key"]:
        die(journal)
    return {"key": key, "by": config["who"]} if config.get("results", True) else None


def act(name: str | None) -> None:
    if name == "exit":
        journal.write("killed", victim=os.getpid())
        os._exit(3)
    elif name == "oom":  # what the kernel does to a process that takes too much memory
        die(journal)
    elif name == "raise":
        raise ValueError("this job always fails")
    elif name == "retry":
        raise Retry("not now", delay=0.1)
    elif name == "reject":
        raise Reject("never")


def work(seconds: float, dies: bool) -> None:
    # Not time.sleep(), which fails where libfaketime moves the clock.
    never = threading.Event()
    if dies:
        never.wait(seconds / 2)
        die(journal)
    never.wait(seconds)


def doom_backend(kind: type[QueueBackend]) -> None:
    """Die between the library's own steps, where no callback can."""
    await_job, ack = kind.await_job, kind.ack
    noted: set[Delivery] = set()  # some backends receive by way of their own ack

    def received(
        self: QueueBackend,
        queues: Sequence[str],
        wait: float,
        done: Delivery | None = None,
        *,
        called_off: Callable[[], bool],
    ) -> Delivery | None:
        if done is None or done.settled:
            delivery = await_job(self, queues, wait, called_off=called_off)
        else:
            with settling(done):
                delivery = await_job(self, queues, wait, done, called_off=called_off)
        if delivery is not None and doom["at"] == "received" and is_doomed(delivery):
            die(journal)
        return delivery

    def acked(self: QueueBackend, delivery: Delivery) -> None:
        with settling(delivery):
            ack(self, delivery)

    @contextmanager
    def settling(delivery: Delivery) -> Iterator[None]:
        if doom["at"] == "result" and is_doomed(delivery):  # published, not acknowledged
            die(journal)
        try:
            yield
        except LeaseLost:
            journal.write("ack-refused", job_id=delivery.message.id)
            raise
        finally:  # also where what came after it failed, such as the wait for the next job
            if delivery.settled and delivery not in noted:
                noted.add(delivery)
                journal.write("acked", job_id=delivery.message.id)
        if doom["at"] == "acked" and is_doomed(delivery):
            die(journal)

    def is_doomed(delivery: Delivery) -> bool:
        return f'"key": "{doom["key"]}"'.encode() in delivery.message.body

    kind.await_job, kind.ack = received, acked  # type: ignore[method-assign]


def note_requests() -> None:
    """Tell when a signal, or ``stop()``, has been heard."""
    request = Shutdown.request

    def requested(self: Shutdown) -> None:
        request(self)
        journal.write("asked to leave")

    Shutdown.request = requested  # type: ignore[method-assign]


doom_backend(type(create_backend(load_settings().address)))
note_requests()
phases = config.get("phases", ["train"])
limits = {name: config[name] for name in ("max_jobs", "idle_timeout") if name in config}
journal.write("ready")
if config.get("listen"):
    with CONSUMERS[phases[0]]() as consumer:
        count = consumer.listen_message(handle, **limits)
else:
    worker = Worker(dict.fromkeys(phases, handle))
    count = worker.run(burst=config.get("burst", False), **limits)
journal.write("left", jobs=count)

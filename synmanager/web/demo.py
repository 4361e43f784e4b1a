"""A grid that is busy, in this process's memory, for who wants to look first."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from synmanager.archiver import Archiver
from synmanager.engine.service import Service
from synmanager.errors import Reject
from synmanager.evaluate import EvaluateProducerOperator
from synmanager.job import Job, current_job
from synmanager.message import new_id
from synmanager.phases import WorkPhase
from synmanager.preprocess import PreprocessProducerOperator
from synmanager.settings import switch_on_journal
from synmanager.train import TrainProducerOperator
from synmanager.worker import Worker

__all__ = ["DemoGrid"]

#: What the workers pretend to be.
_SITES = ({"site-a", "gpu"}, {"site-b", "gpu"}, {"site-c"})

#: Jobs of a sweep, and those among them that no site can run.
_JOBS, _POISON = 200, (4, 11, 17)

#: Epochs of those that fail at first.
_UNLUCKY = 14

#: Seconds of a step of a job, at a pace of 1, and between two alignments.
_STEP, _BETWEEN = 0.4, 20.0


class DemoGrid:
    """A Director with a sweep, three TTPs and an archive, in threads, for a ``with`` block.

    Args:
        pace: how fast time passes for its jobs.

    Attributes:
        url: of its broker.
    """

    def __init__(self, pace: float = 1.0) -> None:
        self.url = f"memory:///demo-{new_id()[:8]}"
        self._step = _STEP / pace
        self._ending = threading.Event()
        self._random = random.Random(7)
        switch_on_journal()
        work: dict[WorkPhase, Callable[..., Any]] = {
            "preprocess": self._align,
            "train": self._train,
            "evaluate": self._evaluate,
        }
        self._services: list[Service] = [Worker(work, url=self.url, tags=tags) for tags in _SITES]
        self._services.append(Archiver(self._archive, url=self.url))
        self._evaluations = EvaluateProducerOperator(url=self.url)
        self._threads = [
            threading.Thread(target=self._direct, daemon=True),
            *(threading.Thread(target=service.run, daemon=True) for service in self._services),
        ]

    def __enter__(self) -> DemoGrid:
        self._evaluations.connect()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ending.set()
        for service in self._services:
            service.stop()
        for thread in self._threads:
            thread.join(timeout=10)
        self._evaluations.disconnect()

    def _direct(self) -> None:
        """The Director: a sweep, and an alignment now and then."""
        with (
            TrainProducerOperator(url=self.url) as trains,
            PreprocessProducerOperator(url=self.url) as aligns,
        ):
            trains.submit({"model": "baseline", "lr": 0.1, "epochs": 30}, priority="high")
            trains.submit({"model": "ensemble", "lr": 0.01, "epochs": 60}, delay=3600.0)
            with trains.sweep(map(_job, range(_JOBS)), name=f"lr-search-{new_id()[:4]}"):
                number = 0
                while not self._ending.wait(_BETWEEN * self._step / _STEP if number else 0):
                    number += 1
                    aligns.submit({"project": "p1", "round": number}, job_id=f"align-{number}")

    def _align(self, project: str, round: int) -> dict[str, Any]:
        self._go(8, "matching ids", lambda step: {"matched": 1200 * step})
        return {"project": project, "round": round}

    def _train(
        self, model: str, lr: float, epochs: int, registry: dict[str, str] | None = None
    ) -> dict[str, Any]:
        if model == "corrupt":
            raise Reject("cannot load the weights: checkpoint is truncated at byte 4,194,304")
        job = current_job()
        if epochs == _UNLUCKY and job is not None and job.attempt == 1:
            raise ConnectionError("the parameter server hung up")
        best = 0.2 + abs(lr - 0.03) * 4 + self._random.random() * 0.05

        def figures(step: int) -> dict[str, float]:
            loss = best + 2.0 / step
            return {"loss": round(loss, 4), "accuracy": round(max(0.0, 1 - loss / 3), 4)}

        self._go(epochs, "epoch", figures)
        return {"model": model, "lr": lr, **figures(epochs)}

    def _evaluate(self, model: str, lr: float) -> dict[str, Any]:
        if model == "baseline":
            raise Reject("there is no holdout set for baseline")
        self._go(5, "scoring", lambda step: {"auc": round(0.7 + 0.02 * step, 3)})
        return {"model": model, "lr": lr}

    def _archive(self, kwargs: dict[str, Any], host: str) -> None:
        """The Director's side: every fourth model is evaluated."""
        if "loss" in kwargs and (self._random.random() < 0.25 or kwargs["model"] == "baseline"):
            self._evaluations.submit({"model": kwargs["model"], "lr": kwargs["lr"]})

    def _go(self, steps: int, text: str, figures: Any) -> None:
        job: Job | None = current_job()
        assert job is not None
        for step in range(1, steps + 1):
            end = time.monotonic() + self._step * self._random.uniform(0.6, 1.4)
            while time.monotonic() < end:
                if self._ending.wait(0.05):
                    return
            job.progress(step, total=steps, text=f"{text} {step}", **figures(step))


def _job(number: int) -> dict[str, Any]:
    """A job of the sweep; what some of them carry, no site can load."""
    return {
        "model": "corrupt" if number in _POISON else f"resnet-{18 + number % 3 * 16}",
        "lr": round(0.001 * 1.03**number, 5),
        "epochs": 8 + number % 13,
        "registry": {"url": "https://models.example", "api_token": f"demo-{number}"},
    }

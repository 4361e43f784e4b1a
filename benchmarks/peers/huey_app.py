"""Huey, one worker thread. It removes a job before it runs it: there is no at-least-once."""

from __future__ import annotations

from typing import Any

from huey import RedisHuey

from benchmarks.job import JOB
from benchmarks.peers.filling import BROKER
from benchmarks.peers.stopwatch import tick

SETTINGS = {"results": False, "blocking": True}

huey = RedisHuey("benchmark", url=BROKER, **SETTINGS)


@huey.task()
def job(**kwargs: Any) -> None:
    tick()


def submit(count: int) -> None:
    for _ in range(count):
        job(**JOB)

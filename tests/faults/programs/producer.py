"""A Director's submitting side: notes every job that it offers, and every one confirmed.

Config:
    phase: by default "train".
    keys: [first, last) of the jobs' numbers; a job's key is "<prefix>-<number>".
    prefix: by default the producer's name.
    batch: jobs per ``submit_many``; 1 (the default) submits one by one.
    job_ids: submit with the key as job id, so that a repeat of the whole program can be told.
    work: seconds that each job shall take.
    pace: seconds between two calls.
    gate: {"number": ..., "file": ...}: before this job it notes "waits", and does so until the file
        is there.
    threads: share one operator and the keys.
    die: {"at": "sent" | "confirmed", "key": ...}: before the broker's answer is awaited is what
        the proxy is for; "sent" is just before the driver is called, "confirmed" just after.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

from program import begin, die

from synmanager.backends.base import QueueBackend
from synmanager.backends.registry import create_backend
from synmanager.errors import BrokerUnavailable, PublishInterrupted, SynmanagerError
from synmanager.evaluate import EvaluateProducerOperator
from synmanager.preprocess import PreprocessProducerOperator
from synmanager.settings import load_settings
from synmanager.train import TrainProducerOperator

#: Seconds for which it tries to connect.
PATIENCE = 30.0

PRODUCERS = {
    "preprocess": PreprocessProducerOperator,
    "train": TrainProducerOperator,
    "evaluate": EvaluateProducerOperator,
}

config, journal = begin()
doom = config.get("die", {"at": None, "key": None})
first, last = config["keys"]
prefix = config.get("prefix", config["who"])
batch = config.get("batch", 1)
gate = config.get("gate", {"number": None, "file": ""})


def watch_backend(kind: type[QueueBackend]) -> None:
    publish = kind.publish

    def watched(self: QueueBackend, exchange: str, route: str, messages: Any, **more: Any) -> int:
        doomed = any(f'"key": "{doom["key"]}"'.encode() in m.body for m in messages)
        if doomed and doom["at"] == "sent":
            die(journal)
        try:
            repeats = publish(self, exchange, route, messages, **more)
        except PublishInterrupted as interruption:
            for message in interruption.unconfirmed:
                key = json.loads(message.body)["key"]
                journal.write("repeated", key=key, job_id=message.id)
            raise
        if doomed and doom["at"] == "confirmed":
            die(journal)
        return repeats

    kind.publish = watched  # type: ignore[method-assign, assignment]


def job(number: int) -> dict[str, Any]:
    return {"key": f"{prefix}-{number}", "work": config.get("work", 0)}


def submit(numbers: list[int]) -> None:
    keys = [f"{prefix}-{number}" for number in numbers]
    for key in keys:
        journal.write("offered", key=key)
    began = time.monotonic()
    try:
        if batch > 1:
            operator.submit_many([job(number) for number in numbers])
        elif config.get("job_ids"):
            operator.submit(job(numbers[0]), job_id=keys[0])
        else:
            operator.process(**job(numbers[0]))
    except SynmanagerError as error:
        seconds = time.monotonic() - began
        journal.write("refused", keys=keys, error=type(error).__name__, seconds=seconds)
        logging.exception("could not submit")
        return
    for key in keys:
        journal.write("confirmed", key=key, seconds=time.monotonic() - began)


def wait_at_the_gate() -> None:
    journal.write("waits")
    while not Path(gate["file"]).exists():
        time.sleep(0.01)


def submit_all(numbers: range) -> None:
    for start in range(0, len(numbers), batch):
        if gate["number"] == numbers[start]:
            wait_at_the_gate()
        submit(list(numbers[start : start + batch]))
        if config.get("pace"):
            time.sleep(config["pace"])


def connect() -> None:
    """As a patient Director does: a first connection that fails, or is cut, is an error."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return operator.connect()
        except BrokerUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


watch_backend(type(create_backend(load_settings().address)))
operator = PRODUCERS[config.get("phase", "train")]()
connect()
journal.write("ready")
count = config.get("threads", 1)
threads = [
    threading.Thread(target=submit_all, args=(range(first + number, last, count),))
    for number in range(count)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
began = time.monotonic()
operator.disconnect()
journal.write("left", seconds=time.monotonic() - began)

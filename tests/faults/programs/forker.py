"""Forks after it has connected, and uses the operators on both sides.

Config:
    use: "producer" | "consumer" | "multiprocessing".
"""

from __future__ import annotations

import multiprocessing
import os
from typing import Any

from program import begin, run_noted

from synmanager.train import TrainConsumerOperator, TrainProducerOperator

config, journal = begin()


def note(**job: Any) -> None:
    fields = run_noted(journal, job["key"])
    journal.write("finished", lease_lost=False, **fields)


def submit(producer: TrainProducerOperator, key: str) -> None:
    producer.process(key=key)
    journal.write("confirmed", key=key)


def in_child(action: Any) -> int:
    """Fork, act, and return the child's exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fork_producer() -> None:
    with TrainProducerOperator() as producer:
        submit(producer, "before")
        status = in_child(lambda: submit(producer, "child"))
        journal.write("child", status=status)
        submit(producer, "after")
        # A child that disconnects must not end the parent's connection.
        status = in_child(producer.disconnect)
        journal.write("child", status=status)
        submit(producer, "after disconnect")


def fork_consumer() -> None:
    with TrainProducerOperator() as producer, TrainConsumerOperator() as consumer:
        for number in range(6):
            submit(producer, str(number))
        consumer.poll_message(note)
        status = in_child(lambda: consumer.listen_message(note, max_jobs=2))
        journal.write("child", status=status)
        consumer.listen_message(note, max_jobs=3)


def spawn_by_fork() -> None:
    with TrainProducerOperator() as producer, TrainConsumerOperator() as consumer:
        context = multiprocessing.get_context("fork")
        process = context.Process(target=consumer.listen_message, args=(note,))
        process.start()
        for number in range(6):
            submit(producer, str(number))
        journal.write("submitted", child=process.pid)
        process.join(30)
        journal.write("child", status=process.exitcode)
        journal.write("counted", ready=consumer.check_message_count())


{"producer": fork_producer, "consumer": fork_consumer, "multiprocessing": spawn_by_fork}[
    config["use"]
]()
journal.write("left")

"""Sixteen threads use one operator, each both ways.

Config:
    threads, jobs: how many, and how many jobs each submits and then polls.
"""

from __future__ import annotations

import threading
from typing import Any

from program import begin, run_noted

from synmanager.train import TrainConsumerOperator, TrainProducerOperator

config, journal = begin()


def note(**job: Any) -> str:
    fields = run_noted(journal, job["key"])
    journal.write("finished", lease_lost=False, **fields)
    return str(job["key"])


def use(number: int) -> None:
    try:
        for job in range(config["jobs"]):
            producer.process(key=f"{number}-{job}")
            journal.write("confirmed", key=f"{number}-{job}")
            assert producer.is_connected()
        everyone_submitted.wait(60)
        while consumer.poll_message(note) is not None:
            consumer.check_message_count()
    except BaseException as error:
        journal.write("error", error=repr(error))
        raise


with TrainProducerOperator() as producer, TrainConsumerOperator() as consumer:
    everyone_submitted = threading.Barrier(config["threads"])
    threads = [threading.Thread(target=use, args=(n,)) for n in range(config["threads"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
journal.write("left")

"""Whether a transport of kombu's gives a job back whose consumer was killed, by killing one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import synmanager
from synmanager.backends.base import ExchangeSpec, QueueSpec
from synmanager.backends.kombu import KombuBackend
from synmanager.message import Message
from synmanager.settings import parse_url

__all__ = ["LEASE", "killed_holder"]

#: Seconds for which the consumer had the job.
LEASE = 2.0

#: Seconds within which it must be back.
_PATIENCE = 4 * LEASE


def client(url: str) -> KombuBackend:
    backend = KombuBackend(replace(parse_url(url), lease=LEASE))
    backend.open()
    return backend


def killed_holder(url: str, name: str) -> Literal["kept", "lost"]:
    """Kill a consumer that holds one of two jobs, and see which come.

    Args:
        name: of a queue that nobody else has.
    """
    spec = QueueSpec(name, ExchangeSpec(f"{name}-exchange", "topic"), name)
    producer = client(url)
    producer.declare(spec)
    jobs = [Message(b"1"), Message(b"2")]
    producer.publish(spec.exchange.name, spec.routing_key, jobs)
    environment = {**os.environ, "PYTHONPATH": str(Path(synmanager.__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, __file__, url, name], stdout=subprocess.PIPE, text=True, env=environment
    ) as consumer:
        assert consumer.stdout is not None
        held = consumer.stdout.readline().strip()
        consumer.kill()  # SIGKILL
    assert held == jobs[0].id, f"it held {held!r}"
    came: list[object] = []
    while len(came) < 2:
        delivery = producer.receive([name], _PATIENCE)
        if delivery is None:
            break
        came.append(delivery.message.id)
        assert delivery.attempt == (2 if delivery.message.id == held else 1)
        producer.ack(delivery)
    producer.close()
    assert jobs[1].id in came, "the job that nobody held is gone"
    return "kept" if held in came else "lost"


if __name__ == "__main__":
    backend = client(sys.argv[1])
    taken = backend.receive([sys.argv[2]], 10)
    assert taken is not None
    print(taken.message.id, flush=True)
    signal.pause()

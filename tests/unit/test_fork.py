"""An operator and the processes that it cannot follow."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from grid import Grid

import synmanager
from synmanager import Archiver, Worker

SOURCE = Path(synmanager.__file__).parents[1]

# The child reports what each call does; the parent goes on, and reports as well.
PROGRAM = """
import json, multiprocessing, os, threading
from synmanager import Worker
from synmanager.train import TrainConsumerOperator, TrainProducerOperator

producer, consumer = TrainProducerOperator(url="memory"), TrainConsumerOperator(url="memory")
producer.connect()
consumer.connect()
producer.process(run=1)
consumer.poll_message(lambda run: None)  # the keeper of leases runs
producer.process(run=2)

def tell(name, call):
    try:
        report[name] = repr(call())
    except Exception as error:
        report[name] = [type(error).__name__, str(error)]

report = {}
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    tell("process", lambda: producer.process(run=3))
    tell("poll_message", lambda: consumer.poll_message(lambda run: run))
    tell("listen_message", lambda: consumer.listen_message(lambda run: run, max_jobs=1))
    tell("check_message_count", consumer.check_message_count)
    tell("disconnect", consumer.disconnect)
    os.write(writer, json.dumps(report).encode())
    os._exit(0)
os.close(writer)
with os.fdopen(reader) as pipe:
    in_child = json.load(pipe)
os.waitpid(child, 0)
tell("process", lambda: producer.process(run=4))
tell("poll_message", lambda: consumer.poll_message(lambda run: run))
tell("check_message_count", consumer.check_message_count)

process = multiprocessing.get_context("fork").Process(
    target=consumer.listen_message, args=(print,), kwargs={"max_jobs": 1}
)
process.start()
process.join(30)
report["exit code of a forked listen_message"] = process.exitcode
tell("after that", lambda: consumer.poll_message(lambda run: run))
print(json.dumps([in_child, report]))
"""


def test_a_fork_is_told_what_to_do_and_the_parent_goes_on() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        capture_output=True,
        text=True,
        cwd=SOURCE,
        timeout=60,
        check=True,
    )
    in_child, in_parent = json.loads(done.stdout)
    for call in ("process", "poll_message", "listen_message", "check_message_count"):
        kind, text = in_child[call]
        assert kind == "Unsupported", call
        assert "fork" in text
        assert "redis://" in text
    assert in_child["disconnect"] == "None"
    assert in_parent == {
        "process": repr('{"run": 4}'),
        "poll_message": "2",
        "check_message_count": "1",
        "exit code of a forked listen_message": 1,
        "after that": "4",
    }
    assert "Unsupported" in done.stderr


@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.parametrize("kind", ["producer", "consumer"])
def test_an_operator_is_not_pickled(connected: bool, kind: str, grid: Grid) -> None:
    operator: Any = getattr(grid, kind)()
    if not connected:
        operator.disconnect()
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"holds a connection.*make one in the other process"):
            duplicate(operator)


@pytest.mark.parametrize(
    "service",
    [Worker({"train": print}, url="memory"), Archiver(print, url="memory")],
    ids=["worker", "archiver"],
)
def test_a_service_is_not_pickled(service: Any) -> None:
    with pytest.raises(TypeError):
        pickle.dumps(service)

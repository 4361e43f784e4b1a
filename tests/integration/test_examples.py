"""The Director's and the TTP's example, as two processes that meet at a real broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

from synmanager.completed import CompletedConsumerOperator
from synmanager.evaluate import EvaluateConsumerOperator
from synmanager.preprocess import PreprocessConsumerOperator
from synmanager.train import TrainConsumerOperator

EXAMPLES = Path(__file__).parents[2] / "examples"
CONSUMERS = (
    PreprocessConsumerOperator,
    TrainConsumerOperator,
    EvaluateConsumerOperator,
    CompletedConsumerOperator,
)
RUNS = 12


def test_director_and_ttp_on_rabbitmq(amqp_url: str, tmp_path: Path) -> None:
    run_a_cycle(amqp_url, tmp_path / "results.jsonl")


def test_director_and_ttp_on_redis(redis_url: str, tmp_path: Path) -> None:
    run_a_cycle(redis_url, tmp_path / "results.jsonl")


def run_a_cycle(url: str, archive: Path) -> None:
    purge(url)  # the TTP would take what others left
    ttp = start(url, "ttp.py", "--name=ttp-1", "--seconds=0.02")
    director = start(url, "director.py", f"--runs={RUNS}", "--archive", archive)
    try:
        printed, errors = director.communicate(timeout=60)
        assert director.returncode == 0, errors
        ttp.send_signal(signal.SIGTERM)
        farewell, log = ttp.communicate(timeout=30)
        assert ttp.returncode == 0, log
    finally:
        for process in (director, ttp):
            process.kill()
            process.communicate()

    assert printed.endswith(f"{1 + 2 * RUNS} results in {archive}\n")
    assert farewell == f"ttp-1: {1 + 2 * RUNS} jobs run\n"

    results = [json.loads(line) for line in archive.read_text().splitlines()]
    assert len({result["project_id"] for result in results}) == 1
    assert {result["ttp"] for result in results} == {"ttp-1"}
    runs = range(RUNS)
    assert Counter((result["kind"], result["run"]) for result in results) == Counter(
        [("align", 0), *(("train", run) for run in runs), *(("evaluate", run) for run in runs)]
    )
    for run in runs:  # evaluated once it was trained
        order = [result["kind"] for result in results if result["run"] == run]
        assert order.index("train") < order.index("evaluate")


def purge(url: str) -> None:
    for kind in CONSUMERS:
        with kind(url=url) as consumer:
            consumer.purge()


def start(url: str, example: str, *options: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, EXAMPLES / example, *options],
        env={**os.environ, "SYNMANAGER_BACKEND": url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

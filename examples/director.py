"""A Director: submits one federated cycle and archives its results.

Run it in one terminal and one or more ``ttp.py`` in others, on any broker they all reach:

    export SYNMANAGER_BACKEND=redis://localhost:6379/0
    python examples/ttp.py
    python examples/director.py --runs 12 --archive results.jsonl
"""

from __future__ import annotations

import argparse
import json
import uuid
from pathlib import Path
from typing import Any

from synmanager import Archiver
from synmanager.evaluate import EvaluateProducerOperator
from synmanager.preprocess import PreprocessProducerOperator
from synmanager.train import TrainProducerOperator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=12, help="training runs (default: 12)")
    parser.add_argument("--archive", type=Path, default=Path("results.jsonl"))
    options = parser.parse_args()
    project = f"project-{uuid.uuid4().hex[:8]}"

    evaluations = EvaluateProducerOperator()
    archived = 0

    def archive(kwargs: dict[str, Any], host: str) -> None:
        nonlocal archived
        if kwargs.get("project_id") != project:
            return  # the result of another cycle
        with options.archive.open("a") as file:
            file.write(json.dumps(kwargs) + "\n")
        archived += 1
        print(f"{archived:>4} of {1 + 2 * options.runs}: {kwargs['kind']} by {kwargs['ttp']}")
        if kwargs["kind"] == "train":
            evaluations.process(project_id=project, kind="evaluate", run=kwargs["run"])
        if archived == 1 + 2 * options.runs:
            archiver.stop()

    # A named subscriber has its own copy of every result, from its subscription on: it comes
    # before the first job, so that none is missed.
    archiver = Archiver(archive, subscriber="director")
    archiver.subscribe()

    with PreprocessProducerOperator() as alignment, TrainProducerOperator() as training:
        alignment.process(project_id=project, kind="align", run=0)
        training.submit_many(
            {"project_id": project, "kind": "train", "run": run} for run in range(options.runs)
        )
    with evaluations:
        archiver.run()
    print(f"{archived} results in {options.archive}")


if __name__ == "__main__":
    main()

"""A Director: submits one federated cycle and archives its results.

Run it in one terminal and one or more ``ttp.py`` in others, on any broker they all reach:

    export SYNMANAGER_BACKEND=sqlite
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
    expected = 1 + 2 * options.runs  # the alignment; each run, and its evaluation
    archived: set[tuple[str, int]] = set()

    def archive(kwargs: dict[str, Any], host: str) -> None:
        if kwargs.get("project_id") != project:
            return  # the result of another cycle
        kind, run = kwargs["kind"], kwargs["run"]
        if (kind, run) in archived:
            return  # a job whose worker died after its result was out ran, and reported, again
        if kind == "train":
            evaluations.process(project_id=project, kind="evaluate", run=run)
        with options.archive.open("a") as file:
            file.write(json.dumps(kwargs) + "\n")
        archived.add((kind, run))
        print(f"{len(archived):>4} of {expected}: {kind} {run} by {kwargs['ttp']}", flush=True)
        if len(archived) == expected:
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
    print(f"{len(archived)} results in {options.archive}")


if __name__ == "__main__":
    main()

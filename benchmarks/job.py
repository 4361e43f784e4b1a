"""The job that every benchmark submits, and how it looks on the wire."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["BODY", "JOB", "job_of"]


def job_of(size: int) -> dict[str, Any]:
    """A job whose JSON is ``size`` bytes long (at least 60)."""
    job = {"project_id": "benchmark", "expt_id": "sweep", "note": ""}
    job["note"] = "x" * (size - len(json.dumps(job)))
    return job


#: What one combination of a sweep looks like: about 500 bytes of JSON.
JOB: dict[str, Any] = {
    "project_id": "federated-benchmark",
    "expt_id": "resnet-sweep-2024",
    "run_id": "run-000017",
    "participants": [f"participant-{number}" for number in range(8)],
    "hyperparameters": {
        "lr": 0.0005,
        "rounds": 40,
        "epochs": 3,
        "batch_size": 64,
        "weight_decay": 0.0001,
        "optimizer": "adamw",
        "scheduler": {"name": "cosine", "warmup": 500, "minimum": 1e-06},
        "mu": 0.1,
        "l1_lambda": 0.0,
        "l2_lambda": 0.01,
        "is_snn": False,
    },
}

BODY = json.dumps(JOB, sort_keys=True).encode("ascii")

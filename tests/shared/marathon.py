"""A worker whose jobs take long: it says how far they are, keeps checkpoints, and can be cancelled.

    python marathon.py TAG

Its broker is the environment's. A job that says ``poison`` is rejected.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from synmanager import Reject, Worker, current_job


def train(steps: int = 0, poison: bool = False, **_: Any) -> dict[str, Any]:
    job = current_job()
    assert job is not None
    if poison:
        raise Reject("poison")
    begun_at = start = (job.saved or {}).get("step", 0)
    for step in range(start, steps):
        job.progress(step, total=steps, loss=1 / (step + 1))
        job.save({"step": step})
        time.sleep(0.05)
    return {"steps": steps, "begun_at": begun_at, "attempt": job.attempt}


if __name__ == "__main__":
    Worker({"train": train}, tags={sys.argv[1]}).run()

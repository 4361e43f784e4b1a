"""A TTP: runs the jobs of three phases by rank, until it is told to stop (Ctrl-C, SIGTERM).

export SYNMANAGER_BACKEND=sqlite
python examples/ttp.py --name ttp-1
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from typing import Any

from synmanager import Worker, current_job


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default=f"ttp-{os.getpid()}")
    parser.add_argument("--seconds", type=float, default=0.2, help="length of a job")
    parser.add_argument("--burst", action="store_true", help="end when nothing waits")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")

    def work(**kwargs: Any) -> dict[str, Any]:
        job = current_job()
        logging.info("%s %s, attempt %d", kwargs["kind"], kwargs["run"], job.attempt)
        time.sleep(options.seconds)  # the federated computation
        return {**kwargs, "ttp": options.name}

    worker = Worker({"preprocess": work, "train": work, "evaluate": work})
    count = worker.run(burst=options.burst)
    print(f"{options.name}: {count} jobs run")


if __name__ == "__main__":
    main()

"""A hyperparameter sweep: 200 combinations over three workers, with a progress bar.

Needs nothing but the package; by default it runs in memory:

    python examples/sweep.py
    python examples/sweep.py --backend amqp://localhost
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import threading
import time
from typing import Any

from synmanager import Worker
from synmanager.train import TrainProducerOperator

RATES = [10 ** (-exponent / 5) for exponent in range(5, 25)]
BATCHES = [16, 32, 48, 64, 96, 128, 192, 256, 384, 512]


def train(rate: float, batch: int, **job: Any) -> dict[str, Any]:
    """Stand in for a federated training run: a loss with its best point at 0.004 and 96."""
    time.sleep(0.01)
    return {"loss": abs(math.log10(rate / 0.004)) + abs(math.log2(batch / 96))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="memory", metavar="URL")
    options = parser.parse_args()

    workers = [Worker({"train": train}, url=options.backend) for _ in range(3)]
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    losses = {}
    try:
        with TrainProducerOperator(url=options.backend) as producer:
            grid = itertools.product(RATES, BATCHES)
            sweep = producer.sweep({"rate": rate, "batch": batch} for rate, batch in grid)
            for done in sweep:  # as they end, well or not; with a bar, on a terminal
                if done.result is None:
                    print(f"{done.job}: {done.error}", file=sys.stderr)
                else:
                    losses[done.job["rate"], done.job["batch"]] = done.result["loss"]
    finally:
        for worker in workers:
            worker.stop()
        for thread in threads:
            thread.join()
    rate, batch = min(losses, key=losses.__getitem__)
    print(f"{len(losses)} runs; best: rate {rate:.4f}, batch {batch}")


if __name__ == "__main__":
    main()

"""A hyperparameter sweep: 200 combinations over three workers, with a live progress bar.

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

from synmanager import Archiver, Worker
from synmanager.train import TrainProducerOperator

RATES = [10 ** (-exponent / 5) for exponent in range(5, 25)]
BATCHES = [16, 32, 48, 64, 96, 128, 192, 256, 384, 512]


def train(rate: float, batch: int, **job: Any) -> dict[str, Any]:
    """Stand in for a federated training run: a loss with its best point at 0.004 and 96."""
    time.sleep(0.01)
    loss = abs(math.log10(rate / 0.004)) + abs(math.log2(batch / 96))
    return {**job, "rate": rate, "batch": batch, "loss": loss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="memory", metavar="URL")
    options = parser.parse_args()
    sweep = f"sweep-{time.time_ns():x}"
    jobs = [
        {"sweep": sweep, "rate": rate, "batch": batch}
        for rate, batch in itertools.product(RATES, BATCHES)
    ]
    # By combination: a job whose worker died after its result was out runs, and reports, again.
    results: dict[tuple[float, int], dict[str, Any]] = {}

    def archive(kwargs: dict[str, Any], host: str) -> None:
        if kwargs.get("sweep") != sweep:
            return  # the result of something else
        results[kwargs["rate"], kwargs["batch"]] = kwargs
        bar = "#" * (40 * len(results) // len(jobs))
        print(f"\r[{bar:<40}] {len(results)}/{len(jobs)}", end="", file=sys.stderr, flush=True)
        if len(results) == len(jobs):
            archiver.stop()

    archiver = Archiver(archive, subscriber="sweep", url=options.backend)
    archiver.subscribe()
    workers = [Worker({"train": train}, url=options.backend) for _ in range(3)]
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    try:
        with TrainProducerOperator(url=options.backend) as producer:
            producer.submit_many(jobs)
        archiver.run()
    finally:
        for worker in workers:
            worker.stop()
        for thread in threads:
            thread.join()

    print(file=sys.stderr)
    if len(results) < len(jobs):
        sys.exit("stopped before all results were in")
    best = min(results.values(), key=lambda result: result["loss"])
    print(f"{len(results)} runs; best: rate {best['rate']:.4f}, batch {best['batch']}")


if __name__ == "__main__":
    main()

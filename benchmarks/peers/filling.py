"""Submits a peer's jobs and says how the peer is set up.

python -m benchmarks.peers.filling MODULE JOBS
"""

from __future__ import annotations

import importlib
import json
import os
import sys

__all__ = ["BROKER", "PREFETCH"]

BROKER = os.environ.get("BENCHMARK_BROKER", "")

#: How many jobs the worker may hold unacknowledged; None for what the peer does by default.
PREFETCH = int(os.environ["BENCHMARK_PREFETCH"]) if "BENCHMARK_PREFETCH" in os.environ else None


def main() -> None:
    module = importlib.import_module(sys.argv[1])
    module.submit(int(sys.argv[2]))
    print(json.dumps(module.SETTINGS, default=repr))


if __name__ == "__main__":
    main()

"""The example that needs no broker, as a user runs it. The others: tests/integration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SWEEP = Path(__file__).parents[2] / "examples" / "sweep.py"


def test_the_sweep(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, SWEEP],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"200 runs; best: rate 0.0040, batch 96\n"
    assert done.stderr == b""  # the bar is for terminals

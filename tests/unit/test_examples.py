"""The example that needs no broker, as a user runs it. The others: tests/integration."""

from __future__ import annotations

import re
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
    drawn = done.stderr.decode()  # not text=True, which takes a carriage return for a line's end
    assert done.returncode == 0, drawn
    assert done.stdout.decode() == "200 runs; best: rate 0.0040, batch 96\n"

    # The bar: drawn anew with each result, longer and longer, and whole at the end.
    bars = re.findall(r"\r\[(#* *)\] (\d+)/200", drawn)
    assert [int(count) for _, count in bars] == list(range(1, 201))
    assert [bar.count("#") for bar, _ in bars] == [count * 40 // 200 for count in range(1, 201)]
    assert {len(bar) for bar, _ in bars} == {40}
    assert re.sub(r"\r\[#* *\] \d+/200", "", drawn).strip() == ""

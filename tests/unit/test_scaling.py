"""docs/scaling.md: its worker is one that there is, and its loop starts what is missing."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from grid import Grid

from synmanager import Worker
from synmanager.cli.run import work
from synmanager.lookout import Lookout
from synmanager.metrics import written
from synmanager.settings import load_settings

PAGE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8")


def of_the_page(pattern: str) -> str:
    """What the page has in one place."""
    (found,) = re.findall(pattern, PAGE, re.DOTALL | re.MULTILINE)
    return str(found)


def test_the_worker_is_one_that_there_is_and_its_times_fit() -> None:
    program, command, *arguments = shlex.split(
        of_the_page(r"^ +command: \[(.*?)\]$").replace(",", " ")
    )
    assert (program, command) == ("synmanager", "work")
    given = work.make_context(command, arguments).params
    assert given["max_jobs"] == 1
    # A job whose worker has died is free again while another still waits for it.
    assert given["idle_timeout"] > load_settings(url="memory://").address.lease
    grace = int(of_the_page(r'name: SYNMANAGER_GRACE, value: "(\d+)"'))
    assert grace + 5 < int(of_the_page(r"terminationGracePeriodSeconds: (\d+)"))


@pytest.mark.parametrize(("there", "started"), [(0, 3), (1, 2), (3, 0), (4, 0)])
def test_the_loop_starts_what_is_missing(
    there: int, started: int, grid: Grid, tmp_path: Path
) -> None:
    lookout = Lookout(load_settings(url=grid.url), (), print)
    numbers: list[bytes] = []

    def train(run: int) -> None:
        lookout.start()
        numbers.append(written(lookout)[0])
        lookout.stop()

    grid.producer().submit_many([{"run": number} for number in range(3)])
    grid.producer().submit({"run": 3}, delay=3600)
    Worker({"train": train}, url=grid.url).run(max_jobs=1)  # one runs, two wait
    (tmp_path / "metrics").write_bytes(numbers[0])
    for name, does in (
        ("curl", f"cat {tmp_path}/metrics"),
        ("squeue", "yes ttp-train | head -n $THERE"),
        ("sbatch", 'echo "$@"'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "THERE": str(there)}
    done = subprocess.run(
        ["sh", "-euc", of_the_page(r"^```sh\n(.*?)^```$")],
        env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["--job-name ttp-train worker.sh"] * started

"""A dashboard over a grid with many jobs, and what it takes to look at it.

Usage: python -m benchmarks.programs.dashboard JOBS
Prints how many seconds it took to follow the journal, how many each page took to be made, at
first, and the mebibytes that the process has in memory, as JSON.
"""

from __future__ import annotations

import http.client
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

from synmanager.journal import recorder
from synmanager.settings import load_settings, switch_on_journal
from synmanager.train import TrainProducerOperator
from synmanager.web.app import make_app
from synmanager.web.gate import Guards
from synmanager.web.observer import Observer
from synmanager.web.serve import Server, listen
from synmanager.worker import Worker

_PAGES = ("/", "/waiting", "/sweeps", "/dead", "/workers", "/broker", "/job?id=job-500")


def fill(url: str, jobs: int) -> None:
    """Submit as many, and run a fiftieth of them; in a process of its own, for the memory."""
    with TrainProducerOperator(url=url) as producer:
        for begin in range(0, jobs, 10_000):
            some = range(begin, min(begin + 10_000, jobs))
            producer.submit_many(
                ({"run": run} for run in some), job_ids=[f"job-{run}" for run in some]
            )
    Worker({"train": lambda run: None}, url=url).run(max_jobs=jobs // 50)
    recorder.flush_all(60)


def measure(url: str) -> dict[str, object]:
    began = time.perf_counter()
    observer = Observer(load_settings(url=url))
    observer.start()
    with listen("127.0.0.1", 0) as listener:
        server = Server(make_app(observer, Guards(None, "bench"), allows=False), observer)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        first = _get(listener.getsockname()[1], "/")
        while not observer.is_caught_up:
            time.sleep(0.01)
        followed = time.perf_counter() - began
        pages = {}
        for path in _PAGES:
            time.sleep(1)  # a page that is a moment old would do for the next one
            pages[path] = _get(listener.getsockname()[1], path)
        server.should_exit = True
        thread.join()
    observer.stop()
    status = Path("/proc/self/status").read_text()
    kibibytes = int(status.partition("VmHWM:")[2].split()[0])
    return {"first": first, "followed": followed, "pages": pages, "peak": kibibytes / 1024}


def _get(port: int, path: str) -> float:
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status}")
    finally:
        connection.close()
    return time.perf_counter() - began


def main() -> None:
    import subprocess

    switch_on_journal()
    if len(sys.argv) == 3:
        fill(sys.argv[2], int(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{folder}/jobs.db"
        program = [sys.executable, "-m", "benchmarks.programs.dashboard", sys.argv[1], url]
        subprocess.run(program, check=True)
        print(json.dumps(measure(url)))


if __name__ == "__main__":
    main()

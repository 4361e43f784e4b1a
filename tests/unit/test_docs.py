"""The Python in docs/ runs: each page's blocks in their order, as one program, in memory.

Only one thing is other than for a reader: ``run()`` returns when nothing waits. A block under the
comment ``<!-- not run: why -->`` is compiled alone. ``docs/testing.md`` is run by
``test_testkit.py``, in pytest, as it is meant.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from grid import Grid

from synmanager import Sweep, Worker
from synmanager.engine.service import Service

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"(<!-- not run: .+ -->\n+)?^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)

#: What waits in ``train`` when the page is run, where its handlers want more than any job has.
JOBS: dict[str, dict[str, Any]] = {
    "workers.md": {"project": "p"},
    "failures.md": {"keys": ["a"]},
    "long-jobs.md": {"epochs": 3},
    "migrating.md": {"project": "p"},
}
PAGES = sorted(
    page.name
    for page in DOCS.glob("*.md")
    if BLOCK.search(page.read_text(encoding="utf-8")) and page.name != "testing.md"
)


def run(page: str, names: dict[str, Any], **replaced: str) -> dict[str, Any]:
    """Run a page in the given names, which it adds to."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        # At its own line, so that a traceback names it.
        source = "\n" * text.count("\n", 0, found.start(2)) + found[2]
        for old, new in replaced.items():
            source = source.replace(old, new)
        code = compile(source, str(DOCS / page), "exec")
        if not found[1]:
            exec(code, names)
    return names


@pytest.fixture
def reader(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> Grid:
    """A grid that the environment names, where ``run()`` ends with the queue."""
    monkeypatch.setenv("SYNMANAGER_BACKEND", grid.url)
    monkeypatch.setenv("SYNMANAGER_JOURNAL", "on")
    endless: Callable[..., int] = Service.run
    monkeypatch.setattr(Service, "run", lambda self, burst=True: endless(self, burst=burst))
    return grid


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ("journal.md",)])
def test_a_page(page: str, reader: Grid, capsys: pytest.CaptureFixture[str]) -> None:
    if page in JOBS:
        reader.producer("train").submit(JOBS[page])
    if page == "quickstart.md":
        reader.producer("completed").submit({"lr": 0.1, "loss": 0.01})
    run(page, {})
    if page in JOBS:
        assert reader.count("train") == {}, "the page's handler has not run its job"
        assert reader.count("completed") == {"ready": 1}
    if page == "quickstart.md":
        assert capsys.readouterr().out == "0.1 has a loss of 0.01\n"
        assert reader.count("train") == {"ready": 2}


def test_the_journal_s_page(reader: Grid) -> None:
    producer = reader.producer("train")
    begin = producer.sweep

    def sweep(*args: Any, **options: Any) -> Sweep:
        """As a producer's, beside a worker."""
        begun = begin(*args, **options)
        Worker({"train": lambda lr: {"lr": lr}}).run(burst=True)
        return begun

    producer.sweep = sweep  # type: ignore[method-assign]
    job_id = producer.submit({"keys": ["a"], "epochs": 2})
    Worker({"train": lambda keys, epochs: None}).run(burst=True)
    names = {
        "fit_one_epoch": lambda keys: 0.5,
        "job_id": job_id,
        "producer": producer,
        "grid": [0.1, 0.2],
        "Sweep": Sweep,
        "archive": lambda **result: None,
        "mail": lambda text: None,
    }
    train = run("journal.md", names, **{"amqp://mq.example": reader.url})["train"]
    producer.submit({"keys": ["a"], "epochs": 2})
    assert Worker({"train": train}).run(burst=True) == 1
    assert reader.count("train") == {}


def test_every_link_to_a_file_of_the_repository_leads_there() -> None:
    """Sphinx looks after those between pages; a Git host has nobody to."""
    pages = [*ROOT.glob("*.md"), *DOCS.glob("*.md")]
    broken = [
        f"{page.name}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
        if "://" not in target and not (page.parent / target).exists()
    ]
    assert not broken


def test_every_page_has_a_place_in_the_site() -> None:
    """An orphan is an error of ``tox -e docs``; here it is one within a second."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^([\w./-]+)$", index, re.MULTILINE)
    assert {page.stem for page in DOCS.glob("*.md")} - {"index"} <= set(listed)

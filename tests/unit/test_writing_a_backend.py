"""The page for those who write a driver says what the interface says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from synmanager import errors
from synmanager.backends.base import QueueBackend

PAGE = Path(__file__).parents[2] / "docs" / "writing-a-backend.md"

#: What every call may come to that asks the broker; no docstring repeats it.
ALWAYS = {"BrokerUnavailable", "AccessRefused"}


def said_by_the_page() -> dict[str, set[str]]:
    """The errors that the page's table gives each method."""
    section = PAGE.read_text().partition("## Which call may raise what")[2].partition("\n## ")[0]
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    columns = [name.strip("`") for name in head[1:-1]]
    found: dict[str, set[str]] = {}
    for row in rows:
        raised = set(re.findall(r"`([A-Z]\w+)`", " ".join(row[1:])))
        for column, cell in zip(columns, row[1:-1], strict=True):
            if not cell.startswith("no"):
                raised.add(column)
        for method in re.findall(r"`(\w+)`", row[0]):
            found[method] = raised
    return found


def said_by_the_docstring(method: str) -> set[str]:
    documentation = inspect.getdoc(getattr(QueueBackend, method)) or ""
    raises = documentation.partition("Raises:")[2]
    named = re.findall(r"^\s+(\w+(?:, \w+)*): ", raises, re.M)
    return {name for line in named for name in line.split(", ") if name in errors.__all__}


TABLE = said_by_the_page()


def test_every_method_has_a_row_and_every_row_a_method() -> None:
    public = {name for name in vars(QueueBackend) if not name.startswith("_")}
    assert set(TABLE) == public - {"clock", "clustered", "features"}  # attributes


def test_every_error_is_one_of_ours() -> None:
    assert set().union(*TABLE.values()) <= set(errors.__all__)


@pytest.mark.parametrize("method", sorted(TABLE))
def test_a_row_has_what_the_docstring_has(method: str) -> None:
    assert said_by_the_docstring(method) <= TABLE[method]


@pytest.mark.parametrize("method", sorted(set(TABLE) - {"open"}))
def test_a_docstring_has_what_its_row_has(method: str) -> None:
    # But for a queue that is missing, and letters that cannot be picked: said once for several.
    told = said_by_the_docstring(method) | ALWAYS | {"TopologyError"}
    if "letter" in method:
        told |= {"Unsupported"}
    assert TABLE[method] <= told

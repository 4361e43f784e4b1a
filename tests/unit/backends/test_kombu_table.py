"""What docs/kombu.md says of the transports is what the code says, and what a run has shown."""

from __future__ import annotations

from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kombu", reason="kombu is not installed")

from synmanager.backends.kombu.guarantees import ROWS

ROOT = Path(__file__).parents[3]


def load_script() -> Any:
    loader = SourceFileLoader("kombu_table", str(ROOT / "scripts" / "kombu-table"))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_the_table_is_the_code_s() -> None:
    script = load_script()
    page = script.PAGE.read_text()
    assert script.between(page, "code").splitlines() == script.code_table()


def test_what_was_tried_came_out_as_the_code_says() -> None:
    script = load_script()
    tried = script.tried_rows(script.PAGE.read_text())
    assert set(tried) == {name for name, row in ROWS.items() if row.tried}
    for name, row in tried.items():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[-1].startswith("kept" if ROWS[name].keeps else "lost"), name

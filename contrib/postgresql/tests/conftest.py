"""The server that the tests run on, one for each process of pytest-xdist."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness.catalogue import Missing, brokers_are_required
from server import PostgreSQL


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "limit(seconds): the fault suite's")


@pytest.fixture(scope="session")
def server() -> Iterator[PostgreSQL]:
    """A PostgreSQL server; where there is none, every test says so."""
    try:
        made = PostgreSQL()
    except Missing as missing:
        if brokers_are_required():
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))
    try:
        made.start()
        yield made
    finally:
        made.destroy()

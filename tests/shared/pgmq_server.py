"""A PostgreSQL server with pgmq, of the tests' own: as for contrib/postgresql."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

sys.path[:0] = [str(ROOT / "tests" / "faults"), str(ROOT / "contrib" / "postgresql" / "tests")]

from harness.catalogue import Missing  # noqa: E402
from pgmq.install import install_pgmq_from_sql  # noqa: E402
from server import PostgreSQL  # noqa: E402

__all__ = ["Missing", "pgmq_server"]


@contextmanager
def pgmq_server() -> Iterator[PostgreSQL]:
    """The server, with pgmq in its database.

    Raises:
        Missing: there is none on this machine.
    """
    server = PostgreSQL()
    try:
        server.start()
        # Nothing here crashes the server, and a queue is five tables and indexes.
        server.execute("ALTER SYSTEM SET fsync = off")
        server.execute("SELECT pg_reload_conf()")
        install_pgmq_from_sql(dsn=server.url())
        yield server
    finally:
        server.destroy()

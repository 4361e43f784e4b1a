"""Making the tables, and refusing those of another version."""

from __future__ import annotations

from importlib.resources import files

from synmanager.errors import TopologyError
from synmanager_postgresql.wire import Wire

__all__ = ["VERSION", "prepare", "statements"]

#: Raised by whatever an older version would misread.
VERSION = 1


def statements(schema: str) -> str:
    """All that there is in the schema, as SQL."""
    text = files(__package__).joinpath("schema.sql").read_text("utf-8")
    return text.replace("@schema@", schema).replace("@version@", str(VERSION))


def prepare(wire: Wire, schema: str) -> None:
    """Make the tables where there are none.

    Raises:
        TopologyError: those that are there are a newer version's, or not ours.
        AccessRefused: this user may not make them.
    """
    if not _there(wire, schema):
        # Whoever comes second finds the first one's work.
        lock = f"SELECT pg_advisory_xact_lock(hashtextextended('{schema}.version', 0))"
        wire.ask("BEGIN")
        wire.ask(lock)
        if not _there(wire, schema):
            wire.ask(statements(schema))
        wire.ask("COMMIT")
    ((version,),) = wire.ask(f"SELECT max(version) FROM {schema}.version")
    if version is None or int(version) != VERSION:
        found = (version or b"none").decode()
        raise TopologyError(
            f"the schema {schema} is of version {found}, and this synmanager-postgresql knows "
            f"{VERSION}; nothing was changed. Update it, or choose another schema"
        )


def _there(wire: Wire, schema: str) -> bool:
    # Not by to_regclass(), which may answer out of what the session knew before it had the lock.
    looked = "SELECT 1 FROM pg_tables WHERE schemaname = $1 AND tablename = 'version'"
    return bool(wire.ask(looked, schema))

"""PostgreSQL as a broker: ``postgresql://user:password@host/database``."""

from synmanager_postgresql.backend import PostgreSQLBackend

__all__ = ["PostgreSQLBackend"]

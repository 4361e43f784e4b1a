"""Queues in a file: durable, for the processes of one machine, with nothing to install."""

from synmanager.backends.sqlite.backend import SQLiteBackend

__all__ = ["SQLiteBackend"]

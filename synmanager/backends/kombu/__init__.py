"""Any transport that kombu speaks, as ``kombu+NAME://``; ``docs/kombu.md`` has what each keeps."""

from synmanager.backends.kombu.backend import KombuBackend

__all__ = ["KombuBackend"]

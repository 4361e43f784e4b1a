"""Redis Streams, and everything that speaks like them: Redis 7.0 and later, Valkey."""

from __future__ import annotations

from synmanager.backends.redis.backend import RedisBackend

__all__ = ["RedisBackend"]

"""redis-py, without anything around it."""

from __future__ import annotations

from time import perf_counter
from types import TracebackType
from typing import Any

import redis

__all__ = ["GROUP", "STREAM", "RedisStream"]

STREAM = "benchmark:raw"
GROUP = "benchmark"


class RedisStream:
    """A stream with a consumer group, over one connection. A context manager.

    The methods that measure return entries per second.
    """

    def __init__(self, url: str, body: bytes) -> None:
        self._fields: dict[Any, Any] = {"body": body}
        self._redis = redis.Redis.from_url(url, single_connection_client=True)
        self._redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)

    def __enter__(self) -> RedisStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._redis.delete(STREAM)
        self._redis.close()

    def publish_each(self, count: int) -> float:
        """``XADD``, one by one."""
        began = perf_counter()
        for _ in range(count):
            self._redis.xadd(STREAM, self._fields)
        rate = count / (perf_counter() - began)
        self._redis.xtrim(STREAM, 0, approximate=False)
        return rate

    def publish_pipelined(self, count: int) -> float:
        """All ``XADD`` in one pipeline, without a transaction around it."""
        rate = self.fill(count)
        self._redis.xtrim(STREAM, 0, approximate=False)
        return rate

    def fill(self, count: int) -> float:
        began = perf_counter()
        with self._redis.pipeline(transaction=False) as pipeline:
            for _ in range(count):
                pipeline.xadd(STREAM, self._fields)
            pipeline.execute()
        return count / (perf_counter() - began)

    def consume(self, count: int) -> float:
        """``XREADGROUP COUNT 1``, then ``XACK`` and ``XDEL`` in one round trip, over and over."""
        self.fill(count)
        began = perf_counter()
        for _ in range(count):
            read: Any = self._redis.xreadgroup(GROUP, "consumer", {STREAM: ">"}, count=1)
            ((_, ((entry, _),)),) = read
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.xack(STREAM, GROUP, entry)
                pipeline.xdel(STREAM, entry)
                pipeline.execute()
        return count / (perf_counter() - began)

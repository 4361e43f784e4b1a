"""redis-py, without anything around it."""

from __future__ import annotations

from time import perf_counter
from types import TracebackType
from typing import Any

import redis

__all__ = ["RedisStream"]

_STREAM = "benchmark:raw"
_GROUP = "benchmark"


class RedisStream:
    """A stream with a consumer group, over one connection. A context manager.

    The methods that measure return entries per second.
    """

    def __init__(self, url: str, body: bytes) -> None:
        self._fields: dict[Any, Any] = {"body": body}
        self._redis = redis.Redis.from_url(url, single_connection_client=True)
        self._redis.xgroup_create(_STREAM, _GROUP, id="0", mkstream=True)

    def __enter__(self) -> RedisStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._redis.delete(_STREAM)
        self._redis.close()

    def publish_each(self, count: int) -> float:
        """``XADD``, one by one."""
        began = perf_counter()
        for _ in range(count):
            self._redis.xadd(_STREAM, self._fields)
        rate = count / (perf_counter() - began)
        self._redis.xtrim(_STREAM, 0, approximate=False)
        return rate

    def publish_pipelined(self, count: int) -> float:
        """All ``XADD`` in one pipeline, without a transaction around it."""
        rate = self.fill(count)
        self._redis.xtrim(_STREAM, 0, approximate=False)
        return rate

    def fill(self, count: int) -> float:
        began = perf_counter()
        with self._redis.pipeline(transaction=False) as pipeline:
            for _ in range(count):
                pipeline.xadd(_STREAM, self._fields)
            pipeline.execute()
        return count / (perf_counter() - began)

    def consume(self, count: int) -> float:
        """``XREADGROUP COUNT 1``, then ``XACK`` and ``XDEL`` in one round trip, over and over."""
        self.fill(count)
        began = perf_counter()
        for _ in range(count):
            read: Any = self._redis.xreadgroup(_GROUP, "consumer", {_STREAM: ">"}, count=1)
            ((_, ((entry, _),)),) = read
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.xack(_STREAM, _GROUP, entry)
                pipeline.xdel(_STREAM, entry)
                pipeline.execute()
        return count / (perf_counter() - began)

"""The rows of the table, in its order."""

from __future__ import annotations

from benchmarks.bench import Row
from benchmarks.rows import (
    depth,
    growth,
    imports,
    latency,
    memory,
    rabbitmq,
    redis,
    workers,
)

__all__ = ["ROWS"]

ROWS: dict[str, Row] = {
    row.name: row
    for module in (
        rabbitmq,
        redis,
        workers,
        latency,
        memory,
        depth,
        imports,
        growth,
    )
    for row in module.ROWS
}

"""The rows of the table, in its order."""

from __future__ import annotations

from benchmarks.bench import Row
from benchmarks.rows import (
    crowd,
    dashboard,
    depth,
    growth,
    imports,
    journal,
    latency,
    memory,
    rabbitmq,
    redis,
    replication,
    sqlite,
    watching,
    workers,
)

__all__ = ["ROWS"]

ROWS: dict[str, Row] = {
    row.name: row
    for module in (
        rabbitmq,
        redis,
        sqlite,
        workers,
        latency,
        memory,
        depth,
        imports,
        growth,
        crowd,
        replication,
        watching,
        journal,
        dashboard,
    )
    for row in module.ROWS
}

"""Numbers and times as people say them."""

from __future__ import annotations

import time

__all__ = ["ago", "duration", "moment", "number", "plural", "size"]


def number(value: int | None) -> str:
    """A count, or what stands for one that nobody knows."""
    return "-" if value is None else f"{value:,}"


def plural(count: int, one: str, more: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else more or one + 's'}"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def size(count: int) -> str:
    """Bytes as people say them."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(count) >= 1024**power:
            return f"{count / 1024**power:.1f} {unit}"
    return f"{count} B"


def ago(at: float | None) -> str:
    """How long ago something was; "" if nobody knows."""
    return f"{duration(time.time() - at)} ago" if at else ""


def moment(at: float | None) -> str:
    """A time in seconds since the epoch, by the clock on the wall; "" if nobody knows."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if at else ""

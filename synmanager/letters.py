"""Dead letters as people read and change them, for the command and the dashboard."""

from __future__ import annotations

import json
from collections.abc import Iterable

from synmanager.backends.base import DeadLetter
from synmanager.errors import Undecodable
from synmanager.message import decode
from synmanager.text import shown

__all__ = ["by_reason", "first_line", "readable"]


def first_line(reason: str) -> str:
    """What a reason begins with, which is what letters are grouped by."""
    lines = reason.strip().splitlines()
    return shown(lines[0], 100) if lines else "(no reason is kept)"


def by_reason(letters: Iterable[DeadLetter]) -> dict[tuple[str, str], list[DeadLetter]]:
    """Letters by queue and first line of their reason, the most frequent first."""
    groups: dict[tuple[str, str], list[DeadLetter]] = {}
    for letter in letters:
        groups.setdefault((letter.queue, first_line(letter.reason)), []).append(letter)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def readable(body: bytes) -> str:
    """A body as people can read and change it."""
    try:
        return json.dumps(decode(body), indent=2, ensure_ascii=False) + "\n"
    except Undecodable:
        return body.decode("utf-8", "backslashreplace")

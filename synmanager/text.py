"""Text of strangers, fit for a line of a log or a terminal.

Ids, queue names, errors and bodies come from anyone. They are kept as they are in the data; where
people read them they must neither begin a line of their own nor move the cursor.
"""

from __future__ import annotations

from collections.abc import Callable

from synmanager.interrupts import is_from_handler

__all__ = ["last_lines", "quoted", "shown"]

_CUT = "..."


def shown(text: object, limit: int = 200) -> str:
    """``str(text)`` on one line, at most ``limit`` characters long, the cut marked by dots.

    What ``repr`` would escape is escaped in the same way: control characters, line breaks, marks
    that turn the direction of writing, lone surrogates. Quotes and backslashes stay. It never
    raises: of an object that cannot be written, the type is shown.
    """
    return _fit(_written(text, str), limit)


def quoted(value: object, limit: int = 100) -> str:
    """``repr(value)`` in the same way: what was given instead of what was wanted."""
    return _fit(_written(value, repr), limit)


def last_lines(text: str, most: int) -> str:
    """As many of the last lines as have room in so many characters, the cut marked by dots.

    Lines in whole: of ``password=sesame``, nobody would know ``same`` for a secret. One that is
    too long alone is cut.
    """
    if len(text) <= most:
        return text
    end = text[len(_CUT) - most :]
    return _CUT + (end.partition("\n")[2] or end)


def _written(value: object, write: Callable[[object], str]) -> str:
    try:
        return str.__str__(write(value))  # of a str itself, not of a subclass with its own ideas
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) or is_from_handler(error):
            raise  # nothing that the value did
        return f"<{type(value).__name__} that cannot be written>"


def _fit(line: str, limit: int) -> str:
    if len(line) <= limit and line.isprintable():
        return line
    parts: list[str] = []
    length = kept = fitting = 0
    for character in line[: limit + 1]:
        part = character if character.isprintable() else _escaped(character)
        parts.append(part)
        length += len(part)
        if length <= limit - len(_CUT):
            kept = len(parts)
        if length <= limit:
            fitting = len(parts)
    if fitting == len(line):
        return "".join(parts)
    return "".join(parts[:kept]) + _CUT[:limit]


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")

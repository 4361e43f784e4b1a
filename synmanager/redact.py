"""Values whose names say that they are secret, hidden; and put back when a job was edited."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["HIDDEN", "hidden", "hidden_in_text", "restored"]

#: What stands for a secret.
HIDDEN = "(hidden)"

_NAMES = (
    r"pass(?:wor[dt]|wd|phrase|code)?|pwd|pin|secrets?|tokens?|api[-_]?keys?|access[-_]?keys?"
    r"|private[-_]?keys?|credentials?|auth(?:orization)?|bearer|cookies?|jwt|signature"
)

# As words of a name: "db_password" and "authToken" are secret, "tokenizer" and "passes" are not.
_SECRET = re.compile(rf"(?:^|[^a-z])(?:{_NAMES})(?:$|[^a-z])", re.IGNORECASE)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

_IN_TEXT = re.compile(
    rf"""((?:^|(?<=[^a-zA-Z])|(?<=_))(?:{_NAMES})["']?\s*[:=]\s*(?:bearer\s+)?)"""
    r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s,;&}}\])]+)""",
    re.IGNORECASE,
)
_IN_URL = re.compile(r"(://[^/\s:@]*:)[^/\s@]+(@)")

#: Levels below which nothing is shown: what lies deeper is as good as unreadable.
_DEEPEST = 50


def is_secret(name: str) -> bool:
    return _SECRET.search(_HUMP.sub("_", name)) is not None


def hidden(value: Any, depth: int = 0) -> Any:
    """A copy of what JSON can hold, without its secrets."""
    if depth > _DEEPEST:
        return "(too deep to be shown)"
    if isinstance(value, Mapping):
        return {
            name: HIDDEN if is_secret(str(name)) and each else hidden(each, depth + 1)
            for name, each in value.items()
        }
    if isinstance(value, list):
        return [hidden(each, depth + 1) for each in value]
    return hidden_in_text(value) if isinstance(value, str) else value


def hidden_in_text(text: str) -> str:
    """Prose, such as an error, without what looks like a secret."""
    return _IN_URL.sub(rf"\g<1>{HIDDEN}\g<2>", _IN_TEXT.sub(rf"\g<1>{HIDDEN}", text))


def restored(edited: Any, original: Any) -> Any:
    """What somebody has made of :func:`hidden`'s answer, with the secrets that were left alone."""
    if edited == hidden(original) and not isinstance(original, Mapping | list):
        return original
    if isinstance(edited, Mapping) and isinstance(original, Mapping):
        return {
            name: original[name]
            if each == HIDDEN and name in original
            else restored(each, original.get(name))
            for name, each in edited.items()
        }
    if isinstance(edited, list) and isinstance(original, list):
        padded = [*original, *[None] * len(edited)]
        return [restored(each, before) for each, before in zip(edited, padded, strict=False)]
    return edited

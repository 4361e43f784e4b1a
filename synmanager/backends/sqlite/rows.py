"""Messages as rows, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any
from zlib import crc32

from synmanager.message import Message, Rank, header_text, header_texts

__all__ = ["COLUMNS", "read", "write", "write_all"]

#: What :func:`write` gives and :func:`read` takes.
COLUMNS = "id, rank, submitted_at, schema, headers, checksum, body"

_RANKS = {int(rank): rank for rank in Rank}


def write(message: Message) -> tuple[Any, ...]:
    """The columns of a message."""
    return _columns(message, header_text(message.headers) if message.headers else "")


def write_all(messages: Sequence[Message]) -> Iterator[tuple[Any, ...]]:
    """The columns of each message."""
    return map(_columns, messages, header_texts(messages))


def _columns(message: Message, headers: str) -> tuple[Any, ...]:
    body = message.body
    return (
        message.id,
        int(message.rank),
        message.submitted_at,
        message.schema,
        headers,
        crc32(body),
        body,
    )


def read(row: Sequence[Any]) -> tuple[Message, str | None]:
    """A message of a row that may have come from anyone, and what is wrong with it, if so."""
    message_id, rank, submitted_at, schema, raw_headers, checksum, body = row
    problems = []
    if not isinstance(body, bytes):
        body = str(body).encode("utf-8", "surrogatepass")
    if checksum is not None and checksum != crc32(body):
        problems.append("its body is not what was written: the file is damaged")
    if not isinstance(message_id, str):
        problems.append("its id is not a text")
        message_id = message_id.hex() if isinstance(message_id, bytes) else str(message_id)
    if not isinstance(schema, int) or schema < 0:
        problems.append("its schema is not a number")
        schema = 0
    if submitted_at is not None and not (
        isinstance(submitted_at, float) and math.isfinite(submitted_at)
    ):
        problems.append("its time of submission is not a number")
        submitted_at = None
    if rank not in _RANKS:
        problems.append("its rank is unknown")
    headers = _headers(raw_headers) if raw_headers else {}
    if headers is None:
        problems.append("its headers are not a JSON object of texts")
    message = Message(
        body, message_id, _RANKS.get(rank, Rank.NORMAL), submitted_at, schema, headers or {}
    )
    return message, "; ".join(problems) or None


def _headers(raw: Any) -> dict[str, str] | None:
    try:
        headers = json.loads(raw)
    except (TypeError, ValueError, RecursionError):
        return None
    if isinstance(headers, dict) and all(isinstance(text, str) for text in headers.values()):
        return headers
    return None

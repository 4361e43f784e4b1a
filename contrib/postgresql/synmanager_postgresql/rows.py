"""Messages as columns, and back."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

from psycopg.pq import Escaping

from synmanager.errors import InvalidJob
from synmanager.message import Message, Rank
from synmanager_postgresql.wire import Parameter, Row, array

__all__ = ["COLUMNS", "data", "number", "read", "storable", "text", "write"]

#: What :func:`read` takes.
COLUMNS = "id, rank, submitted_at, schema, headers, body"

_RANKS = {int(rank): rank for rank in Rank}


def write(messages: Sequence[Message]) -> tuple[Parameter, ...]:
    """The columns of a batch, each as an array: id, rank, time, schema, headers, body.

    Raises:
        InvalidJob: an id that no text of PostgreSQL's can be.
    """
    for message in messages:
        if storable(message.id) != message.id:
            raise InvalidJob("PostgreSQL cannot store an id with a null character or a surrogate")
    return (
        array([message.id for message in messages]),
        array([str(int(message.rank)) for message in messages]),
        array([None if m.submitted_at is None else repr(m.submitted_at) for m in messages]),
        array([str(message.schema) for message in messages]),
        array([json.dumps(dict(m.headers)) if m.headers else "" for m in messages]),
        array([message.body for message in messages], of_bytes=True),
    )


def read(row: Row) -> tuple[Message, str | None]:
    """A message of a row that may have come from anyone, and what is wrong with it, if so."""
    message_id, rank, submitted_at, schema, raw_headers, body = row
    problems = []
    at = None if submitted_at is None else float(submitted_at)
    if at is not None and not math.isfinite(at):
        problems.append("its time of submission is not a number")
        at = None
    version = int(schema or 0)
    if version < 0:
        problems.append("its schema is not a number")
        version = 0
    if int(rank or 0) not in _RANKS:
        problems.append("its rank is unknown")
    headers = _headers(raw_headers) if raw_headers else {}
    if headers is None:
        problems.append("its headers are not a JSON object of texts")
    message = Message(
        data(body),
        text(message_id),
        _RANKS.get(int(rank or 0), Rank.NORMAL),
        at,
        version,
        headers or {},
    )
    return message, "; ".join(problems) or None


def text(column: bytes | None) -> str:
    return (column or b"").decode("utf-8", "replace")


def data(column: bytes | None) -> bytes:
    return bytes(Escaping().unescape_bytea(column or b""))


def number(column: bytes | None) -> int:
    return int(column or 0)


def storable(words: str) -> str:
    """The text as PostgreSQL can store it."""
    return words.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode()


def _headers(raw: bytes) -> dict[str, str] | None:
    try:
        headers = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if isinstance(headers, dict) and all(isinstance(value, str) for value in headers.values()):
        return headers
    return None

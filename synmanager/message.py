"""A job as bytes, and back.

The body on the wire is the job's bare JSON object, as 0.1.0 wrote it. What this project adds
(id, rank, times) travels beside it: in AMQP properties and headers, in stream fields.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

from synmanager.errors import InvalidJob, Undecodable

__all__ = [
    "DEFAULT_MAX_BYTES",
    "MAX_DEPTH",
    "SCHEMA",
    "Message",
    "Rank",
    "decode",
    "dump",
    "encode",
    "new_id",
]

#: Version of what travels beside the body. A reader refuses what is newer than itself.
SCHEMA = 1

#: Half of RabbitMQ 4's own limit of 16 MiB, so that a dead letter's headers fit as well.
DEFAULT_MAX_BYTES = 8 * 1024 * 1024

#: CPython's JSON reader gives up near the recursion limit (1,000 frames by default), part of
#: which the reader's own program has already used.
MAX_DEPTH = 500

_encode = json.JSONEncoder(default=str, sort_keys=True).encode

_STRINGS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')


class Rank(IntEnum):
    """How urgent a job is within its phase. Higher runs first, strictly."""

    LOW = 0
    NORMAL = 1
    HIGH = 2

    @classmethod
    def parse(cls, value: Rank | str) -> Rank:
        """Return the rank that ``value`` names.

        Raises:
            InvalidJob: if there is no such rank.
        """
        if isinstance(value, cls):
            return value
        try:
            return cls[value.upper()] if isinstance(value, str) else cls(value)
        except (KeyError, ValueError, AttributeError):
            known = ", ".join(repr(rank.name.lower()) for rank in reversed(cls))
            raise InvalidJob(f"priority must be one of {known}, not {value!r}") from None


def new_id() -> str:
    """A message id that nobody else has: 32 hexadecimal digits."""
    return os.urandom(16).hex()


@dataclass(frozen=True)
class Message:
    """One job, ready for the wire.

    Attributes:
        body: the JSON object, UTF-8.
        id: stays the same over every retry and redelivery.
        rank: see :class:`Rank`.
        submitted_at: seconds since the epoch by the producer's clock; None if it did not say.
        schema: what wrote it; 0 for a message without this project's metadata.
    """

    body: bytes
    id: str = field(default_factory=new_id)
    rank: Rank = Rank.NORMAL
    submitted_at: float | None = field(default_factory=time.time)
    schema: int = SCHEMA


def dump(job: Mapping[str, Any], max_bytes: int = DEFAULT_MAX_BYTES) -> str:
    """Write a job as 0.1.0 does: JSON, keys sorted, ``str()`` of what JSON does not know.

    Raises:
        InvalidJob: a cycle, keys that JSON cannot order or tell apart, a lone surrogate, nesting
            deeper than :data:`MAX_DEPTH`, or more than ``max_bytes`` bytes.
    """
    if not isinstance(job, dict | Mapping):  # a dict is told at once, other mappings are not
        raise InvalidJob(f"a job is a mapping of names to values, not {type(job).__name__}")
    try:
        plain = job if isinstance(job, dict) else dict(job)
        text = _encode(plain)
        if "\\ud" in text:  # an escaped surrogate: half of a pair, or alone
            json.dumps(plain, default=str, ensure_ascii=False).encode()
        if '"NaN":' in text:  # of keys that can be sorted, only NaN may differ and read the same
            json.loads(text, object_pairs_hook=_refuse_twins)
    except RecursionError:
        raise InvalidJob(f"the job is nested more than {MAX_DEPTH} deep, or cyclic") from None
    except UnicodeEncodeError:
        raise InvalidJob("the job holds a lone surrogate, which UTF-8 cannot carry") from None
    except TypeError as error:
        raise InvalidJob(f"the job's keys must all be strings: {error}") from error
    except Exception as error:  # default=str runs the caller's __str__, which may raise anything
        raise InvalidJob(f"the job cannot be written as JSON: {error}") from error
    if len(text) > max_bytes:  # json.dumps writes ASCII: characters are bytes
        raise InvalidJob(
            f"the job is {len(text):,} bytes of JSON, over the limit of {max_bytes:,}; "
            "store the data elsewhere and send its address"
        )
    if _depth(text) > MAX_DEPTH:
        raise InvalidJob(f"the job is nested more than {MAX_DEPTH} deep")
    return text


def encode(job: Mapping[str, Any], max_bytes: int = DEFAULT_MAX_BYTES) -> bytes:
    """:func:`dump`, as the bytes of a body."""
    return dump(job, max_bytes).encode("ascii")


def decode(body: bytes, max_bytes: int = DEFAULT_MAX_BYTES) -> dict[str, Any]:
    """Read a body that may have come from anyone.

    Raises:
        Undecodable: it is not a JSON object in UTF-8, is nested too deep, or is too long.
    """
    if len(body) > max_bytes:
        raise Undecodable(f"the body is {len(body):,} bytes, over the limit of {max_bytes:,}")
    try:
        job = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Undecodable(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise Undecodable("the body is nested too deep to read") from None
    except ValueError as error:
        raise Undecodable(f"the body is not JSON: {error}") from None
    if not isinstance(job, dict):
        raise Undecodable(f"the body is a JSON {type(job).__name__}, not an object")
    return job


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("two of its keys are the same once they are strings")
    return dict(pairs)


def _depth(text: str) -> int:
    # Counting brackets is a lower cost than following them, and nearly always settles it.
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    for mark in re.findall(r"[\[{\]}]", _STRINGS.sub("", text)):
        depth += 1 if mark in "[{" else -1
        deepest = max(deepest, depth)
    return deepest

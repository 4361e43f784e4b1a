"""A job as bytes, and back.

The body on the wire is the job's bare JSON object, as 0.1.0 wrote it. What this project adds
(id, rank, times) travels beside it: in AMQP properties and headers, in stream fields.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from typing import Any, Literal, NoReturn, TypeAlias

from synmanager.errors import InvalidJob, Undecodable
from synmanager.interrupts import is_from_handler
from synmanager.text import quoted, shown
from synmanager.values import Refused, Writer, keys_fit, place

__all__ = [
    "DEFAULT_MAX_BYTES",
    "MAX_DEPTH",
    "RANK_NAMES",
    "SCHEMA",
    "TIME_LIMIT",
    "Message",
    "Priority",
    "Rank",
    "decode",
    "dump",
    "encode",
    "header_text",
    "header_texts",
    "new_id",
    "new_ids",
    "with_headers",
]

#: Version of what travels beside the body. A reader refuses what is newer than itself.
SCHEMA = 1

#: Half of RabbitMQ 4's own limit of 16 MiB, so that a dead letter's headers fit as well.
DEFAULT_MAX_BYTES = 8 * 1024 * 1024

#: CPython's JSON reader gives up near the recursion limit (1,000 frames by default), part of
#: which the reader's own program has already used.
MAX_DEPTH = 500

#: The header that says for how long a job may run: seconds, as ``repr`` of a float writes them.
TIME_LIMIT = "time-limit"


class _Foreign(Exception):
    """There is a value that JSON does not know."""


def _stop(value: object) -> NoReturn:
    raise _Foreign


def _plain_encoder() -> Callable[[dict[str, Any]], str]:
    """JSONEncoder's own, made once: it makes one for every call, for a third of the call's time."""
    encode = json.JSONEncoder(default=_stop, sort_keys=True).encode
    make = getattr(json.encoder, "c_make_encoder", None)
    if make is None:  # not CPython
        return encode
    escape = json.encoder.encode_basestring_ascii
    write = make(None, _stop, escape, None, ": ", ", ", True, False, True)

    def encode_fast(job: dict[str, Any]) -> str:
        try:
            return "".join(write(job, 0))
        except RecursionError:  # it does not look for cycles
            return encode(job)

    return encode_fast


_encode_plain = _plain_encoder()

_STRINGS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')


class Rank(IntEnum):
    """How urgent a job is within its phase. Higher runs first, strictly.

    Whatever takes one takes its name as well: ``"high"``, ``"normal"`` or ``"low"``.

    Example:
        >>> Rank.parse("high") is Rank.HIGH
        True
    """

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
            raise InvalidJob(f"priority must be one of {known}, not {quoted(value)}") from None


#: The name of each rank, at its number: an enumeration takes three calls to tell it.
RANK_NAMES = tuple(rank.name.lower() for rank in Rank)

#: What ``priority=`` takes.
Priority: TypeAlias = Rank | Literal["high", "normal", "low"]


def new_id() -> str:
    """A message id that nobody else has: 32 hexadecimal digits."""
    return os.urandom(16).hex()


def new_ids(count: int) -> list[str]:
    """As many such ids, ascending: where a broker keeps an index, they lie side by side."""
    batch = os.urandom(12).hex()
    return [f"{batch}{number:08x}" for number in range(count)]


@dataclass(frozen=True, init=False)
class Message:
    """One job, ready for the wire.

    Attributes:
        body: the JSON object, UTF-8.
        id: stays the same over every retry and redelivery; by default a new one.
        rank: see :class:`Rank`.
        submitted_at: seconds since the epoch by the producer's clock; None if it did not say.
            By default it is now.
        schema: what wrote it; 0 for a message without this project's metadata.
        headers: short texts by name that travel with the message, through every retry, into
            the dead letters and back. Names are lower-case words joined by ``-``.
    """

    body: bytes
    id: str
    rank: Rank
    submitted_at: float | None
    schema: int
    headers: Mapping[str, str] = field(hash=False)

    def __init__(
        self,
        body: bytes,
        id: str | None = None,
        rank: Rank = Rank.NORMAL,
        submitted_at: float | Literal["now"] | None = "now",
        schema: int = SCHEMA,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        # What a frozen dataclass makes for itself takes more than twice as long.
        fields = self.__dict__
        fields["body"] = body
        fields["id"] = new_id() if id is None else id
        fields["rank"] = rank
        fields["submitted_at"] = time.time() if submitted_at == "now" else submitted_at
        fields["schema"] = schema
        fields["headers"] = {} if headers is None else headers


def with_headers(messages: Iterable[Message], more: Mapping[str, str]) -> list[Message]:
    """The messages with more headers, unless they have such; neighbours go on sharing theirs."""
    result: list[Message] = []
    before: Mapping[str, str] | None = None
    for one in messages:
        if one.headers is not before:
            before = one.headers
            headers = {**more, **before}
        result.append(Message(one.body, one.id, one.rank, one.submitted_at, one.schema, headers))
    return result


def header_texts(messages: Iterable[Message]) -> Iterator[str]:
    """Each message's headers as a JSON object, "" for none; what neighbours share, once."""
    before: Mapping[str, str] | None = None
    text = ""
    for one in messages:
        if one.headers is not before:
            before = one.headers
            text = header_text(before)
        yield text


def header_text(headers: Mapping[str, str]) -> str:
    """Headers as a JSON object, "" for none."""
    return json.dumps(dict(headers)) if headers else ""


def dump(job: Mapping[str, Any], max_bytes: int = DEFAULT_MAX_BYTES) -> str:
    """Write a job as 0.1.0 does: JSON, keys sorted, ``str()`` of what JSON has no form for.

    A warning says so, once for each type, where that is an address or leaves out a part.

    Raises:
        InvalidJob: a cycle, keys that JSON cannot order or tell apart, a lone surrogate, nesting
            deeper than :data:`MAX_DEPTH`, or more than ``max_bytes`` bytes.
    """
    return _write(job, max_bytes, "job", strict=False)


def encode(
    job: Mapping[str, Any], max_bytes: int = DEFAULT_MAX_BYTES, *, name: str = "job"
) -> bytes:
    """Write a job, or a result, that arrives as it is given: as :func:`dump`, but refusing.

    Args:
        name: what it is called in an error, "result" for one.

    Raises:
        InvalidJob: as :func:`dump`, and a value that JSON has no form for, naming where it is.
    """
    return _write(job, max_bytes, name, strict=True).encode("ascii")


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


def _write(job: Mapping[str, Any], max_bytes: int, name: str, *, strict: bool) -> str:
    if not isinstance(job, dict) and not isinstance(job, Mapping):  # a dict is told at once
        kind = shown(type(job).__name__)
        raise InvalidJob(f"a {name} is a mapping of names to values, not {kind}")
    plain: dict[str, Any] = {}
    try:
        plain = job if isinstance(job, dict) else dict(islice(job.items(), max_bytes))
        try:
            text = _encode_plain(plain)
        except _Foreign:
            writer = Writer(plain, max_bytes, strict=strict)
            text = json.JSONEncoder(default=writer, sort_keys=True).encode(plain)
        # One character is looked for much faster, and few jobs have anything escaped.
        if "\\" in text and "\\ud" in text:  # an escaped surrogate: half of a pair, or alone
            writer = Writer(plain, max_bytes, strict=strict)
            json.JSONEncoder(default=writer, ensure_ascii=False).encode(plain).encode()
        if '"NaN":' in text:  # of keys that can be sorted, only NaN may differ and read the same
            json.loads(text, object_pairs_hook=_refuse_twins)
    except Exception as error:
        if is_from_handler(error):
            raise
        raise _refusal(error, plain, name) from error.__cause__
    if len(text) > max_bytes:  # json.dumps writes ASCII: characters are bytes
        raise InvalidJob(
            f"the {name} is {len(text):,} bytes of JSON, over the limit of {max_bytes:,}; "
            "store the data elsewhere and send its address"
        )
    # Counting brackets is a lower cost than following them, and nearly always settles it.
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise InvalidJob(f"the {name} is nested more than {MAX_DEPTH} deep")
    return text


def _refusal(error: Exception, job: dict[str, Any], name: str) -> InvalidJob:
    """What went wrong in writing a job, and where in it."""

    def where(found: Callable[[Any], bool]) -> str:
        return place(name, job, found)

    if isinstance(error, RecursionError):
        return InvalidJob(f"the {name} is nested more than {MAX_DEPTH} deep, or cyclic")
    if isinstance(error, Refused):
        culprit = error.value  # or its like, where it was made on the way
        path = where(lambda value: value is culprit)
        path = path or where(lambda value: type(value) is type(culprit))
        return InvalidJob(f"{path or f'a value of the {name}'} {error}")
    if isinstance(error, UnicodeEncodeError):
        path = where(_is_broken) or f"the {name}"
        return InvalidJob(f"{path} holds a lone surrogate, which UTF-8 cannot carry")
    if isinstance(error, TypeError):
        path = where(lambda value: isinstance(value, dict) and not keys_fit(value))
        if path:
            return InvalidJob(f"the keys of {path} must all be strings: {shown(error)}")
    return InvalidJob(f"the {name} cannot be written as JSON: {shown(error)}")


def _is_broken(value: object) -> bool:
    """Whether a text, or a key of a dict, is none that UTF-8 can write."""
    texts = value if isinstance(value, dict) else (value,)
    try:
        for text in texts:
            if isinstance(text, str):
                text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("two of its keys are the same once they are strings")
    return dict(pairs)


def _depth(text: str) -> int:
    depth = deepest = 0
    for mark in re.findall(r"[\[{\]}]", _STRINGS.sub("", text)):
        depth += 1 if mark in "[{" else -1
        deepest = max(deepest, depth)
    return deepest

"""Messages as kombu carries them: the body bare, everything else in headers and properties.

===========================  ======================================================================
``x-synmanager-schema``      version of all this
``x-synmanager-submitted``   seconds since the epoch; absent if the producer did not say
``x-synmanager-rank``        the name of the rank, in small letters
``x-synmanager-attempts``    deliveries so far that came to nothing, crashes included
``x-synmanager-due``         of a delayed message: seconds since the epoch
``x-synmanager-until``       of a delayed message: when it leaves the queue that it waits in
``x-synmanager-reason``      of a dead letter, with ``-traceback`` and ``-died``
``x-synmanager-h-NAME``      the message's own header of that name
===========================  ======================================================================

All values are texts: that is what every transport carries unchanged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from synmanager.backends.base import DeadLetter
from synmanager.message import SCHEMA, Message, Rank, new_id

__all__ = ["Parcel", "no_parcel", "read", "write"]

_OWN = "x-synmanager-"
_HEADER = f"{_OWN}h-"

#: Bytes. All headers of a message share one frame of AMQP, of 128 KiB by default.
_LONGEST_TEXT = 24_576

#: More is nonsense, from whoever wrote it.
_MOST_ATTEMPTS = 1_000_000_000


@dataclass(frozen=True)
class Parcel:
    """A message and what this driver must know of it.

    Attributes:
        attempts: deliveries before this one that came to nothing.
        due, until: seconds since the epoch, of a delayed message; see above.
        reason, traceback, died: of a dead letter.
        defect: what in its headers cannot be read.
    """

    message: Message
    attempts: int = 0
    due: float | None = None
    until: float | None = None
    reason: str = ""
    traceback: str = ""
    died: float | None = None
    defect: str | None = None

    def failed(self) -> Parcel:
        return replace(self, attempts=self.attempts + 1)

    def dead(self, reason: str, traceback: str) -> Parcel:
        return replace(
            self, due=None, until=None, reason=_cut(reason), traceback=_cut(traceback),
            died=time.time(),
        )  # fmt: skip

    def anew(self) -> Parcel:
        """Of a dead letter: the message as it was submitted."""
        return Parcel(self.message)

    def letter(self, queue: str) -> DeadLetter:
        return DeadLetter(
            self.message, queue, self.reason, self.attempts, self.died or 0.0, self.traceback
        )


@dataclass
class _Reader:
    headers: Mapping[str, Any]
    problems: list[str] = field(default_factory=list)

    def number(self, name: str) -> float | None:
        value = self.headers.get(_OWN + name)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not 0 <= number < math.inf:
            self.problems.append(f"its header {_OWN}{name} is {value!r:.50}")
            return None
        return number

    def text(self, name: str) -> str:
        value = self.headers.get(_OWN + name, "")
        return value if isinstance(value, str) else str(value)


def write(parcel: Parcel) -> tuple[dict[str, str], dict[str, Any]]:
    """The headers and properties of a message."""
    message = parcel.message
    headers = {f"{_OWN}rank": message.rank.name.lower()}
    numbers = {"submitted": message.submitted_at, "due": parcel.due, "until": parcel.until}
    for name, value in numbers.items():
        if value is not None:
            headers[_OWN + name] = repr(float(value))
    if message.schema:
        headers[f"{_OWN}schema"] = str(message.schema)
    if parcel.attempts:
        headers[f"{_OWN}attempts"] = str(parcel.attempts)
    if parcel.died is not None:
        headers[f"{_OWN}died"] = repr(parcel.died)
        headers[f"{_OWN}reason"] = parcel.reason
        headers[f"{_OWN}traceback"] = parcel.traceback
    headers |= {_HEADER + name: value for name, value in message.headers.items()}
    return headers, {"message_id": message.id, "delivery_mode": 2}


def read(body: Any, headers: Mapping[str, Any], properties: Mapping[str, Any]) -> Parcel:
    """Read a message that may have come from anyone."""
    reader = _Reader({name: headers[name] for name in headers if isinstance(name, str)})
    schema = reader.number("schema")
    attempts = reader.number("attempts") or 0
    message_id = properties.get("message_id")
    message = Message(
        _bytes(body),
        message_id if isinstance(message_id, str) and message_id else new_id(),
        Rank.__members__.get(reader.text("rank").upper(), Rank.NORMAL),
        reader.number("submitted"),
        0 if schema is None else int(schema),
        {
            name.removeprefix(_HEADER): str(value)
            for name, value in reader.headers.items()
            if name.startswith(_HEADER)
        },
    )
    return Parcel(
        message,
        int(min(attempts, _MOST_ATTEMPTS)),
        reader.number("due"),
        reader.number("until"),
        reader.text("reason"),
        reader.text("traceback"),
        reader.number("died"),
        "; ".join(reader.problems) or None,
    )


def no_parcel(raw: bytes, error: Exception) -> Parcel:
    """For what a stranger has put in a queue, and kombu cannot read."""
    message = Message(raw, new_id(), submitted_at=None, schema=0)
    return Parcel(message, defect=f"no message of kombu's: {type(error).__name__}: {error}")


assert SCHEMA > 0  # 0 is written as no header


def _bytes(body: Any) -> bytes:
    if isinstance(body, bytes):
        return body
    if isinstance(body, str):
        return body.encode("utf-8", "surrogatepass")
    return b"" if body is None else bytes(body)


def _cut(text: str) -> str:
    """What fits of it, and what UTF-8 and PostgreSQL can carry."""
    return (
        text.replace("\0", r"\x00")
        .encode("utf-8", "backslashreplace")[:_LONGEST_TEXT]
        .decode("utf-8", "ignore")
    )

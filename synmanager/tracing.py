"""Whether this program uses OpenTelemetry, asked once per call; without it nothing is done.

A program that wants spans has imported OpenTelemetry's API before, to say where they go. So that
is looked for and never imported: where nobody uses it, this costs a look into a dictionary.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from synmanager.backends.base import Address, Delivery
    from synmanager.message import Message

__all__ = ["Trace", "processing", "sending", "trace_id"]


class Trace(Protocol):
    """What is around one run of a job: a ``with`` block, entered once, around the callback."""

    def __enter__(self) -> object: ...  # pragma: no cover

    def __exit__(self, *raised: Any) -> None: ...  # pragma: no cover

    def after(self) -> AbstractContextManager[object]:
        """A ``with`` block around what follows from the run, such as to publish its result."""
        ...  # pragma: no cover


class _Nothing:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *raised: Any) -> None:
        pass

    def after(self) -> _Nothing:
        return self


_nothing = _Nothing()


def sending(
    address: Address, exchange: str, routing_key: str, messages: Sequence[Message]
) -> AbstractContextManager[Sequence[Message]]:
    """A ``with`` block around the publishing of some messages; gives them as they are to go out."""
    if "opentelemetry.trace" in sys.modules:
        from synmanager import spans

        return spans.Sending(address, exchange, routing_key, messages)
    return nullcontext(messages)


def processing(address: Address, delivery: Delivery) -> Trace:
    """What is to be around the callback that gets a delivery's job."""
    if "opentelemetry.trace" in sys.modules:
        from synmanager import spans

        return spans.Processing(address, delivery)
    return _nothing


def trace_id() -> str:
    """The trace that the calling thread works in: 32 hexadecimal digits, or ""."""
    if "opentelemetry.trace" in sys.modules:
        from synmanager import spans

        return spans.trace_id()
    return ""

"""Spans and durations by OpenTelemetry's semantic conventions for messaging.

Imports the API, and is imported by ``tracing`` only, where the program itself uses that. Nothing
here can fail a job: what the program's exporters, samplers and propagators raise is logged once.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from time import perf_counter
from typing import Any

from opentelemetry import context, metrics, propagate, trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

from synmanager import __version__
from synmanager.backends.base import Address, Delivery
from synmanager.interrupts import is_from_handler
from synmanager.message import Message, with_headers
from synmanager.phases import PHASES
from synmanager.text import shown

__all__ = ["Processing", "Sending", "trace_id"]

logger = logging.getLogger(__name__)

#: What the conventions call a broker; others go by their URL's scheme.
_SYSTEMS = {"amqp": "rabbitmq", "amqps": "rabbitmq", "rediss": "redis"}

#: Those that are at no address.
_NOWHERE = ("memory", "sqlite")

#: Names of what travels, and characters of all of it: beside a job there is not much room.
_NAME, _MOST = re.compile(r"[a-z0-9][a-z0-9-]*"), 8_192

#: Seconds. The conventions' own buckets end at ten, at which most jobs have hardly begun.
_BUCKETS = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
_LONG = (*_BUCKETS, 30.0, 60.0, 300.0, 900.0, 1800.0, 3600.0, 14_400.0, 43_200.0, 86_400.0)

_URL = "https://opentelemetry.io/schemas/1.37.0"
_SCOPE = "synmanager"

# Stand-ins until the program names its providers, which may be later than here.
_tracer = trace.get_tracer(_SCOPE, __version__, schema_url=_URL)
_meter = metrics.get_meter(_SCOPE, __version__, schema_url=_URL)
_processed = _meter.create_histogram(
    "messaging.process.duration",
    unit="s",
    description="Duration of processing operation.",
    explicit_bucket_boundaries_advisory=_LONG,
)
_called = _meter.create_histogram(
    "messaging.client.operation.duration",
    unit="s",
    description="Duration of messaging operation initiated by a producer or consumer client.",
    explicit_bucket_boundaries_advisory=_BUCKETS,
)

_queues = {(phase.exchange.name, phase.routing_key): phase.queue for phase in PHASES.values()}
_said: set[type] = set()


def trace_id() -> str:
    """The trace that the calling thread works in: 32 hexadecimal digits, or ""."""
    found = trace.get_current_span().get_span_context()
    return format(found.trace_id, "032x") if found.is_valid else ""


@lru_cache(maxsize=256)
def _attributes(
    scheme: str, host: str | None, port: int | None, name: str, destination: str
) -> dict[str, Any]:
    """What all spans and durations of one kind say; nobody is to change it."""
    attributes: dict[str, Any] = {
        "messaging.operation.name": name,
        "messaging.operation.type": name,
        "messaging.system": _SYSTEMS.get(scheme, scheme),
        "messaging.destination.name": destination,
    }
    if host is not None and scheme not in _NOWHERE:
        attributes["server.address"] = host
        if port is not None:
            attributes["server.port"] = port
    return attributes


class _Operation(AbstractContextManager[Any]):
    """A span and a measured duration around a ``with`` block."""

    def __init__(self, address: Address, name: str, destination: str) -> None:
        self._name = f"{name} {destination}"
        self._attributes = _attributes(
            address.scheme, address.host, address.port, name, destination
        )
        self._span: Span = trace.INVALID_SPAN
        self._token: Any = None
        self._began = perf_counter()

    def _begin(
        self, kind: SpanKind, of_message: Mapping[str, Any], headers: Mapping[str, str] | None
    ) -> context.Context:
        """Start the span; its context, with what travelled in headers besides the link."""
        links, around = [], context.get_current()
        if headers:
            told = propagate.extract(headers, context=around)
            sender = trace.get_current_span(told)
            ambient = trace.get_current_span(around)
            if sender is not ambient and sender.get_span_context().is_valid:
                links.append(Link(sender.get_span_context()))
            around = trace.set_span_in_context(ambient, told)
        self._span = _tracer.start_span(
            self._name, around, kind, {**self._attributes, **of_message}, links
        )
        return trace.set_span_in_context(self._span, around)

    def _end(self, error: BaseException | None, histogram: metrics.Histogram) -> None:
        seconds = perf_counter() - self._began
        if self._token is not None:
            try:
                context.detach(self._token)
                self._tell(error, seconds, histogram)
            except Exception as trouble:
                _pass_over(trouble)

    def _tell(
        self, error: BaseException | None, seconds: float, histogram: metrics.Histogram
    ) -> None:
        attributes = self._attributes
        if error is not None:
            kind = _type_of(error)
            attributes = {**attributes, "error.type": kind}
            self._span.set_attribute("error.type", kind)
            self._span.record_exception(error)
            self._span.set_status(Status(StatusCode.ERROR, shown(error, 500)))
        self._span.end()
        histogram.record(seconds, attributes)


class Sending(_Operation):
    """Around the publishing of one or more messages: one span, whose context each of them takes."""

    def __init__(
        self, address: Address, exchange: str, routing_key: str, messages: Sequence[Message]
    ) -> None:
        queue = _queues.get((exchange, routing_key))
        super().__init__(address, "send", queue or routing_key or exchange)
        self._messages = messages

    def __enter__(self) -> Sequence[Message]:
        messages = self._messages
        if not messages:
            return messages
        about: dict[str, Any] = (
            {"messaging.message.id": messages[0].id}
            if len(messages) == 1
            else {"messaging.batch.message_count": len(messages)}
        )
        try:
            within = self._begin(SpanKind.PRODUCER, about, None)
            carrier: dict[str, str] = {}
            propagate.inject(carrier, context=within)
            if carrier:
                messages = with_headers(messages, _fit(carrier))
            self._token = context.attach(within)
        except Exception as error:
            _pass_over(error)
        self._began = perf_counter()
        return messages

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._end(error, _called)


class Processing(_Operation):
    """Around a callback: a span that is linked to its sender's, which may be hours old."""

    def __init__(self, address: Address, delivery: Delivery) -> None:
        super().__init__(address, "process", delivery.queue)
        self._delivery = delivery
        self._within: context.Context | None = None

    def __enter__(self) -> None:
        message = self._delivery.message
        about = {
            "messaging.message.id": message.id,
            "synmanager.attempt": self._delivery.attempt,
        }
        try:
            self._within = self._begin(SpanKind.CONSUMER, about, message.headers)
            self._token = context.attach(self._within)
        except Exception as error:
            _pass_over(error)
        self._began = perf_counter()

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._end(error, _processed)

    @contextmanager
    def after(self) -> Iterator[None]:
        """What is sent here belongs to the callback's span, although that is over."""
        token = None if self._within is None else context.attach(self._within)
        try:
            yield
        finally:
            if token is not None:
                context.detach(token)


def _fit(carrier: Mapping[str, str]) -> dict[str, str]:
    """What may travel beside a job; a program's own propagators may write anything."""
    size = sum(len(name) + len(text) for name, text in carrier.items())
    if size > _MOST or not all(_NAME.fullmatch(name) for name in carrier):
        carrier = {name: carrier[name] for name in ("traceparent",) if name in carrier}
    return dict(carrier)


def _type_of(error: BaseException) -> str:
    kind = type(error)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else (f"{kind.__module__}.{kind.__qualname__}")
    )


def _pass_over(error: Exception) -> None:
    """Log, once for each kind, what must not reach the job."""
    if is_from_handler(error):
        raise error
    if type(error) not in _said:
        _said.add(type(error))
        logger.warning("OpenTelemetry does not work; jobs run as ever", exc_info=error)

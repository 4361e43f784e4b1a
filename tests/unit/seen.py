"""What OpenTelemetry's own exporters get of a test."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from synmanager import spans

__all__ = ["Seen", "about", "ids", "links"]


class Seen:
    """What went to the SDK's own exporters."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._exporter, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._meters = MeterProvider([self._reader])
        meter = self._meters.get_meter("test")
        monkeypatch.setattr(spans, "_tracer", self.provider.get_tracer("test"))
        for name, metric in (
            ("_processed", "messaging.process.duration"),
            ("_called", "messaging.client.operation.duration"),
        ):
            monkeypatch.setattr(spans, name, meter.create_histogram(metric, unit="s"))
        monkeypatch.setattr(spans, "_said", set())

    def close(self) -> None:
        self.provider.shutdown()
        self._meters.shutdown()

    def spans(self, name: str = "") -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if name in ("", span.name)]

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.spans(name)
        return span

    def points(self, name: str) -> list[tuple[int, dict[str, Any]]]:
        """The counts and attributes of a histogram."""
        data = self._reader.get_metrics_data()
        return [
            (point.count, dict(point.attributes or {}))
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
            if isinstance(point, HistogramDataPoint)
        ]


def ids(span: ReadableSpan) -> tuple[int, int]:
    found = span.get_span_context()
    assert found is not None
    return found.trace_id, found.span_id


def links(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


def about(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})

"""Jobs on their whole way, in a program that uses OpenTelemetry, or not.

    python -m benchmarks.programs.traced URL JOBS off|api|sdk SECONDS

Says how many of them a second were submitted one by one and consumed, each of which takes so many
seconds. With ``sdk`` it has spans
in batches and durations, both of which are thrown away at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.ours import Ours
from benchmarks.programs.processes import say


def _use_sdk() -> None:
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import (
        BatchSpanProcessor,
        SpanExporter,
        SpanExportResult,
    )

    class Nowhere(SpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(Nowhere()))
    trace.set_tracer_provider(provider)
    metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))


def run(url: str, count: int, telemetry: str, work: float) -> None:
    if telemetry == "sdk":
        _use_sdk()
    elif telemetry == "api":
        import opentelemetry.trace  # noqa: F401
    with Ours(url) as ours:
        ours.process_and_listen(min(count, 100), work)
        say(ours.process_and_listen(count, work))


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4]))

"""Programs that send their spans somewhere: a Director, and a site's worker.

    python traced.py direct SITE FILE
    python traced.py work SITE FILE [MAX_JOBS]

Their broker is the environment's. Each span is a line of JSON in FILE, by the SDK's own exporter.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from synmanager import Reject, Retry, Worker, current_job
from synmanager.train import TrainProducerOperator


@contextmanager
def traced(site: str, file: str) -> Iterator[None]:
    provider = TracerProvider(resource=Resource({"service.name": site}))
    with open(file, "a") as lines:
        exporter = ConsoleSpanExporter(
            out=lines, formatter=lambda span: span.to_json(indent=None) + "\n"
        )
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        yield
        provider.shutdown()


def direct() -> None:
    with TrainProducerOperator() as producer:
        producer.submit({"run": "flaky"}, job_id="flaky", priority="high")
        producer.submit({"run": "poison"}, job_id="poison")
        producer.submit_many([{"run": "fine"}] * 2, job_ids=["fine-1", "fine-2"])


def train(run: str, site: str) -> dict[str, Any]:
    job = current_job()
    assert job is not None
    if run == "flaky" and job.attempt == 1:
        raise Retry("elsewhere", delay=0)
    if run == "poison" and site != "site-c":
        raise Reject("poison")
    return {"run": run}


if __name__ == "__main__":
    what, site, file, *rest = sys.argv[1:]
    with traced(site, file):
        if what == "work":
            worker = Worker({"train": lambda run: train(run, site)})
            worker.run(burst=True, max_jobs=int(rest[0]) if rest else None)
        else:
            direct()

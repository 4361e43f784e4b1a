"""Spans of a job's way, by OpenTelemetry's conventions; and that they can do it no harm."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grid import Grid
from opentelemetry import baggage, context, propagate
from opentelemetry.trace import SpanKind, StatusCode
from seen import Seen, about, ids, links

import synmanager
from synmanager import Cancelled, Reject, Retry, Worker, spans
from synmanager.completed import CompletedConsumerOperator
from synmanager.errors import PublishRefused
from synmanager.logs import JobFilter
from synmanager.train import TrainConsumerOperator, TrainProducerOperator

SOURCE = Path(synmanager.__file__).parent.parent


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    found = Seen(monkeypatch)
    yield found
    found.close()


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A broker whose retries are due at once."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/jobs.db"
        return
    grid = Grid()
    yield grid.url
    grid.close()


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNMANAGER_RETRY_DELAY", "0")


def work(url: str, train: Any, **options: Any) -> None:
    Worker({"train": train}, url=url, **options).run(burst=True)


def test_a_job_s_whole_way(seen: Seen, url: str) -> None:
    inside: list[str] = []

    def train(run: int) -> dict[str, int]:
        inside.append(spans.trace_id())
        return {"run": run}

    def archive(kwargs: dict[str, Any], host: str) -> None:
        assert kwargs == {"run": 1}  # nothing of it is in a body

    with TrainProducerOperator(url=url) as producer:
        job_id = producer.submit({"run": 1})
    work(url, train)
    with CompletedConsumerOperator(url=url) as archiver:
        archiver.poll_message(process_callback=archive)

    send, process = seen.one("send train"), seen.one("process train")
    result, archived = seen.one("send completed"), seen.one("process completed")
    system = url.partition(":")[0]
    common = {"messaging.system": system, "messaging.destination.name": "train"}
    assert (send.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert about(send) == {
        **common,
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.message.id": job_id,
    }
    assert about(process) == {
        **common,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.message.id": job_id,
        "synmanager.attempt": 1,
    }
    assert links(process) == [ids(send)]
    assert process.parent is None
    assert ids(process)[0] != ids(send)[0]
    assert inside == [format(ids(process)[0], "032x")]
    assert result.parent is not None
    assert result.parent.span_id == ids(process)[1]
    assert links(archived) == [ids(result)]
    assert {span.status.status_code for span in seen.spans()} == {StatusCode.UNSET}
    assert spans.trace_id() == ""


def test_a_send_is_part_of_what_its_caller_does(seen: Seen, url: str) -> None:
    tracer = seen.provider.get_tracer("director")
    with TrainProducerOperator(url=url) as producer, tracer.start_as_current_span("cycle"):
        producer.process(run=1)
    parent = seen.one("send train").parent
    assert parent is not None
    assert parent.span_id == ids(seen.one("cycle"))[1]


def test_a_batch_is_one_span_that_each_of_its_jobs_is_linked_to(seen: Seen, url: str) -> None:
    with TrainProducerOperator(url=url) as producer:
        producer.submit_many([{"run": run} for run in range(3)])
        assert producer.submit_many([]) == []
    work(url, lambda run: None)
    send = seen.one("send train")
    assert about(send)["messaging.batch.message_count"] == 3
    assert "messaging.message.id" not in about(send)
    assert [links(span) for span in seen.spans("process train")] == [[ids(send)]] * 3


def test_each_attempt_is_a_span_of_its_own(seen: Seen, url: str) -> None:
    def train(run: int) -> None:
        raise Retry("later", delay=0) if len(seen.spans("process train")) < 1 else ValueError("no")

    with TrainProducerOperator(url=url) as producer:
        producer.submit({"run": 1}, time_limit=60)
    for _ in range(2):  # two sites
        work(url, train, max_attempts=2)
    with TrainConsumerOperator(url=url) as consumer:
        assert [letter.attempts for letter in consumer.dead_letters()] == [2]
        consumer.redrive()
        consumer.poll_message(lambda run: None)
    runs = seen.spans("process train")
    send = seen.one("send train")
    assert [links(span) for span in runs] == [[ids(send)]] * 3
    assert len({ids(span)[0] for span in runs}) == 3
    assert [about(span)["synmanager.attempt"] for span in runs] == [1, 2, 1]
    assert [about(span).get("error.type") for span in runs] == [
        "synmanager.errors.Retry",
        "ValueError",
        None,
    ]
    assert [span.status.status_code.name for span in runs] == ["ERROR", "ERROR", "UNSET"]
    assert [event.name for event in runs[1].events] == ["exception"]


@pytest.mark.parametrize("error", [Reject("no"), Cancelled("no"), SystemExit(1)])
def test_whatever_a_callback_raises_ends_its_span(
    seen: Seen, url: str, error: BaseException
) -> None:
    def train(run: int) -> None:
        raise error

    with TrainProducerOperator(url=url) as producer:
        producer.process(run=1)
    work(url, train, max_attempts=1)
    kind = about(seen.one("process train"))["error.type"]
    assert kind.rpartition(".")[2] == type(error).__name__
    assert spans.trace_id() == ""


def test_the_durations(seen: Seen, url: str) -> None:
    def train(run: int) -> None:
        if run == 2:
            raise Reject("no")

    with TrainProducerOperator(url=url) as producer:
        for run in range(4):
            producer.process(run=run)
    work(url, train)
    common = {
        "messaging.system": url.partition(":")[0],
        "messaging.destination.name": "train",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
    }
    points = seen.points("messaging.process.duration")
    points.sort(key=lambda point: -point[0])
    assert points == [(3, common), (1, {**common, "error.type": "synmanager.errors.Reject"})]
    ((count, attributes),) = seen.points("messaging.client.operation.duration")
    assert (count, attributes["messaging.operation.name"]) == (4, "send")


def test_what_was_not_sent_is_an_error(seen: Seen, grid: Grid) -> None:
    producer = grid.producer()
    grid.flaky(producer).fail("publish", PublishRefused("no room", ()))
    with pytest.raises(PublishRefused):
        producer.submit({"run": 1})
    send = seen.one("send train")
    assert about(send)["error.type"] == "synmanager.errors.PublishRefused"
    assert send.status.status_code is StatusCode.ERROR


def test_what_is_sent_with_it_travels_on_and_stays_beside_the_job(seen: Seen, grid: Grid) -> None:
    token = context.attach(baggage.set_baggage("cycle", "7"))
    grid.producer().submit({"run": 1}, time_limit=60)
    context.detach(token)
    (message,) = grid.ready("train")
    assert sorted(message.headers) == ["baggage", "time-limit", "traceparent"]
    assert message.body == b'{"run": 1}'
    told: list[Any] = []
    work(grid.url, lambda run: told.append(baggage.get_baggage("cycle")))
    assert told == ["7"]
    assert baggage.get_baggage("cycle") is None


def test_a_stranger_s_context_is_passed_over(seen: Seen, grid: Grid) -> None:
    grid.put({"run": 1}, headers={"traceparent": "00-zz-\x00", "tracestate": "=" * 1000})
    work(grid.url, lambda run: None)
    assert links(seen.one("process train")) == []


def test_trouble_with_it_is_told_once_and_costs_no_job(
    seen: Seen, grid: Grid, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def start_span(self, *_: Any) -> None:
            raise ValueError("sampler")

    monkeypatch.setattr(spans, "_tracer", Broken())
    ran: list[int] = []
    with caplog.at_level(logging.WARNING):
        for run in range(3):
            grid.producer().process(run=run)
        work(grid.url, lambda run: ran.append(run))
    assert ran == [0, 1, 2]
    told = [record for record in caplog.records if record.name == "synmanager.spans"]
    assert len(told) == 1


def test_what_propagators_write_is_kept_in_bounds(
    seen: Seen, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    inject = propagate.inject

    def chatty(carrier: dict[str, str], context: context.Context) -> None:
        inject(carrier, context=context)
        carrier["x-b3"] = "x" * 20_000

    monkeypatch.setattr(propagate, "inject", chatty)
    grid.producer().process(run=1)
    (message,) = grid.ready("train")
    assert list(message.headers) == ["traceparent"]


def test_the_log_of_a_callback_says_of_which_job_it_is(seen: Seen, grid: Grid) -> None:
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    handler = Kept()
    handler.addFilter(JobFilter())
    handler.setFormatter(
        logging.Formatter("%(phase)s/%(job_id)s#%(attempt)s %(trace_id)s %(message)s")
    )
    logger = logging.getLogger("of.a.library")
    logger.addHandler(handler)
    try:
        grid.producer().submit({"run": 1}, job_id="run-1")
        work(grid.url, lambda run: logger.warning("fits"))
        logger.warning("outside")
        logger.warning("mine", extra={"job_id": "own"})
    finally:
        logger.removeHandler(handler)
    trace_id = format(ids(seen.one("process train"))[0], "032x")
    assert lines == [f"train/run-1#1 {trace_id} fits", "-/-#- - outside", "-/own#- - mine"]


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, cwd=SOURCE, timeout=60, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


JOB = """
import sys
from synmanager.train import TrainConsumerOperator, TrainProducerOperator
from synmanager.logs import JobFilter
import logging
handler = logging.StreamHandler(sys.stdout)
handler.addFilter(JobFilter())
handler.setFormatter(logging.Formatter("%(job_id)s %(trace_id)s"))
logging.getLogger("mine").addHandler(handler)
producer, consumer = TrainProducerOperator(url="memory"), TrainConsumerOperator(url="memory")
producer.connect(), consumer.connect()
producer.submit({"run": 1}, job_id="run-1")
def train(run): logging.getLogger("mine").warning("here")
consumer.poll_message(train)
"""


def test_without_a_program_that_uses_it_nothing_is_imported() -> None:
    code = f"{JOB}\nprint([name for name in sys.modules if 'opentelemetry' in name])"
    assert run(code) == "run-1 -\n[]\n"


def test_a_program_that_says_where_spans_go_gets_them_whenever_it_says_so() -> None:
    code = f"""
{JOB}
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
producer.process(run=2)  # the API is there, and nobody has said anything yet
consumer.poll_message(train)
exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
producer.process(run=3)
consumer.poll_message(lambda run: None)
print([span.name for span in exporter.get_finished_spans()])
print(exporter.get_finished_spans()[0].instrumentation_scope.name)
provider.shutdown()
"""
    lines = run(code).splitlines()
    assert lines[2:] == ["['send train', 'process train']", "synmanager"]

"""What it costs to be watched: spans on against off, and a scrape."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Iterator
from functools import partial
from urllib.request import urlopen

from benchmarks.bench import Bench, Row
from benchmarks.brokers import BrokerMissing
from benchmarks.method import Comparison, Goal, Result, Samples, rounds
from benchmarks.programs.processes import Program
from synmanager.backends import create_backend
from synmanager.journal.events import EVENTS, Event, write
from synmanager.settings import load_settings

_SDK = "a tracer with a BatchSpanProcessor and a meter, whose exporters throw away what they get"


def _needs(package: str, name: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise BrokerMissing(f"{name} is not installed: pip install -e '.[bench]'")


def _traced(url: str, count: int, telemetry: str, work: float) -> float:
    with Program("traced", url, str(count), telemetry, str(work)) as program:
        return float(program.hear())


def _spans(bench: Bench, broker: str) -> Iterator[Result]:
    _needs("opentelemetry", "opentelemetry-sdk")
    count = bench.count(2_000)
    url = bench.brokers.amqp if broker == "RabbitMQ" else bench.brokers.redis
    for work, jobs in ((0.0, ""), (0.002, ", jobs of 2 ms")):
        sides = {each: partial(_traced, url, count, each, work) for each in ("off", "api", "sdk")}
        rates = rounds(sides, bench.repeats)
        for side, setting in (("sdk", _SDK), ("api", "the API alone, which records nothing")):
            yield Comparison(
                f"process() and listen_message with OpenTelemetry's {side.upper()}, {broker}{jobs}",
                "the same without",
                "jobs/s",
                rates[side],
                rates["off"],
                Goal(">=", 0.9),
                [setting],
            )


def _scrape(bench: Bench) -> Iterator[Result]:
    _needs("prometheus_client", "prometheus-client")
    from synmanager.lookout import Lookout
    from synmanager.metrics import serve

    jobs, url = bench.count(100_000), "memory:///benchmark-scrape"
    settings = load_settings(url=url)
    backend = create_backend(settings.address)
    backend.open()
    for begin in range(0, jobs, 500):
        data = {
            "phase": "train", "ids": [str(number) for number in range(begin, begin + 500)],
            "rank": "normal", "submitted_at": 1.0, "delay": 0,
        }  # fmt: skip
        backend.record(EVENTS, [write(Event("job.submitted", "d/1/x", 1.0, "train", data))])
    lookout = Lookout(settings, (), lambda text: None)
    lookout.start()
    port, end = serve(lookout, "127.0.0.1", 0)
    seconds = []
    try:
        while not lookout.hears:
            time.sleep(0.01)
        for _ in range(bench.count(50)):
            began = time.perf_counter()
            with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                answer.read()
            seconds.append((time.perf_counter() - began) * 1000)
            time.sleep(0.1)
    finally:
        end()
        lookout.stop()
        backend.close()
    yield Samples(
        f"synmanager exporter: a scrape while {jobs:,} jobs wait",
        "95th percentile",
        "ms",
        seconds,
        0.95,
        Goal("<", 50, "ms"),
    )


ROWS = (
    Row(
        "spans-rabbitmq",
        "OpenTelemetry on against off, RabbitMQ",
        partial(_spans, broker="RabbitMQ"),
    ),
    Row("spans-redis", "OpenTelemetry on against off, Redis", partial(_spans, broker="Redis")),
    Row("scrape", "a scrape of synmanager exporter", _scrape),
)

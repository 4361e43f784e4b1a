"""The command: which rows, how often, and where to write what was measured."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.brokers import (
    AMQP_VARIABLE,
    RABBITMQ,
    REDIS,
    REDIS_VARIABLE,
    BrokerMissing,
    Brokers,
)
from benchmarks.method import Result
from benchmarks.report import machine, read_results, render, write_results
from benchmarks.rows import ROWS

__all__ = ["main"]

_HERE = Path(__file__).parent
_RESULTS = _HERE / "results.json"
_CHART = _HERE.parent / "docs" / "images" / "benchmarks.svg"

_EXAMPLES = f"""\
examples:
  python -m benchmarks                             everything; takes about an hour
  python -m benchmarks --list                      the names of the rows
  python -m benchmarks --only redis-listen         one row
  python -m benchmarks --only memory import        two rows
  python -m benchmarks --quick                     everything in minutes; for a look, not a figure
  python -m benchmarks --draw                      nothing but the chart, from what was measured

Brokers are started on free ports and ended afterwards. To measure on others, name servers that
hold nothing else in {AMQP_VARIABLE} and {REDIS_VARIABLE}.
Peers: pip install -e '.[bench]'.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.list:
        for row in ROWS.values():
            print(f"{row.name:24} {row.title}")
        return 0
    results_path = options.json or (None if options.quick else _RESULTS)
    chart_path = options.chart or (None if options.quick else _CHART)
    if not options.draw:
        measured = _measure(options)
        if results_path is None:
            return 0
        write_results(results_path, measured[0], measured[1])
    if chart_path is not None and results_path is not None:
        from benchmarks.chart import draw  # matplotlib takes a second to import

        draw(read_results(results_path), chart_path)
        print(f"written: {results_path}, {chart_path}")
    return 0


def _measure(options: argparse.Namespace) -> tuple[dict[str, list[Result]], dict[str, str]]:
    measured: dict[str, list[Result]] = {}
    with Brokers(options.rabbitmq, options.redis, options.data) as brokers:
        bench = Bench(brokers, options.repeat, options.quick)
        for name in options.only or ROWS:
            print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
            try:
                measured[name] = list(ROWS[name].run(bench))
            except BrokerMissing as error:
                print(f"skipped: {error}", file=sys.stderr)
            else:
                print("done", file=sys.stderr)
        about = {**machine(), **brokers.describe(), "rounds": str(options.repeat)}
    for what, value in about.items():
        print(f"{what}: {value}")
    print()
    print(render([result for results in measured.values() for result in results]))
    return measured, about


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure synmanager against its drivers and against other job queues.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", choices=ROWS, help="run these rows only"
    )
    parser.add_argument(
        "--quick", action="store_true", help="few jobs; writes no file unless told where"
    )
    parser.add_argument(
        "--repeat", type=int, default=5, metavar="N", help="rounds of each row (default: 5)"
    )
    parser.add_argument("--rabbitmq", choices=RABBITMQ, default=RABBITMQ[0], help="to start")
    parser.add_argument("--redis", choices=REDIS, default=REDIS[0], help="to start")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="where started brokers keep their data (default: the temporary directory)",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="where the figures go; rows in it that are not measured now stay "
        "(default: benchmarks/results.json)",
    )
    parser.add_argument(
        "--chart", type=Path, metavar="FILE", help="default: docs/images/benchmarks.svg"
    )
    parser.add_argument(
        "--draw", action="store_true", help="measure nothing, draw what is in the file"
    )
    return parser

"""The command: which rows, how often, and where to write what was measured."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

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
from benchmarks.page import write_page
from benchmarks.report import machine, read_results, render, write_results
from benchmarks.rows import ROWS

__all__ = ["main"]

_HERE = Path(__file__).parent
_DOCS = _HERE.parent / "docs"
_RESULTS = _HERE / "results.json"
_CHART = _DOCS / "images" / "benchmarks.svg"
_PAGE = _DOCS / "benchmarks.md"

#: Jobs in the longest queue, where a look is all that is asked for.
_MOST_QUICK = 10_000

_EXAMPLES = f"""\
examples:
  python -m benchmarks                             everything; about 45 minutes
  python -m benchmarks --list                      the names of the rows
  python -m benchmarks --only redis-listen         one row
  python -m benchmarks --only memory import        two rows
  python -m benchmarks --quick                     everything in minutes; for a look, not a figure
  python -m benchmarks --most 100000               a shorter longest queue: 18 minutes less
  python -m benchmarks --draw                      nothing but chart and page, of the last figures

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
    to_file = options.draw or not options.quick
    results_path = options.json or (_RESULTS if to_file else None)
    failed = [] if options.draw else _measure(options, results_path)
    if results_path is not None and results_path.exists():
        _show(results_path, options.chart)
    if failed:
        print(f"FAILED, see above: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _measure(options: argparse.Namespace, results_path: Path | None) -> list[str]:
    """Measure, print, and write each row as soon as it is there; return the rows that failed."""
    measured: list[Result] = []
    failed = []
    began = perf_counter()
    with Brokers(options.rabbitmq, options.redis, options.data) as brokers:
        most = _MOST_QUICK if options.quick else options.most
        bench = Bench(brokers, options.repeat, options.quick, most)
        for name in options.only or ROWS:
            print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
            row_began = perf_counter()
            try:
                results = list(ROWS[name].run(bench))
            except BrokerMissing as error:
                print(f"skipped: {error}", file=sys.stderr)
                continue
            except Exception:  # what took minutes to measure is not thrown away with it
                traceback.print_exc()
                failed.append(name)
                continue
            print(f"{perf_counter() - row_began:.0f} s", file=sys.stderr)
            measured += results
            about = {**machine(), **brokers.describe()}
            if results_path is not None:
                write_results(results_path, {name: results}, about)
    if measured:
        print("\n".join([*(f"{what}: {value}" for what, value in about.items()), ""]))
        print(render(measured))
    print(f"took {(perf_counter() - began) / 60:.1f} minutes", file=sys.stderr)
    return failed


def _show(results_path: Path, chart: Path | None) -> None:
    """Draw the chart; with the project's own results also renew the page of the docs."""
    written = [results_path]
    found = read_results(results_path)
    rows = {name: found[name] for name in ROWS if name in found}  # the file's order is of no use
    if chart is not None or results_path == _RESULTS:
        from benchmarks.chart import draw  # matplotlib takes a second to import

        written.append(chart or _CHART)
        draw(rows, written[-1])
    if results_path == _RESULTS:
        written.append(_PAGE)
        write_page(_PAGE, results_path)
    print(f"written: {', '.join(map(str, written))}")


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"must be {least:,} or more")
        return int(text)

    return number


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
        "--repeat",
        type=_at_least(1),
        default=5,
        metavar="N",
        help="rounds of each row (default: 5)",
    )
    parser.add_argument(
        "--most",
        type=_at_least(10_000),
        default=1_000_000,
        metavar="N",
        help="jobs in the longest queue of the depth rows, 10,000 or more (default: 1,000,000)",
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
        help="where the figures go; rows in it that are not measured now stay (default: "
        "benchmarks/results.json, and only with that are docs/benchmarks.md and its chart renewed)",
    )
    parser.add_argument(
        "--chart", type=Path, metavar="FILE", help="default: docs/images/benchmarks.svg"
    )
    parser.add_argument(
        "--draw", action="store_true", help="measure nothing, write what is in the file anew"
    )
    return parser

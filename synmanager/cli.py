"""The ``synmanager`` command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from synmanager import __version__
from synmanager.backends.base import Counts
from synmanager.backends.registry import create_backend, known_schemes
from synmanager.demo import Demo
from synmanager.errors import SynmanagerError, TopologyError
from synmanager.phases import PHASES
from synmanager.settings import load_settings

__all__ = ["main"]

_EXAMPLES = """\
examples:
  synmanager demo                                   a federated cycle, in this process
  synmanager demo --backend redis://localhost:6379/0
  synmanager demo --runs 40 --ttps 4
  synmanager status                                 what waits on $SYNMANAGER_BACKEND
  synmanager status --backend amqp://user:secret@mq.example:5672/
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 for an error, 2 for wrong usage."""
    options = _parser().parse_args(arguments)
    try:
        if options.command == "demo":
            Demo(options.backend, runs=options.runs, ttps=options.ttps).run()
        else:
            _status(options.backend)
    except SynmanagerError as error:
        print(f"synmanager: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="synmanager",
        description="The job queue of a federated-learning grid.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"synmanager {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    schemes = ", ".join(f"{scheme}://" for scheme in known_schemes())

    demo = commands.add_parser(
        "demo",
        help="run a whole federated cycle",
        description="A Director submits an alignment and a sweep of training runs, two TTPs take "
        "them by rank, every run is evaluated, and the Director archives the results.",
    )
    demo.add_argument(
        "--backend", default="memory", metavar="URL", help=f"{schemes} (default: memory)"
    )
    demo.add_argument("--runs", type=_positive, default=8, help="training runs (default: 8)")
    demo.add_argument("--ttps", type=_positive, default=2, help="TTPs (default: 2)")

    status = commands.add_parser(
        "status",
        help="count the jobs in the four queues",
        description="Jobs per queue: ready, leased to a worker, delayed, dead; - where the "
        "broker cannot tell.",
    )
    status.add_argument(
        "--backend", metavar="URL", help=f"{schemes} (default: $SYNMANAGER_BACKEND, else rabbitmq)"
    )
    return parser


def _positive(text: str) -> int:
    number = int(text) if text.isdigit() else 0
    if not 1 <= number <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 10,000")
    return number


def _status(url: str | None) -> None:
    backend = create_backend(load_settings(url=url).address)
    backend.open()
    try:
        print(f"{'queue':<12}{'ready':>8}{'leased':>8}{'delayed':>9}{'dead':>7}")
        for phase in PHASES.values():
            try:
                print(f"{phase.queue:<12}{_row(backend.count(phase.queue))}")
            except TopologyError:  # looking must not create it
                print(f"{phase.queue:<12}{'not there yet':>16}")
    finally:
        backend.close()


def _row(counts: Counts) -> str:
    cells = ((counts.ready, 8), (counts.leased, 8), (counts.delayed, 9), (counts.dead, 7))
    return "".join(f"{'-' if number is None else number:>{width}}" for number, width in cells)

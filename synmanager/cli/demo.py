"""``synmanager demo``."""

from __future__ import annotations

import click

from synmanager.cli.broker import backend_option, tell
from synmanager.settings import load_settings, names_a_backend

__all__ = ["demo"]

_NUMBER = click.IntRange(1, 10_000)


@click.command()
@backend_option
@click.option("--runs", type=_NUMBER, default=8, show_default=True, help="Training runs.")
@click.option("--ttps", type=_NUMBER, default=2, show_default=True, help="TTPs.")
def demo(backend: str | None, runs: int, ttps: int) -> None:
    """Run a whole federated cycle.

    A Director submits an alignment and a sweep of training runs, TTPs take them by rank, every
    run is evaluated, and the Director archives the results. By default on $SYNMANAGER_BACKEND,
    and in this process's memory without one. It wants a broker that holds no jobs, and leaves
    none behind, also after Ctrl-C.

    \b
    examples:
      synmanager demo
      synmanager demo --runs 40 --ttps 4
      synmanager demo --backend redis://localhost:6379/0
    """
    from synmanager.demo import Demo

    url = backend if backend is not None or names_a_backend() else "memory"
    tell(load_settings(url=url).address)
    Demo(url, runs=runs, ttps=ttps).run()

"""``synmanager exporter``."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from importlib.util import find_spec

import click

from synmanager.cli.broker import backend_option, tell
from synmanager.cli.queues import subscribed, subscriber_option
from synmanager.settings import load_settings
from synmanager.terminal import complain

__all__ = ["exporter"]


@click.command()
@backend_option
@subscriber_option
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=9797,
    show_default=True,
    help="Where to listen; 0 for one that is free.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Of this machine; 0.0.0.0 or :: for all, and then for whoever can reach it.",
)
def exporter(backend: str | None, subscribers: Sequence[str], port: int, host: str) -> None:
    """Let Prometheus scrape the broker: queues, workers, times, retries.

    One for each broker. Most of it stands on the journal, which is for those producers and
    workers that run without SYNMANAGER_JOURNAL=off; what cannot be told is left out. It only reads,
    and what it counts it counts from its beginning on. docs/monitoring.md has the metrics, alert
    rules and a dashboard. Needs the extra prometheus.

    \b
    examples:
      synmanager exporter --port 9797
      synmanager exporter --host 0.0.0.0 --backend redis://mq.example:6379/0
      curl localhost:9797/metrics
    """
    if find_spec("prometheus_client") is None:
        raise click.ClickException(
            "this needs the package prometheus-client: pip install prometheus-client, or install "
            "synmanager with its extra 'prometheus'"
        )
    from synmanager.lookout import Lookout
    from synmanager.metrics import serve

    settings = load_settings(url=backend)
    tell(settings.address)
    ending = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: ending.set())
    lookout = Lookout(settings, tuple(map(subscribed, subscribers)), complain)
    try:
        lookout.start()
        try:
            bound, end = serve(lookout, host, port)
        except BaseException:
            lookout.stop()
            raise
        try:
            shown = f"[{host}]" if ":" in host else host
            click.echo(f"http://{shown}:{bound}/metrics")
            while not ending.wait(3600):
                pass
        finally:
            end()
            lookout.stop()
    finally:
        signal.signal(signal.SIGTERM, before)
    raise SystemExit(128 + signal.SIGTERM)

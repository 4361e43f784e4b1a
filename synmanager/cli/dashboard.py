"""``synmanager dashboard``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import click

from synmanager.cli.broker import backend_option, tell
from synmanager.settings import dashboard_token, load_settings
from synmanager.terminal import complain

__all__ = ["dashboard"]


@click.command()
@backend_option
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to serve.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=8080,
    show_default=True,
    help="Port to serve; 0 for any that is free.",
)
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What visitors must know. [default: $SYNMANAGER_DASHBOARD_TOKEN]",
)
@click.option(
    "--allow-actions", is_flag=True, help="Let visitors cancel, pause, redrive, edit and purge."
)
@click.option("--demo", is_flag=True, help="A pretended grid that is busy, in memory.")
def dashboard(
    backend: str | None,
    host: str,
    port: int,
    token_file: Path | None,
    allow_actions: bool,
    demo: bool,
) -> None:
    """Show the grid as pages that move, until Ctrl-C.

    What runs, what waits and why, sweeps, dead letters, workers, and how the broker is. It shows
    what the journal tells: not those who have SYNMANAGER_JOURNAL=off. Without a token
    it serves this machine alone; beyond it, put it behind TLS.

    \b
    examples:
      synmanager dashboard --demo
      synmanager dashboard --backend amqp://mq.example
      synmanager dashboard --host 0.0.0.0 --token-file token.txt --allow-actions
    """
    try:
        from synmanager.journal.actions import user
        from synmanager.web.app import make_app
        from synmanager.web.demo import DemoGrid
        from synmanager.web.gate import Guards
        from synmanager.web.observer import Observer
        from synmanager.web.serve import Server, check_reach, listen
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn", "jinja2", "markupsafe"):
            raise
        raise click.ClickException(
            f"the dashboard needs {error.name}: pip install 'synmanager[web]'"
        ) from None
    if demo and backend is not None:
        raise click.UsageError("--demo has a broker of its own; leave out --backend")
    token = token_file.read_text().strip() if token_file else dashboard_token()
    guards = Guards(token, user())
    check_reach(host, guards)
    with ExitStack() as stack:
        url = stack.enter_context(DemoGrid()).url if demo else backend
        settings = load_settings(url=url)
        tell(settings.address)
        listener = stack.enter_context(listen(host, port))
        observer = Observer(settings)
        observer.start()
        stack.callback(observer.stop)
        where = f"[{host}]" if ":" in host else host
        complain(f"dashboard: http://{where}:{listener.getsockname()[1]}/")
        app = make_app(observer, guards, allows=allow_actions)
        Server(app, observer).run(sockets=[listener])

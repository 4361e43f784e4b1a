"""``synmanager work`` and ``synmanager archive``: the roles of the cluster, out of a module."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from synmanager.cli.broker import backend_option, tell
from synmanager.settings import load_settings
from synmanager.terminal import complain
from synmanager.text import shown
from synmanager.words import plural

__all__ = ["archive", "work"]

Command = TypeVar("Command", bound=Callable[..., Any])


def _loop_options(command: Command) -> Command:
    """Give a command what every loop can be told."""
    for option in (
        click.option(
            "--log-level",
            type=click.Choice(["debug", "info", "warning", "error"]),
            default="info",
            show_default=True,
            help="Of what is written to standard error.",
        ),
        click.option("--lease", type=float, metavar="SECONDS", help="For which a job is ours."),
        click.option("--max-attempts", type=int, metavar="N", help="Before it is a dead letter."),
        click.option(
            "--idle-timeout", type=float, metavar="SECONDS", help="End when no job came for this."
        ),
        click.option("--max-jobs", type=click.IntRange(1), metavar="N", help="End after N jobs."),
        click.option("--burst", is_flag=True, help="End when the queues are empty."),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("handlers", metavar="MODULE:HANDLERS")
@backend_option
@click.option("--time-limit", type=float, metavar="SECONDS", help="For which a job may run.")
@_loop_options
def work(handlers: str, backend: str | None, time_limit: float | None, **options: Any) -> None:
    """Run jobs as a TTP does, by rank.

    HANDLERS is a mapping of phase to callable in MODULE, which is looked for in the working
    directory as well: {"preprocess": align, "train": train, "evaluate": evaluate}. What a
    callable returns goes to completed. SIGTERM or Ctrl-C lets the running job finish, see
    SYNMANAGER_GRACE; a second one leaves at once.

    \b
    examples:
      synmanager work mypackage.jobs:HANDLERS
      synmanager work jobs:HANDLERS --burst
    """
    from synmanager.worker import Worker

    found = _load(handlers)
    if not isinstance(found, Mapping):
        raise click.ClickException(
            f"{handlers} is a {type(found).__name__}, and must be a mapping of phase to callable"
        )
    lease, attempts = options.pop("lease"), options.pop("max_attempts")
    worker = Worker(found, url=backend, lease=lease, max_attempts=attempts, time_limit=time_limit)
    _run(worker, backend, **options)


@click.command()
@click.argument("callback", metavar="MODULE:CALLBACK")
@backend_option
@click.option(
    "--subscriber", metavar="NAME", help="With a queue of its own, in which every result waits."
)
@click.option(
    "--on-failure",
    metavar="MODULE:CALLBACK",
    help="Called with each job that was given up, as Archiver(on_failure=…) does.",
)
@_loop_options
def archive(
    callback: str,
    backend: str | None,
    subscriber: str | None,
    on_failure: str | None,
    **options: Any,
) -> None:
    """Hand every result to a callable, as a Director's Archiver does.

    Without --subscriber this is one of those that share the queue completed. A named one gets
    every result from the moment that it first ran.

    \b
    examples:
      synmanager archive mypackage.archive:write
      synmanager archive archive:write --subscriber audit --on-failure archive:tell
    """
    from synmanager.archiver import Archiver

    found = _load(callback)
    lease, attempts = options.pop("lease"), options.pop("max_attempts")
    archiver = Archiver(
        found,
        subscriber,
        url=backend,
        lease=lease,
        max_attempts=attempts,
        on_failure=None if on_failure is None else _load(on_failure),
    )
    _run(archiver, backend, **options)


def _run(service: Any, backend: str | None, *, log_level: str, **options: Any) -> None:
    tell(load_settings(url=backend).address)
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("pika").setLevel(logging.WARNING)
    number = service.run(**options)
    complain(f"{plural(number, 'job')} run")


def _load(name: str) -> Any:
    """What MODULE:NAME names; the name may have dots."""
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        click.get_current_context().fail(
            f"{name!r} is not MODULE:NAME, such as mypackage.jobs:HANDLERS"
        )
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and _begins_with(module_name, error.name):
            raise click.ClickException(
                f"there is no module {module_name!r}, here or among what is installed"
            ) from None
        _show_its_own(error)
        said = shown(f"{type(error).__name__}: {error}", 500)
        raise click.ClickException(f"{module_name} cannot be imported: {said}") from None
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise click.ClickException(shown(f"{module_name} has no {path!r}", 500)) from None
    return found


def _begins_with(module_name: str, missing: str | None) -> bool:
    return missing is not None and f"{module_name}.".startswith(f"{missing}.")


def _show_its_own(error: Exception) -> None:
    """Print an error's traceback from where the imported module begins."""
    frame = error.__traceback__
    while frame is not None and _is_on_the_way(frame.tb_frame.f_code.co_filename):
        frame = frame.tb_next
    complain("".join(traceback.format_exception(error.with_traceback(frame))).rstrip())


def _is_on_the_way(file: str) -> bool:
    return file in (__file__, importlib.__file__) or file.startswith("<frozen importlib")

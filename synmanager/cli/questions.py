"""Questions that come before something that cannot be undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from synmanager.terminal import complain

__all__ = ["agreed", "yes_option"]

Command = TypeVar("Command", bound=Callable[..., Any])


def yes_option(command: Command) -> Command:
    """Give a command ``--yes``."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask.")(command)


def agreed(question: str, yes: bool) -> None:
    """Go on if the user wants to; asked on standard error.

    Raises:
        click.Abort: there is nobody to answer.
        click.ClickException: the answer is no.
        KeyboardInterrupt: it is Ctrl-C.
    """
    if yes:
        return
    try:
        is_yes = click.confirm(question, err=True)
    except click.Abort as end:
        complain("")  # what follows has a line of its own
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    if not is_yes:
        raise click.ClickException("nothing was changed")

"""The ``synmanager`` command: one file for each group of commands.

It is started often and in a hurry: a command imports what it needs where it needs it.
"""

from __future__ import annotations

from collections.abc import Sequence

from synmanager.errors import SynmanagerError
from synmanager.terminal import HANGUP, Unbreakable, complain, flush, open_what_is_closed
from synmanager.text import shown

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        its exit status, as ``synmanager --help`` lists them.
    """
    open_what_is_closed()
    with Unbreakable():
        try:
            try:
                return _run(arguments)
            finally:
                flush()
        except SynmanagerError as error:
            complain(f"synmanager: {shown(error, 2000)}")
            return 1
        except BrokenPipeError:
            return HANGUP
        except OSError as error:
            complain(f"synmanager: {shown(error.strerror or error, 2000)}")
            return 1
        except KeyboardInterrupt:
            complain("synmanager: interrupted")
            return 130


def _run(arguments: Sequence[str] | None) -> int:
    import sys

    import click

    from synmanager.cli.app import app

    try:
        with app.begin(sys.argv[1:] if arguments is None else list(arguments)) as context:
            status = app.invoke(context)
            return status if isinstance(status, int) else 0
    except click.exceptions.Exit as end:  # after --help, for one
        return end.exit_code
    except click.Abort:
        complain("synmanager: no answer; nothing was changed. --yes answers every question")
        return 1
    except click.exceptions.NoArgsIsHelpError as error:
        complain(error.format_message())  # of a group alone: its help
        return error.exit_code
    except click.ClickException as error:
        if isinstance(error, click.UsageError) and error.ctx is not None:
            complain(error.ctx.get_usage())
            complain(f"Try '{error.ctx.command_path} --help'.")
        said = error.format_message()
        if isinstance(error, click.MissingParameter):  # click has a line for each choice
            said = " ".join(said.split())
        complain(f"synmanager: {shown(said, 2000)}")
        return error.exit_code

"""The commands by name, and what all of them have in common."""

from __future__ import annotations

from importlib import import_module

import click

from synmanager import __version__

__all__ = ["COMMANDS", "app"]

#: Each command and the module that it is in, in the order of ``--help``.
COMMANDS = {
    "status": "status",
    "submit": "submit",
    "work": "run",
    "archive": "run",
    "jobs": "watching",
    "job": "watching",
    "why": "watching",
    "cancel": "watching",
    "pause": "pausing",
    "resume": "pausing",
    "workers": "watching",
    "events": "watching",
    "exporter": "exporter",
    "dead": "dead",
    "purge": "purge",
    "unsubscribe": "unsubscribe",
    "move": "move",
    "doctor": "doctor",
    "dashboard": "dashboard",
    "demo": "demo",
    "completion": "completion",
}

_HELP = """\
The job queue of a federated-learning grid: see and mend its queues, on any broker.

\b
examples:
  synmanager status --watch                 what waits on $SYNMANAGER_BACKEND
  synmanager submit train run=1 lr=0.01     queue a job
  synmanager work mypackage.jobs:HANDLERS   run jobs in this process
  synmanager dead list                      what was given up, by reason
  synmanager doctor                         what would hurt, and what to do
  synmanager demo --backend redis://localhost:6379/0
                                            a federated cycle on that broker
"""

_EPILOG = """\
\b
The broker is that of --backend, else of $SYNMANAGER_BACKEND. A password is better off in
$SYNMANAGER_PASSWORD than in a command, which everybody on the machine can see.

\b
exit status:
  0    done; of doctor: nothing hurts
  1    refused, failed, or nobody answers; the reason is on standard error
  2    wrong usage
  3    doctor: something may hurt
  4    doctor: jobs may be lost, or nothing can run
  130  Ctrl-C, 141 if whoever read the output has left, 143 SIGTERM
"""


class App(click.Group):
    """A group that imports a command's module when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"synmanager.cli.{COMMANDS[name]}"), name)
        return command

    def begin(self, arguments: list[str]) -> click.Context:
        """Parse a command line, or answer a shell that wants to complete one.

        click's own ``main`` would decide about errors and the exit status as well.
        """
        self._main_shell_completion({}, "synmanager")
        return self.make_context("synmanager", arguments)


@click.command(
    cls=App,
    help=_HELP,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="synmanager %(version)s")
def app() -> None:
    """See above."""

"""``synmanager completion``."""

from __future__ import annotations

import click

__all__ = ["completion"]

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print the script by which a shell completes this command.

    \b
    examples:
      synmanager completion bash > ~/.local/share/bash-completion/completions/synmanager
      synmanager completion zsh > "${fpath[1]}/_synmanager"
      synmanager completion fish > ~/.config/fish/completions/synmanager.fish
    """
    from click.shell_completion import get_completion_class

    from synmanager.cli.app import app

    kind = get_completion_class(shell)
    assert kind is not None
    print(kind(app, {}, "synmanager", "_SYNMANAGER_COMPLETE").source())

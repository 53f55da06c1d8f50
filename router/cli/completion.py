"""`llama-router completion`: what a shell must be told so that the tab key knows our commands and models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import click
from click.shell_completion import get_completion_class

#: Where each shell looks for it, for the current user.
_PLACES: Final = {
    "bash": "~/.local/share/bash-completion/completions/llama-router",
    "zsh": "~/.zfunc/_llama-router  (with fpath+=~/.zfunc before compinit in ~/.zshrc)",
    "fish": "~/.config/fish/completions/llama-router.fish",
}
_VARIABLE: Final = "_LLAMA_ROUTER_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(tuple(_PLACES)), required=False)
def completion(shell: str | None) -> None:
    """Print the completion for SHELL (else for that of $SHELL): commands, options, and names of models."""
    chosen = shell or Path(os.environ.get("SHELL", "")).name
    if chosen not in _PLACES:
        raise click.UsageError(
            f"there is completion for {', '.join(_PLACES)}, not for {chosen or 'this shell'}"
        )
    made = get_completion_class(chosen)
    assert made is not None, f"click knows {chosen}"
    root = click.get_current_context().find_root().command
    click.echo(made(root, {}, "llama-router", _VARIABLE).source())
    click.echo(f"write this to {_PLACES[chosen]}", err=True)

"""The command line. Each command is a file, imported only when it is asked for: `ps` must not load a web
server.

To add a command, write its file and name it in `COMMANDS`."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Final

import click

from router import __version__
from router.errors import RouterError, StartupError

#: Name -> where its click command is. In the order in which help shows them.
COMMANDS: Final[Mapping[str, str]] = {
    "serve": "router.cli.serve:serve",
    "ps": "router.cli.ps:ps",
    "models": "router.cli.models:models",
    "load": "router.cli.load:load",
    "unload": "router.cli.unload:unload",
    "pin": "router.cli.pin:pin",
    "unpin": "router.cli.pin:unpin",
    "pull": "router.cli.pull:pull",
    "rm": "router.cli.rm:rm",
    "run": "router.cli.run:run",
    "logs": "router.cli.logs:logs",
    "top": "router.cli.top:top",
    "explain": "router.cli.explain:explain",
    "vram": "router.cli.vram:vram",
    "restart": "router.cli.restart:restart",
    "plan": "router.cli.plan:plan",
    "build": "router.cli.build:build",
    "doctor": "router.cli.doctor.command:doctor",
    "config": "router.cli.config:config",
    "import": "router.cli.migrate.command:import_",
    "completion": "router.cli.completion:completion",
    "journal": "router.cli.journal:journal",
    "simulate": "router.cli.simulate:simulate",
}


class Commands(click.Group):
    """A group whose members are imported by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command), f"{COMMANDS[cmd_name]} is not a click command"
        return command

    def invoke(self, ctx: click.Context) -> object:
        """What is expected to go wrong is one message and an exit status: 2 when the router itself
        cannot start."""
        try:
            return super().invoke(ctx)
        except RouterError as error:
            click.echo(f"llama-router: {error.message}", err=True)
            ctx.exit(2 if isinstance(error, StartupError) else 1)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="llama-router")
def cli() -> None:
    """Many local GGUF models behind one OpenAI-compatible address, admitted by memory."""

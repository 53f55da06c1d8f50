"""Every command with its help."""

from __future__ import annotations

import click

from docs.generator.markdown import MADE


def commands_page() -> str:
    root = click.get_current_context(silent=True)
    group = root.find_root().command if root is not None else None
    if not isinstance(group, click.Group):
        from router.cli import cli

        group = cli
    top = click.Context(group, info_name="llama-router", **group.context_settings)
    parts = [part for name in group.list_commands(top) for part in _command(group, top, name)]
    return f"{MADE}# Commands\n\n{''.join(parts)}"


def _command(group: click.Group, above: click.Context, name: str) -> list[str]:
    command = group.get_command(above, name)
    assert command is not None, f"{name} is listed"
    # As wide everywhere, whatever the terminal.
    context = click.Context(command, info_name=name, parent=above, terminal_width=110, max_content_width=110)
    if isinstance(command, click.Group):
        return [part for one in command.list_commands(context) for part in _command(command, context, one)]
    usage = command.get_help(context)
    return [f"## {context.command_path}\n\n```\n{usage}\n```\n\n"]

"""The pages there are, and the command that prints one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import click

from router.cli.reference.architecture import architecture_page
from router.cli.reference.commands import commands_page
from router.cli.reference.configuration import configuration_page
from router.cli.reference.http import http_page
from router.cli.reference.metrics import metrics_page

#: Name, also of the file in docs/ -> what makes it.
PAGES: Final[Mapping[str, Callable[[], str]]] = {
    "architecture": architecture_page,
    "configuration": configuration_page,
    "commands": commands_page,
    "http": http_page,
    "metrics": metrics_page,
}


@click.command()
@click.argument("page", type=click.Choice(tuple(PAGES)))
def reference(page: str) -> None:
    """Print the reference of this version as Markdown: every key, command, path or metric, and
    the architecture."""
    click.echo(PAGES[page](), nl=False)

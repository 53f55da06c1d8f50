"""`llama-router logs`: what the llama-server of a model says, also while it loads and after its end."""

from __future__ import annotations

import json
from contextlib import suppress

import click

from router.cli.client import MODEL, Client, client_options


@click.command()
@client_options
@click.argument("model", type=MODEL)
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option(
    "--lines",
    "-n",
    type=click.IntRange(0, 10_000),
    default=100,
    show_default=True,
    help="So many of the last.",
)
def logs(client: Client, as_json: bool, model: str, follow: bool, lines: int) -> None:
    """Show the log of MODEL's llama-server; as JSON, one text per line of the log."""
    query = {"model": model, "lines": str(lines), **({"follow": "1"} if follow else {})}
    with suppress(KeyboardInterrupt):
        for line in client.lines("GET", "/models/log", query=query):
            click.echo(json.dumps(line, ensure_ascii=False) if as_json else line)

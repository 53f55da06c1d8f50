"""`llama-router explain`: why a model is where it is, in words."""

from __future__ import annotations

import click

from router.cli.client import Client, client_options, print_json
from router.cli.complete import MODEL


@click.command()
@client_options
@click.argument("model", type=MODEL)
def explain(url: str, api_key: str | None, as_json: bool, model: str) -> None:
    """Say why MODEL is loaded, waits or cannot be loaded, and what a request for it would do."""
    answer = Client(url, api_key).get("/explain", {"model": model})
    if as_json:
        print_json(answer)
    else:
        click.echo(answer["text"])
        for warning in answer.get("warnings", ()):
            click.secho(f"warning: {warning}", fg="yellow")

"""`llama-router explain`: why a model is where it is, in words."""

from __future__ import annotations

import click

from router.cli.client import MODEL, Client, client_options, print_json


@click.command()
@client_options
@click.argument("model", type=MODEL)
def explain(client: Client, as_json: bool, model: str) -> None:
    """Say why MODEL is loaded, waits or cannot be loaded, and what a request for it would do."""
    answer = client.get("/explain", {"model": model})
    if as_json:
        print_json(answer)
    else:
        click.echo(answer["text"])
        for warning in answer.get("warnings", ()):
            click.secho(f"warning: {warning}", fg="yellow")

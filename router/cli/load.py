"""`llama-router load`: bring a model into memory before somebody asks for it."""

from __future__ import annotations

import click

from router.cli.client import Client, client_options, print_json


@click.command()
@client_options
@click.argument("model")
@click.option("--no-wait", is_flag=True, help="Return when the load has begun.")
def load(url: str, api_key: str | None, as_json: bool, model: str, no_wait: bool) -> None:
    """Load MODEL and return when it is ready."""
    answer = Client(url, api_key).post("/models/load", {"model": model}, None if no_wait else {"wait": "1"})
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{answer['id']}: {answer['status']['value']}")

"""`llama-router unload`: take a model out of memory once its requests are answered."""

from __future__ import annotations

import click

from router.cli.client import Client, client_options, print_json


@click.command()
@client_options
@click.argument("model")
@click.option("--force", is_flag=True, help="Do not wait for requests in flight: end them.")
@click.option("--deadline", type=float, metavar="SECONDS", help="Wait for requests no longer than this.")
def unload(
    url: str, api_key: str | None, as_json: bool, model: str, force: bool, deadline: float | None
) -> None:
    """Unload MODEL and return when it is gone."""
    body = {"model": model, "force": force, "deadline": deadline}
    answer = Client(url, api_key).post("/models/unload", body)
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{answer['id']}: {answer['status']['value']}")

"""`llama-router pin` and `unpin`: whether a model is kept loaded, whatever its preset says."""

from __future__ import annotations

import click

from router.cli.client import Client, client_options, print_json
from router.cli.complete import MODEL


@click.command()
@client_options
@click.argument("model", type=MODEL)
def pin(url: str, api_key: str | None, as_json: bool, model: str) -> None:
    """Keep MODEL: once loaded it is neither evicted nor does it leave by itself, until it is unpinned."""
    _tell(Client(url, api_key), "pin", model, as_json=as_json)


@click.command()
@client_options
@click.argument("model", type=MODEL)
def unpin(url: str, api_key: str | None, as_json: bool, model: str) -> None:
    """Let MODEL leave again, also one that its preset pins."""
    _tell(Client(url, api_key), "unpin", model, as_json=as_json)


def _tell(client: Client, what: str, model: str, *, as_json: bool) -> None:
    answer = client.post(f"/models/{what}", {"model": model})
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{answer['id']}: {what}ned, {answer['status']['value']}")

"""`llama-router pin` and `unpin`: whether a model is kept loaded, whatever its preset says."""

from __future__ import annotations

import click

from router.cli.client import MODEL, Client, client_options, print_answer


@click.command()
@client_options
@click.argument("model", type=MODEL)
def pin(client: Client, as_json: bool, model: str) -> None:
    """Keep MODEL: once loaded it is neither evicted nor does it leave by itself, until it is unpinned."""
    _tell(client, "pin", model, as_json=as_json)


@click.command()
@client_options
@click.argument("model", type=MODEL)
def unpin(client: Client, as_json: bool, model: str) -> None:
    """Let MODEL leave again, also one that its preset pins."""
    _tell(client, "unpin", model, as_json=as_json)


def _tell(client: Client, what: str, model: str, *, as_json: bool) -> None:
    answer = client.post(f"/models/{what}", {"model": model})
    print_answer(answer, f"{answer['id']}: {what}ned, {answer['status']['value']}", as_json=as_json)

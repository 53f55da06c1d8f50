"""`llama-router rm`: delete a model that was downloaded."""

from __future__ import annotations

from dataclasses import replace

import click

from router.cli.client import MODEL, Client, client_options, print_json
from router.cli.words import gib


@click.command()
@client_options
@click.argument("model", type=MODEL)
@click.option("--force", is_flag=True, help="Do not wait for requests in flight: end them.")
def rm(client: Client, as_json: bool, model: str, force: bool) -> None:
    """Delete MODEL from the Hugging Face cache, and unload it. Models of other folders are not touched."""
    # No time limit: the requests that it serves may end first, and the router knows its deadline for them.
    query = {"model": model, **({"force": "1"} if force else {})}
    answer = replace(client, read_seconds=None).delete("/models", query)
    if as_json:
        print_json(answer)
        return
    click.echo(f"{answer['id']}: deleted, {gib(answer['freed_bytes'])} are free by that")
    for one in answer["kept"]:
        click.echo(f"kept {one['file']}: {one['reason']}")

"""`llama-router restart`: a new router process, and not a model unloaded."""

from __future__ import annotations

import click

from router.cli.client import Client, client_options, print_json


@click.command()
@client_options
def restart(url: str, api_key: str | None, as_json: bool) -> None:
    """Replace the router's process: a new version, a changed configuration.

    Models stay loaded, no connection is refused, streams in flight end in peace. If the new process does not
    start, the old one serves on and this says why.
    """
    answer = Client(url, api_key).post("/restart", {})
    if as_json:
        print_json(answer)
    else:
        click.echo(f"the router is pid {answer['pid']} now")

"""`llama-router restart`: a new router process, and not a model unloaded."""

from __future__ import annotations

import click

from router.cli.client import Client, client_options, print_answer


@click.command()
@client_options
def restart(client: Client, as_json: bool) -> None:
    """Replace the router's process: a new version, a changed configuration.

    Models stay loaded, no connection is refused, streams in flight end in peace. If the new process does not
    start, the old one serves on and this says why.
    """
    answer = client.post("/restart", {})
    print_answer(answer, f"the router is pid {answer['pid']} now", as_json=as_json)

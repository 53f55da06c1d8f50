"""`llama-router load`: bring a model into memory before somebody asks for it."""

from __future__ import annotations

import click

from router.cli.client import Client, client_options, print_json
from router.cli.complete import MODEL
from router.cli.progress import share_bar, while_waiting


@click.command()
@client_options
@click.argument("model", type=MODEL)
@click.option("--no-wait", is_flag=True, help="Return when the load has begun.")
def load(url: str, api_key: str | None, as_json: bool, model: str, no_wait: bool) -> None:
    """Load MODEL and return when it is ready."""
    client = Client(url, api_key)
    query = None if no_wait else {"wait": "1"}
    answer = while_waiting(
        lambda: client.post("/models/load", {"model": model}, query),
        lambda seconds: f"{model}: {_progress(client, model, seconds)}",
    )
    if as_json:
        print_json(answer)
    else:
        click.echo(f"{answer['id']}: {answer['status']['value']}")


def _progress(client: Client, model: str, seconds: float) -> str:
    """What it waits for, or how far it is."""
    try:
        status = client.get(f"/v1/models/{model}")["status"]
    except click.ClickException as error:  # the load itself will say what is wrong
        return error.message
    if status["value"] == "loading":
        return f"loading {share_bar(seconds, status.get('expected_seconds'))}"
    return f"waits for {status.get('reason') or 'its turn'} ({seconds:.0f} s)"

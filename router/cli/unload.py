"""`llama-router unload`: take a model out of memory once its requests are answered."""

from __future__ import annotations

from urllib.parse import quote

import click

from router.cli.client import MODEL, Client, client_options, print_answer
from router.cli.numbers import SECONDS
from router.cli.progress import while_waiting


@click.command()
@client_options
@click.argument("model", type=MODEL, required=False)
@click.option("--all", "everything", is_flag=True, help="Every model, pinned ones too.")
@click.option("--force", is_flag=True, help="Do not wait for requests in flight: end them.")
@click.option("--deadline", type=SECONDS, metavar="SECONDS", help="Wait for requests no longer than this.")
def unload(
    client: Client,
    as_json: bool,
    model: str | None,
    everything: bool,
    force: bool,
    deadline: float | None,
) -> None:
    """Unload MODEL and return when it is gone."""
    if everything == (model is not None):
        raise click.UsageError("name a model, or say --all")
    if model is None:
        gone = client.post("/models/unload-all", {"force": force, "deadline": deadline})
        text = "\n".join(f"{name}: unloaded" for name in gone["unloaded"]) or "Nothing is loaded."
        print_answer(gone, text, as_json=as_json)
        return
    body = {"model": model, "force": force, "deadline": deadline}
    answer = while_waiting(
        lambda: client.post("/models/unload", body),
        lambda seconds: f"{model}: {_progress(client, model)} ({seconds:.0f} s)",
    )
    print_answer(answer, f"{answer['id']}: {answer['status']['value']}", as_json=as_json)


def _progress(client: Client, model: str) -> str:
    try:
        running = client.get(f"/v1/models/{quote(model)}")["instances"]
    except click.ClickException as error:
        return error.message
    leases = sum(one["leases"] for one in running)
    if not leases:
        return "ends"
    return f"waits for {leases} request{'s' * (leases != 1)} to end"

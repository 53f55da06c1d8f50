"""`llama-router load`: bring a model into memory before somebody asks for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import click

from router.cli.client import MODEL, Client, client_options, print_answer
from router.cli.numbers import IDLE_SECONDS, CountOr
from router.cli.progress import share_bar, while_waiting


@click.command()
@client_options
@click.argument("model", type=MODEL)
@click.option("--no-wait", is_flag=True, help="Return when the load has begun.")
@click.option(
    "--ctx-size",
    type=CountOr("auto"),
    metavar="N",
    help="Tokens of context; 0: as trained; auto: as much as fits.",
)
@click.option(
    "--gpu-layers", "n_gpu_layers", type=CountOr("all", "auto"), metavar="N",
    help="Layers on the GPU; all, or auto.",
)  # fmt: skip
@click.option("--device", "devices", multiple=True, metavar="NAME", help="Where; may be given several times.")
@click.option("--cache-type-k", metavar="TYPE", help="Of the keys in the cache, e.g. q8_0.")
@click.option("--cache-type-v", metavar="TYPE", help="Of the values in the cache.")
@click.option(
    "--ttl", "ttl_seconds", type=IDLE_SECONDS, metavar="SECONDS", help="Leave when idle for so long."
)
@click.option(
    "--arg", "args", multiple=True, metavar="WORD", help="For llama-server, if server.load_args allows it."
)
def load(client: Client, as_json: bool, model: str, no_wait: bool, **settings: Any) -> None:
    """Load MODEL and return when it is ready. Settings are for this load alone."""
    query = None if no_wait else {"wait": "1"}
    body = {"model": model, **_given(settings)}
    answer = while_waiting(
        lambda: client.post("/models/load", body, query),
        lambda seconds: f"{model}: {_progress(client, model, seconds)}",
    )
    print_answer(answer, f"{answer['id']}: {answer['status']['value']}", as_json=as_json)


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were said."""
    return {name: value for name, value in settings.items() if value not in (None, ())}


def _progress(client: Client, model: str, seconds: float) -> str:
    """What it waits for, or how far it is."""
    try:
        status = client.get(f"/v1/models/{quote(model)}")["status"]
    except click.ClickException as error:  # the load itself will say what is wrong
        return error.message
    if status["value"] == "loading":
        return f"loading {share_bar((status.get('progress') or {}).get('value', 0.0))} {seconds:.0f} s"
    return f"waits for {status.get('reason') or 'its turn'} ({seconds:.0f} s)"

"""`llama-router ps`: the llama-servers there are, what they hold, which models are waited for, and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from operator import itemgetter
from typing import Any, Final

import click

from router.cli.client import Client, RequestRefused, client_options, print_json
from router.cli.words import Columns, duration, print_items, size

_COLUMNS: Final[Columns] = {
    "INSTANCE": itemgetter("id"),
    "STATE": itemgetter("state"),
    "DEVICE": lambda row: ", ".join(name.partition("/")[2] or name for name in row["devices"]) or "-",
    "PREDICTED": size("predicted"),
    "MEASURED": size("measured"),
    "REQUESTS": lambda row: str(row["leases"]),
    "WAITING": lambda row: str(row["waiting"] or "-"),
    "IDLE": lambda row: duration(row["idle_seconds"]),
    "EXPIRES": lambda row: "pinned" if row["pinned"] else duration(row["expires_in_seconds"]),
    "LAST DECISION": lambda row: row["last_decision"] or "-",
}


@click.command()
@client_options
def ps(client: Client, as_json: bool) -> None:
    """List the loaded models."""
    models = client.get("/models")["data"]
    waiting = [model for model in models if model["status"]["waiting"] and not model["instances"]]
    if not (waiting or as_json or any(model["instances"] for model in models)):
        click.echo("No model is loaded.")
        return
    predicted = {instance["id"]: instance["predicted"] for instance in client.get("/vram")["models"]}
    last = _last_decisions(client)
    running = [
        {
            "model": model["id"],
            **instance,
            "predicted": predicted.get(instance["id"]),
            "waiting": model["status"]["waiting"],
            "last_decision": last.get(model["id"]),
        }
        for model in models
        for instance in model["instances"]
    ]
    if as_json:
        print_json(running)
    else:
        rows = ({**row, "measured": _measured(row["devices"].values())} for row in running)
        print_items(_COLUMNS, chain(rows, map(_waiting, waiting)))


def _last_decisions(client: Client) -> Mapping[str, str]:
    """Return them in words by model; none where the key may not see the state of the router."""
    try:
        models = client.get("/status", {"history": "0", "moments": "0"})["state"]["models"]
    except RequestRefused as refused:
        if refused.status not in (401, 403, 404):
            raise
        return {}
    return {model["id"]: model["last"] for model in models if model["last"]}


def _measured(devices: Iterable[Mapping[str, Any]]) -> int | None:
    measured = [device["measured"] for device in devices if device["measured"] is not None]
    return sum(measured) if measured else None


def _waiting(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of a model without an instance, for which requests wait."""
    status = model["status"]
    row = dict.fromkeys(("predicted", "measured", "idle_seconds", "expires_in_seconds", "pinned"))
    why = f"waits for {status.get('reason') or 'its turn'}"
    known = {"id": model["id"], "state": "queued", "devices": {}, "leases": 0}
    return {**row, **known, "waiting": status["waiting"], "last_decision": why}

"""`llama-router ps`: the llama-servers there are, what they hold, who waits, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

from router.cli.client import Client, RequestRefused, client_options, print_json
from router.cli.words import duration, gib, print_table

_HEADS: Final = (
    "INSTANCE",
    "STATE",
    "DEVICE",
    "PREDICTED",
    "MEASURED",
    "REQUESTS",
    "WAITING",
    "IDLE",
    "EXPIRES",
    "LAST DECISION",
)


@click.command()
@client_options
def ps(client: Client, as_json: bool) -> None:
    """List the loaded models."""
    models = client.get("/models")["data"]
    running = [(model, one) for model in models for one in model["instances"]]
    waiting = [model for model in models if model["status"]["waiting"] and not model["instances"]]
    if running or waiting or as_json:
        predicted = {one["id"]: one["predicted"] for one in client.get("/vram")["models"]}
        last = _last_decisions(client)
    else:
        click.echo("No model is loaded.")
        return
    if as_json:
        print_json(
            [
                {
                    "model": model["id"],
                    **one,
                    "predicted": predicted.get(one["id"]),
                    "waiting": model["status"]["waiting"],
                    "last_decision": last.get(model["id"]),
                }
                for model, one in running
            ]
        )
        return
    rows = [_row(model, one, predicted, last) for model, one in running]
    print_table(_HEADS, [*rows, *map(_waiting, waiting)])


def _last_decisions(client: Client) -> Mapping[str, str]:
    """By model, in words; nothing for somebody who may not see the state of the router."""
    try:
        models = client.get("/status", {"history": "0", "moments": "0"})["state"]["models"]
    except RequestRefused as refused:
        if refused.status not in (401, 403, 404):
            raise
        return {}
    return {model["id"]: model["last"] for model in models if model["last"]}


def _row(
    model: dict[str, Any], one: dict[str, Any], predicted: Mapping[str, int], last: Mapping[str, str]
) -> tuple[str, ...]:
    devices = one["devices"]
    measured = [device["measured"] for device in devices.values() if device["measured"] is not None]
    return (
        one["id"],
        one["state"],
        ", ".join(name.partition("/")[2] or name for name in devices) or "-",
        gib(predicted.get(one["id"])),
        gib(sum(measured)) if measured else "-",
        str(one["leases"]),
        str(model["status"]["waiting"] or "-"),
        duration(one["idle_seconds"]),
        "pinned" if one["pinned"] else duration(one["expires_in_seconds"]),
        last.get(model["id"], "-"),
    )


def _waiting(model: dict[str, Any]) -> tuple[str, ...]:
    status = model["status"]
    words = f"waits for {status.get('reason') or 'its turn'}"
    return (model["id"], "queued", "-", "-", "-", "0", str(status["waiting"]), "-", "-", words)

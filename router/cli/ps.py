"""`llama-router ps`: the llama-servers there are, what they hold, and who waits."""

from __future__ import annotations

from typing import Any

import click

from router.cli.client import Client, client_options, print_json
from router.cli.words import duration, gib, print_table


@click.command()
@client_options
def ps(url: str, api_key: str | None, as_json: bool) -> None:
    """List the loaded models."""
    models = Client(url, api_key).get("/models")["data"]
    running = [(model, one) for model in models for one in model["instances"]]
    waiting = [model for model in models if model["status"]["waiting"]]
    if as_json:
        print_json([{"model": model["id"], **one} for model, one in running])
        return
    if not running and not waiting:
        click.echo("No model is loaded.")
        return
    heads = ("INSTANCE", "STATE", "MEMORY", "MEASURED", "DEVICE", "REQUESTS", "WAITING", "IDLE", "EXPIRES")
    rows = [_row(model, one) for model, one in running]
    rows += [_waiting(model) for model in waiting if not model["instances"]]
    print_table(heads, rows)


def _row(model: dict[str, Any], one: dict[str, Any]) -> tuple[str, ...]:
    devices = one["devices"]
    measured = [device["measured"] for device in devices.values() if device["measured"] is not None]
    return (
        one["id"],
        one["state"],
        gib(sum(device["reserved"] for device in devices.values())),
        gib(sum(measured)) if measured else "-",
        ", ".join(name.partition("/")[2] or name for name in devices) or "-",
        str(one["leases"]),
        str(model["status"]["waiting"] or "-"),
        duration(one["idle_seconds"]),
        "pinned" if one["pinned"] else duration(one["expires_in_seconds"]),
    )


def _waiting(model: dict[str, Any]) -> tuple[str, ...]:
    return (model["id"], "queued", "-", "-", "-", "0", str(model["status"]["waiting"]), "-", "-")

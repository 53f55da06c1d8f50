"""`llama-router vram`: who holds the memory of each device."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any, Final

import click

from router.cli.bars import Part, bar, legend
from router.cli.client import Client, client_options, print_json
from router.cli.words import Columns, print_items, size

PARTS: Final[Mapping[Part, str]] = {
    "ours": "models",
    "promised": "promised to them",
    "others": "other programs",
    "margin": "margin",
    "free": "free",
}


@click.command()
@client_options
def vram(client: Client, as_json: bool) -> None:
    """Show the memory of each device: total, free, ours, others', promised, and room for a newcomer."""
    answer = client.get("/vram", {"measure": "1"})
    if as_json:
        print_json(answer)
        return
    devices = answer["devices"]
    print_items(_DEVICES, devices)
    click.echo(legend(PARTS))
    _print_models(answer)
    for device in devices:
        if device["error"] is not None:
            click.echo(f"! {device_name(device)} takes no models: {device['error']}")
    for note in answer["notes"]:
        click.echo(f"! {note}")


def _print_models(answer: dict[str, Any]) -> None:
    if not answer["models"]:
        return
    names = {device["id"]: device_name(device) for device in answer["devices"]}
    click.echo()
    print_items(
        _INSTANCES,
        (
            {**instance, **held, "device": names.get(device, device)}
            for instance in answer["models"]
            for device, held in instance["devices"].items()
        ),
    )


def device_bar(device: Mapping[str, Any]) -> str:
    """Its memory, by who holds it; nothing for one that cannot be measured."""
    if device["free"] is None:
        return ""
    # What is promised, and the margin, are parts of what is free.
    promised = min(device["promised"], device["free"])
    margin = min(device["margin"], device["free"] - promised)
    return bar(
        (
            ("ours", device["ours"]),
            ("others", device["others"] + device["returning"]),
            ("promised", promised),
            ("margin", margin),
            ("free", device["free"] - promised - margin),
        )
    )


def device_name(device: Mapping[str, Any]) -> str:
    """As people know it: its place and its label."""
    short = str(device["id"]).partition("/")[2] or str(device["id"])
    return f"{short} {device['label']}" if device["label"] not in ("", short) else short


_DEVICES: Final[Columns] = {
    "DEVICE": lambda device: device_name(device) + ("" if device["healthy"] else " (not healthy)"),
    **{
        name.upper(): size(name) for name in ("total", "free", "ours", "others", "promised", "margin", "room")
    },
    "": device_bar,
}
_INSTANCES: Final[Columns] = {
    "INSTANCE": itemgetter("id"),
    "STATE": itemgetter("state"),
    "DEVICE": itemgetter("device"),
    "PREDICTED": size("predicted"),
    "RESERVED": size("reserved"),
    "MEASURED": size("measured"),
    "CONFIDENCE": itemgetter("confidence"),
}

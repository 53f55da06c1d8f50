"""`llama-router vram`: who holds the memory of each device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

from router.cli.bars import Part, bar, legend
from router.cli.client import Client, client_options, print_json
from router.cli.words import gib, print_table

_FIGURES = ("total", "free", "ours", "others", "promised", "margin", "room")
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
    heads = ("DEVICE", *(figure.upper() for figure in _FIGURES), "")
    print_table(heads, [_row(device) for device in devices])
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
    rows = [
        (
            one["id"],
            one["state"],
            names.get(device, device),
            gib(held["predicted"]),
            gib(held["reserved"]),
            gib(held["measured"]),
            one["confidence"],
        )
        for one in answer["models"]
        for device, held in one["devices"].items()
    ]
    click.echo()
    print_table(("INSTANCE", "STATE", "DEVICE", "PREDICTED", "RESERVED", "MEASURED", "CONFIDENCE"), rows)


def _row(device: dict[str, Any]) -> tuple[str, ...]:
    name = device_name(device) if device["healthy"] else f"{device_name(device)} (not healthy)"
    return (name, *(gib(device[figure]) for figure in _FIGURES), device_bar(device))


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

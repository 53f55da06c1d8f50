"""`llama-router vram`: who holds the memory of each device."""

from __future__ import annotations

from typing import Any

import click

from router.cli.client import Client, client_options, print_json
from router.cli.words import gib, print_table


@click.command()
@client_options
def vram(url: str, api_key: str | None, as_json: bool) -> None:
    """Show the memory of each device: total, free, ours, others', promised, and room for a newcomer."""
    answer = Client(url, api_key).get("/vram", {"measure": "1"})
    if as_json:
        print_json(answer)
        return
    heads = ("DEVICE", "TOTAL", "FREE", "OURS", "OTHERS", "PROMISED", "MARGIN", "ROOM")
    print_table(heads, [_row(device) for device in answer["devices"]])
    for device in answer["devices"]:
        for one in device["instances"]:
            measured = (
                f"measured {gib(one['measured'])}" if one["measured"] is not None else "not measured yet"
            )
            click.echo(f"  {_name(device)}: {one['id']} ({one['state']}), {gib(one['reserved'])}, {measured}")


def _row(device: dict[str, Any]) -> tuple[str, ...]:
    figures = ("total", "free", "ours", "others", "promised", "margin", "room")
    name = _name(device) if device["healthy"] else f"{_name(device)} (not healthy)"
    return (name, *(gib(device[figure]) for figure in figures))


def _name(device: dict[str, Any]) -> str:
    short = str(device["id"]).partition("/")[2] or str(device["id"])
    return f"{short} {device['label']}" if device["label"] not in ("", short) else short

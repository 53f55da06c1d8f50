"""`llama-router journal`: what the scheduler was told and decided last, for people or to be replayed."""

from __future__ import annotations

import json
import time

import click

from router.cli.client import Client, client_options


@click.command()
@client_options
@click.option(
    "--export", is_flag=True, help="Print JSON lines, which `llama-router simulate --trace FILE` replays."
)
def journal(client: Client, as_json: bool, export: bool) -> None:
    """Show the newest decisions: who asked for what, what was started and stopped, and why.

    They hold names of models, times and sizes; no text of any request or answer, no key and no path.
    """
    for line in client.lines("GET", "/journal"):
        if export or as_json:
            click.echo(line)
        elif words := _words(json.loads(line)):
            click.echo(words)


def _words(fields: dict[str, object]) -> str:
    """One event or command; nothing for lines that describe the machine."""
    at, name = fields.pop("at", None), fields.pop("event", None)
    if not isinstance(at, float):
        return ""
    clock = time.strftime("%H:%M:%S", time.localtime(at))
    more = [f"{key}={value}" for key, value in fields.items() if key not in ("id", "now") and value]
    return " ".join((clock, f"{name:<8}", *more))

"""`llama-router models`: every model the router knows, also those it cannot use, with the reason."""

from __future__ import annotations

from typing import Any

import click

from router.cli.client import Client, client_options, print_json
from router.cli.words import gib, print_table


@click.command()
@client_options
@click.option("--reload", is_flag=True, help="Look for models anew first.")
@click.option("--all", "with_others", is_flag=True, help="Also files that are no models, with the reason.")
def models(client: Client, as_json: bool, reload: bool, with_others: bool) -> None:
    """List the models and what state they are in."""
    query = {name: "1" for name, is_on in (("reload", reload), ("all", with_others)) if is_on}
    listed = client.get("/models", query or None)["data"]
    if as_json:
        print_json(listed)
        return
    if not listed:
        click.echo("The router knows no model.")
        return
    print_table(("MODEL", "STATUS", "SIZE", "SOURCE", "NOTE"), [_row(model) for model in listed])


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    status = model["status"]
    names = [*model["aliases"], *model.get("alias_patterns", ())]
    aliases = f"also {', '.join(names)}" if names else ""
    return (
        model["id"],
        "failed" if status.get("failed") else status["value"],
        gib((model.get("meta") or {}).get("size")),
        model["source"],
        status.get("error") or aliases,
    )

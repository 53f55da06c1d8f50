"""`llama-router models`: every model the router knows, also those it cannot use, with the reason."""

from __future__ import annotations

from operator import itemgetter
from typing import Any, Final

import click

from router.cli.client import Client, client_options, print_json
from router.cli.words import Columns, gib, print_items


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
    print_items(_COLUMNS, listed)


def _note(model: dict[str, Any]) -> str:
    names = [*model["aliases"], *model.get("alias_patterns", ())]
    return model["status"].get("error") or (f"also {', '.join(names)}" if names else "")


_COLUMNS: Final[Columns] = {
    "MODEL": itemgetter("id"),
    "STATUS": lambda model: "failed" if model["status"].get("failed") else model["status"]["value"],
    "SIZE": lambda model: gib((model.get("meta") or {}).get("size")),
    "SOURCE": itemgetter("source"),
    "NOTE": _note,
}

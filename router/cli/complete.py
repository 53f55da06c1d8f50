"""What a shell may complete: the names of models, asked of the running router."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import CompletionItem

from router.cli.client import Client, configured


class ModelName(click.ParamType[str]):
    """Any text; the router knows which there are."""

    name = "model"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Nothing where no router answers: a shell is no place for an error."""
        own = configured()
        client = Client(ctx.params.get("url") or own.url, ctx.params.get("api_key") or own.api_key)
        try:
            models = client.get("/models")["data"]
        except click.ClickException:
            return []
        names = [name for model in models for name in (model["id"], *model["aliases"])]
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


MODEL: Final = ModelName()

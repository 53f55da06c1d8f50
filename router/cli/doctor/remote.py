"""A router that runs elsewhere: what it says of itself, its devices and its models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import click

from router.cli.client import Client, NoRouter
from router.cli.doctor.findings import Finding, fail, look_at_broken, look_at_count, ok, warn
from router.cli.words import gib

_READ_SECONDS: Final = 30.0


def look_at_router(url: str, api_key: str | None) -> Iterator[Finding]:
    """Whether it answers, and what it can tell. Nothing of the machine on which this runs."""
    client = Client(url, api_key, _READ_SECONDS)
    try:
        client.get("/health")
        version = client.get("/openapi.json")["info"]["version"]
        yield ok("address", f"llama-router {version} answers at {url}")
    except NoRouter as error:
        yield fail("address", f"no router answers at {error.url}", "start one there, or name another --url")
        return
    except (click.ClickException, KeyError, TypeError) as error:
        why = error.message if isinstance(error, click.ClickException) else "it is another program"
        yield fail("address", f"{url} does not answer as a router does: {why}", "name another --url")
        return
    try:
        vram, models = client.get("/vram"), client.get("/models")["data"]
    except click.ClickException as error:
        yield fail("address", error.message, "give a key of that router: --api-key or $LLAMA_ROUTER_API_KEY")
        return
    yield from _devices(vram)
    yield from _models(models)


def _devices(vram: dict[str, Any]) -> Iterator[Finding]:
    for one in vram["devices"]:
        if one["healthy"]:
            yield ok("device", f"{one['label']}: {gib(one['free'])} free of {gib(one['total'])}")
        else:
            why = one["error"] or "it cannot be measured"
            yield fail("device", f"{one['label']}: {why}", "see docs/troubleshooting.md")
    for note in vram["notes"]:
        yield warn("devices", note, "see docs/troubleshooting.md")


def _models(models: list[dict[str, Any]]) -> Iterator[Finding]:
    see = "see `llama-router explain {}`, and its log with `llama-router logs`"
    errors = {model["id"]: error for model in models if (error := model["status"].get("error"))}
    yield from look_at_broken(
        [(f"{name}: {error}", see.format(name)) for name, error in errors.items()], "more fail"
    )
    loaded = sum(model["status"]["value"] == "loaded" for model in models)
    yield look_at_count(len(models) - len(errors), f", {loaded} of them loaded", "put a .gguf file there")

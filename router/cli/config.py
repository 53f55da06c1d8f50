"""`llama-router config`: whether the configuration is right, and what it comes to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import msgspec

from router.cli.client import print_json
from router.config import Config, find_config, load_config
from router.models.catalog import Catalog


@click.group()
def config() -> None:
    """Look at the configuration."""


@config.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print what it comes to as JSON.")
def check(file: Path | None, as_json: bool) -> None:
    """Check FILE (else the one that `serve` would read), its presets and the models it finds.

    What differs from the defaults is printed. Mistakes are told with file, line and the nearest valid key;
    the status is 2 then. Models of which every load would be refused on this machine are told with the
    reason: a missing file, a device that is not there, an argument that llama-server does not take. Nothing
    is loaded, and no running router is asked.
    """
    # Here and not above: the other commands of the group need not wait for it to be imported.
    from router.cli.offline import Offline

    read = load_config(file)
    catalog = Catalog.scan(read)
    source = read.source or find_config()
    broken = Offline(read, catalog).refusals()
    if as_json:
        print_json(
            {
                "source": str(source) if source else None,
                "differs": dict(_differing(read)),
                "models": [entry.id for entry in catalog.models],
                "broken": broken,
                "warnings": list(catalog.warnings),
            }
        )
        return
    click.echo(f"{source or 'no configuration file, which is fine'}: ok")
    for key, value in _differing(read):
        click.echo(f"  {key} = {json.dumps(value, ensure_ascii=False)}")
    for warning in catalog.warnings:
        click.echo(f"! {warning}", err=True)
    for name, error in broken.items():
        click.echo(f"! {name} cannot be used: {error}", err=True)
    count = len(catalog.models) - len(broken)
    click.echo(f"{count} model{'s' * (count != 1)} can be used")


def _differing(read: Config) -> Iterator[tuple[str, Any]]:
    """Every key that is not as it would be without the file. Keys that open doors are not shown."""
    defaults = Config()
    for section in ("server", "paths", "memory", "scheduler", "child", "downloads"):
        ours, theirs = getattr(read, section), getattr(defaults, section)
        for each in fields(ours):
            value = getattr(ours, each.name)
            if value != getattr(theirs, each.name):
                hidden = not each.repr and value
                yield f"{section}.{each.name}", f"({len(value)} set)" if hidden else _plain(value)
    for name, settings in read.models.items():
        yield f"models.{name}", _plain(settings)


def _plain(value: Any) -> Any:
    """Return the value as JSON has it."""
    return msgspec.to_builtins(value, enc_hook=_unknown_to_msgspec)


def _unknown_to_msgspec(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else str(value)

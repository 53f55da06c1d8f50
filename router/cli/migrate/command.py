"""`llama-router import`: files in, a configuration and a report out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from router.cli.client import print_json
from router.cli.migrate.llama_swap import Imported, read_llama_swap
from router.config import Config
from router.models.catalog.scan import options_for
from router.presets.files import read_preset_file
from router.text_file import read_text_file


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write it there, not to the terminal.",
)
@click.option("--force", is_flag=True, help="Also where that file exists already.")
@click.option("--keep-groups", is_flag=True, help="Never load together what llama-swap did not.")
@click.option("--json", "as_json", is_flag=True, help="Print the configuration and the report as JSON.")
def import_(file: Path, output: Path | None, force: bool, keep_groups: bool, as_json: bool) -> None:
    """Make a config.toml of a llama-swap.yaml, or of llama.cpp's INI presets.

    It serves the same names. What could not be carried over, and what is different here, is reported.
    """
    imported = _read(file, keep_groups=keep_groups)
    text = f"# Made of {file.name} by `llama-router import`.\n\n{imported.text}"
    if output is not None:
        _write(output, text, force=force)
    if as_json:
        print_json({"config": text, "models": list(imported.models), "report": imported.report})
        return
    if output is None:
        click.echo(text)
    for line in imported.report:
        click.echo(f"! {line}", err=True)
    if output is not None:
        click.echo(f"{output} is written; next: llama-router config check {output}", err=True)


def _write(output: Path, text: str, *, force: bool) -> None:
    if output.exists() and not force:
        raise click.ClickException(f"{output} exists already; choose another, or --force")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{output}: {error.strerror or error}") from error


def _read(file: Path, *, keep_groups: bool) -> Imported:
    match file.suffix.lower():
        case ".ini":
            return _ini(file)
        case ".yaml" | ".yml":
            folders = (Path.cwd(), file.absolute().parent)
            return read_llama_swap(_yaml(file), folders, os.environ, keep_groups=keep_groups)
        case _:
            raise click.ClickException(
                f"{file}: only llama-swap's .yaml and llama.cpp's .ini can be imported"
            )


def _ini(file: Path) -> Imported:
    """llama.cpp's presets are read by us as they are: the report has each setting that is left out."""
    presets = read_preset_file(file, options_for(Config()))
    imported = Imported(report=list(presets.problems))
    imported.sections["paths"]["presets"] = [str(file.absolute())]
    for layer in presets.layers:
        imported.report += [*layer.problems, *layer.warnings]
    imported.report.append(f"{file} is read as it is from now on, and may be changed there")
    return imported


def _yaml(file: Path) -> dict[str, Any]:
    from router.cli.migrate.swap_yaml import read_document

    try:
        return read_document(read_text_file(file))
    except ValueError as error:
        raise click.ClickException(f"{file}: {error}") from error
    except OSError as error:
        raise click.ClickException(f"{file}: {error.strerror or error}") from error

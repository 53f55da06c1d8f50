"""`llama-router plan`: what a load would need and where it would go, and which models fit together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import click
from click.core import ParameterSource

from router.cli.bars import bar, legend
from router.cli.client import Client, NoRouter, client_options, print_json
from router.cli.words import gib, print_table

Devices = Mapping[str, Mapping[str, Any]]


@click.command()
@client_options
@click.option("--ctx", "ctx_size", type=click.IntRange(min=1), metavar="N", help="As if N were the context.")
@click.option("--offline", is_flag=True, help="Ask no router: read the configuration, measure the devices.")
@click.option(
    "--config",
    "-c",
    type=click.Path(path_type=Path),
    help="The configuration file, where no router is asked.",
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.pass_context
def plan(
    ctx: click.Context,
    client: Client,
    as_json: bool,
    ctx_size: int | None,
    offline: bool,
    config: Path | None,
    models: tuple[str, ...],
) -> None:
    """Say what a load of MODEL would need, term by term, where it would go, and who would have to leave.

    Of several models: which of them fit together, and with how much context. Of none: a line for each.
    Nothing is loaded. Where no router runs here, this is answered by the configuration alone.
    """
    if offline:
        answer = _offline(config, models, ctx_size)
    else:
        try:
            answer = _online(client, models, ctx_size)
        except NoRouter as absent:
            # An address that somebody named may be of another machine.
            if ctx.get_parameter_source("url") is not ParameterSource.DEFAULT:
                raise
            click.echo(f"No router answers at {absent.url}: this is what one would see.", err=True)
            answer = _offline(config, models, ctx_size)
    if as_json:
        print_json(answer)
    elif len(models) == 1:
        _print_model(answer)
    else:
        _print_models(answer)


def _online(client: Client, models: Sequence[str], ctx_size: int | None) -> Any:
    query = [("measure", "1"), *(("model", model) for model in models)]
    if ctx_size is not None:
        query.append(("ctx_size", str(ctx_size)))
    return client.get(("/vram?" if len(models) == 1 else "/vram/plan?") + urlencode(query))


def _offline(config: Path | None, models: tuple[str, ...], ctx_size: int | None) -> dict[str, Any]:
    # Here and not above: a command that asks a router must not wait for all of this to be imported.
    from router.cli.offline import Offline
    from router.config import load_config
    from router.models.catalog import Catalog

    read = load_config(config)
    seen = Offline(read, Catalog.scan(read))
    return seen.model(models[0], ctx_size) if len(models) == 1 else seen.models(models, ctx_size)


# --- one model ---


def _print_model(answer: dict[str, Any]) -> None:
    devices: Devices = {device["id"]: device for device in answer["devices"]}
    placements = answer["placements"]
    shown = placements[answer["chosen"] or 0]
    click.echo(
        f"{answer['model']} needs {gib(shown['bytes'])} "
        f"({'a guess' if shown['is_guess'] else shown['confidence']}) with {_context(shown, answer)}"
        f"{_layers(shown)}."
    )
    click.echo(answer["text"])
    click.echo()
    rows = [
        row for device, need in shown["footprint"].items() for row in _terms(devices, shown, device, need)
    ]
    print_table(("DEVICE", "WHAT", "BYTES", "HOW IT COMES ABOUT"), rows)
    if shown.get("second_opinion") is not None:  # a router of another version may not tell
        click.echo(f"\nSecond opinion: {shown['second_opinion']['text']}")
    _print_bars(devices, shown["footprint"])
    others = [one for one in placements if one is not shown]
    if others:
        click.echo()
        print_table(("OTHER WAYS", "CONTEXT", "BYTES", "FITS"), [_other_way(devices, one) for one in others])


def _terms(devices: Devices, shown: Mapping[str, Any], device: str, need: int) -> Iterator[tuple[str, ...]]:
    """Yield the terms of a device, which is named in the first row, and their sum."""
    name = _name(devices, device)
    for term in shown["terms"]:
        if term["device"] == device:
            yield name, term["kind"], gib(term["bytes"]), term["explanation"]
            name = ""
    yield name, "= all", gib(need), _room_words(devices.get(device), need)


def _context(shown: Mapping[str, Any], answer: Mapping[str, Any]) -> str:
    trained = answer["n_ctx_train"]
    return f"a context of {shown['ctx_size']}" + (f" (trained with {trained})" if trained else "")


def _layers(shown: Mapping[str, Any]) -> str:
    return {0: "", 1: ", split over GPUs", 2: f", {shown['n_gpu_layers']} layers on the GPU only"}.get(
        shown["tier"], ", on the CPU"
    )


def _room_words(device: Mapping[str, Any] | None, need: int) -> str:
    if device is None:
        return "it is not there"
    if not device["healthy"]:
        return "it is not healthy: nothing is loaded there"
    now, empty = device["room"] or 0, device["room_if_empty"]
    words = f"of {gib(max(0, now))} that are free for it now"
    return words if need <= now else f"{words}, and {gib(empty)} if no model were loaded"


def _other_way(devices: Devices, way: Mapping[str, Any]) -> tuple[str, ...]:
    if not way["missing_now"]:
        fits = "now"
    elif not way["missing_if_empty"]:
        fits = f"if other models leave: {_short(devices, way['missing_now'])}"
    else:
        fits = f"no: {_short(devices, way['missing_if_empty'])}"
    where = _names(devices, way["devices"])
    return (where + _layers(way), str(way["ctx_size"]), gib(way["bytes"]), fits)


# --- several models ---


def _print_models(answer: dict[str, Any]) -> None:
    devices: Devices = {device["id"]: device for device in answer["devices"]}
    if not answer["models"]:
        click.echo("There is no model.")
        return
    heads = ("MODEL", "CONTEXT", "BYTES", "WHERE", "FITS")
    print_table(heads, [_row(devices, row) for row in answer["models"]])
    together = answer["together"]
    if together is None:
        _print_bars(devices, {})
        return
    click.echo()
    click.echo(together["text"])
    for fit in [together["all"]] if together["all"] is not None else together["sets"]:
        click.echo()
        print_table(
            ("TOGETHER", "CONTEXT", "BYTES", "WHERE"),
            [
                (
                    one["model"],
                    str(one["ctx_size"]) + (" (reduced)" if one["reduced"] else ""),
                    gib(sum(one["footprint"].values())),
                    _names(devices, one["devices"]),
                )
                for one in fit["models"]
            ],
        )
        _print_bars(devices, fit["footprint"], is_empty=True)


def _row(devices: Devices, row: Mapping[str, Any]) -> tuple[str, ...]:
    if row["error"] is not None:
        return (row["model"], "-", "-", "-", f"cannot be loaded: {row['error'].splitlines()[0]}")
    fits = {"now": "now", "if empty": "if other models leave"}.get(row["fits"])
    if row["loaded"]:
        fits = "is loaded"
    return (
        row["model"],
        str(row["ctx_size"]),
        gib(row["bytes"]),
        _names(devices, row["devices"]),
        fits or f"no: {_short(devices, row['missing'])}",
    )


# --- both ---


def _print_bars(devices: Devices, footprint: Mapping[str, int], *, is_empty: bool = False) -> None:
    """Print a bar per device: what is planned beside what is there, or beside what no model takes."""
    rows = []
    for name, device in devices.items():
        if not device["healthy"]:
            continue
        need, room = footprint.get(name, 0), max(0, device["room_if_empty" if is_empty else "room"] or 0)
        planned, margin = min(need, room), min(device["margin"], device["total"] - room)
        taken = device["total"] - room - margin
        drawn = bar((("others", taken), ("ours", planned), ("margin", margin), ("free", room - planned)))
        rows.append((_name(devices, name), drawn, gib(need) if need else "-", gib(room)))
    click.echo()
    print_table(("DEVICE", "", "PLANNED", "ROOM"), rows)
    others = "other programs" if is_empty else "other models and programs"
    click.echo(legend({"ours": "planned", "others": others, "margin": "margin", "free": "free"}))


def _short(devices: Devices, missing: Mapping[str, int]) -> str:
    return " and ".join(
        f"{gib(size)} short on {_name(devices, device).split()[0]}" for device, size in missing.items()
    )


def _names(devices: Devices, names: Iterable[str]) -> str:
    return " + ".join(_name(devices, name) for name in names)


def _name(devices: Devices, device: str) -> str:
    """Return its label, which begins with a short name: "cuda:0 NVIDIA GeForce RTX 3090"."""
    known = devices.get(device)
    return (known["label"] if known is not None else "") or device.partition("/")[2] or device

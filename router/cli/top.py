"""`llama-router top`: devices, models, requests and decisions as they change."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from router.cli.bars import legend
from router.cli.client import Client, client_options, print_json
from router.cli.numbers import FiniteRange
from router.cli.progress import share_bar
from router.cli.vram import PARTS, device_bar, device_name
from router.cli.words import duration, gib

#: As many as fit beside the rest on a terminal of 40 lines.
REQUESTS_SHOWN: Final = 8
MOMENTS_SHOWN: Final = 8
#: Of what `GET /status` tells: nobody scrolls here, and no lines are drawn.
_SHOWN: Final[Mapping[str, str]] = {"history": "0", "moments": str(MOMENTS_SHOWN)}
#: From here on a decision stands beside its model; below, the list of decisions has to do.
WIDE: Final = 120
#: Downloads that are not over.
_RUNNING: Final = ("queued", "downloading", "waiting")
_STYLES: Final[Mapping[str, str]] = {"ready": "green", "starting": "yellow", "planned": "yellow"}


@click.command()
@client_options
@click.option(
    "--interval",
    "-d",
    type=FiniteRange(min=0.2),
    default=1.0,
    show_default=True,
    help="Seconds between two looks.",
)
@click.option("--once", is_flag=True, help="Show it once. So it is where there is no terminal.")
def top(client: Client, as_json: bool, interval: float, once: bool) -> None:
    """Show what the router does, live. Ctrl-C leaves."""
    told = client.get("/status", None if as_json else _SHOWN)
    if as_json:
        print_json(told)
        return
    console = Console()
    if once or not sys.stdout.isatty():
        console.print(screen(told, console.width))
        return
    with suppress(KeyboardInterrupt), Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(screen(told, console.width), refresh=True)
            time.sleep(interval)
            told = _look_again(client, told)


def screen(told: Mapping[str, Any], width: int) -> RenderableType:
    """The answer of `GET /status` as one picture. Ages count from the router's own clock."""
    return Group(*_parts(told, is_wide=width >= WIDE))


def _look_again(client: Client, before: Mapping[str, Any]) -> Mapping[str, Any]:
    """A router that is being restarted is waited for."""
    try:
        told: dict[str, Any] = client.get("/status", _SHOWN)
    except click.ClickException as error:
        return {**before, "trouble": error.message}
    return told


def _parts(told: Mapping[str, Any], *, is_wide: bool) -> Iterator[RenderableType]:
    state, now = told["state"], float(told["at"])
    models, requests = state["models"], told.get("requests", [])
    loaded = [one for one in models if one["states"]]
    waiting = sum(one["waiting"] for one in models)
    clock = time.strftime("%H:%M:%S", time.localtime(now))
    words = (
        f"{len(loaded)} of {len(models)} models loaded, {len(requests)} requests, {waiting} of them waiting"
    )
    yield Text(f"llama-router {state['version']}  policy {state['policy']}  {words}  {clock}", style="bold")
    if "trouble" in told:
        yield Text(told["trouble"], style="red")
    yield _devices(state["devices"])
    yield Text(legend(PARTS), style="dim")
    yield Text()
    yield from _models(models, now, is_wide=is_wide)
    if requests:
        yield Text()
        yield _requests(requests)
    downloads = [one for one in told.get("downloads", []) if one["state"] in _RUNNING]
    if downloads:
        yield Text()
        yield _downloads(downloads)
    moments = told.get("moments", [])[-MOMENTS_SHOWN:]
    if moments:
        yield Text()
        yield _moments(moments)
    for note in state["notes"]:
        yield Text(f"! {note}", style="yellow")


def _devices(devices: list[dict[str, Any]]) -> Table:
    table = _table("DEVICE", "", "FREE", "OURS", "OTHERS", "PROMISED", "MARGIN")
    for one in devices:
        figures = (gib(one[figure]) for figure in ("free", "ours", "others", "promised", "margin"))
        table.add_row(device_name(one), device_bar(one) or one["error"] or "", *figures)
    return table


def _models(models: list[dict[str, Any]], now: float, *, is_wide: bool) -> Iterator[RenderableType]:
    """Those that are there, come, are waited for or are wrong; the others only as a number."""
    heads = ("MODEL", "STATE", "PREDICTED", "MEASURED", "REQUESTS", "WAITING", "IDLE", "EXPIRES")
    table = _table(*heads, "LAST DECISION") if is_wide else _table(*heads)
    shown = [one for one in models if one["states"] or one["waiting"] or one["error"]]
    for one in shown:
        state = ", ".join(sorted(set(one["states"]))) or ("queued" if one["waiting"] else "failed")
        expires = one["expires_at"]
        why = (_why(one),) if is_wide else ()
        table.add_row(
            one["id"],
            Text(state, style=_STYLES.get(state, "red" if one["error"] else "")),
            gib(one["predicted"]),
            gib(one["measured"]),
            str(one["leases"]),
            str(one["waiting"] or "-"),
            "-" if one["idle_since"] is None else duration(now - one["idle_since"]),
            "pinned" if one["pinned"] else "-" if expires is None else duration(expires - now),
            *why,
        )
    yield table
    if len(models) > len(shown):
        yield Text(f"{len(models) - len(shown)} more are not loaded", style="dim")


def _why(model: Mapping[str, Any]) -> str:
    if model["waiting"] and model["reason"]:
        return f"waits for {model['reason']}"
    return str(model["error"] or model["last"] or "-")


def _requests(requests: list[dict[str, Any]]) -> Table:
    table = _table("REQUEST", "MODEL", "STATE", "CLIENT", "PATH", "AGE", "SENT")
    for one in requests[:REQUESTS_SHOWN]:
        table.add_row(
            one["id"],
            one["model"],
            one["state"],
            one["client"] or "-",
            one["path"],
            duration(one["age_seconds"]),
            f"{one['bytes'] / 1024:.1f} KiB",
        )
    if len(requests) > REQUESTS_SHOWN:
        table.add_row(Text(f"{len(requests) - REQUESTS_SHOWN} more", style="dim"))
    return table


def _downloads(downloads: list[dict[str, Any]]) -> Table:
    table = _table("DOWNLOAD", "STATE", "", "DONE", "OF", "PER SECOND", "LEFT")
    for one in downloads:
        table.add_row(
            ", ".join(one["models"]) or one["repo"],
            one["state"],
            share_bar(one["done_bytes"] / max(1, one["total_bytes"])),
            gib(one["done_bytes"]),
            gib(one["total_bytes"]),
            gib(one["bytes_per_second"]),
            duration(one["expected_seconds"]),
        )
    return table


def _moments(moments: list[dict[str, Any]]) -> Table:
    table = _table("TIME", "DECISION")
    for one in moments:
        style = "red" if one["kind"] in ("failed", "refused", "lost") else ""
        table.add_row(time.strftime("%H:%M:%S", time.localtime(one["at"])), Text(one["text"], style=style))
    return table


def _table(*heads: str) -> Table:
    """Columns with a blank between, nothing drawn."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for head in heads:
        table.add_column(head, no_wrap=head not in ("LAST DECISION", "DECISION"), overflow="ellipsis")
    return table

"""`llama-router top`: devices, models, requests and decisions as they change."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from operator import itemgetter
from typing import Any, Final, TypeAlias

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from router.cli.bars import legend
from router.cli.client import Client, client_options, print_json
from router.cli.numbers import FiniteRange
from router.cli.progress import share_bar
from router.cli.pull import ACTIVE
from router.cli.vram import PARTS, device_bar, device_name
from router.cli.words import duration, size

#: As many as fit beside the rest on a terminal of 40 lines.
REQUESTS_SHOWN: Final = 8
MOMENTS_SHOWN: Final = 8
#: Of what `GET /status` tells: nobody scrolls here, and no lines are drawn.
_SHOWN: Final[Mapping[str, str]] = {"history": "0", "moments": str(MOMENTS_SHOWN)}
#: From here on a decision stands beside its model; below, the list of decisions has to do.
WIDE: Final = 120
_STYLES: Final[Mapping[str, str]] = {"ready": "green", "starting": "yellow", "planned": "yellow"}
#: As `router.cli.words.Columns`, with colours.
_Columns: TypeAlias = Mapping[str, Callable[[Any], str | Text]]


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
    loaded = sum(bool(model["states"]) for model in models)
    waiting = sum(model["waiting"] for model in models)
    counts = f"{loaded} of {len(models)} models loaded, {len(requests)} requests, {waiting} of them waiting"
    heading = f"llama-router {state['version']}  policy {state['policy']}  {counts}  {_clock(now)}"
    yield Text(heading, style="bold")
    if "trouble" in told:
        yield Text(told["trouble"], style="red")
    yield _table(_DEVICES, state["devices"])
    yield Text(legend(PARTS), style="dim")
    yield Text()
    # Those that are there, come, are waited for or are wrong; the others only as a number.
    shown = [model for model in models if model["states"] or model["waiting"] or model["error"]]
    columns = {head: cell for head, cell in _MODELS.items() if is_wide or head != "LAST DECISION"}
    yield _table(columns, (_with_ages(model, now) for model in shown))
    if len(models) > len(shown):
        yield Text(f"{len(models) - len(shown)} more are not loaded", style="dim")
    if requests:
        yield Text()
        yield _table(_REQUESTS, requests[:REQUESTS_SHOWN])
    if len(requests) > REQUESTS_SHOWN:
        yield Text(f"{len(requests) - REQUESTS_SHOWN} more", style="dim")
    running = [job for job in told.get("downloads", []) if job["state"] in ACTIVE]
    moments = told.get("moments", [])[-MOMENTS_SHOWN:]
    for more, items in ((_DOWNLOADS, running), (_MOMENTS, moments)):
        if items:
            yield Text()
            yield _table(more, items)
    for note in state["notes"]:
        yield Text(f"! {note}", style="yellow")


def _with_ages(model: Mapping[str, Any], now: float) -> dict[str, Any]:
    """Return the model with seconds from `now` in place of points in time."""
    since, expires = model["idle_since"], model["expires_at"]
    return {
        **model,
        "idle_seconds": None if since is None else now - since,
        "expires_in_seconds": None if expires is None else expires - now,
    }


def _why(model: Mapping[str, Any]) -> str:
    if model["waiting"] and model["reason"]:
        return f"waits for {model['reason']}"
    return str(model["error"] or model["last"] or "-")


def _state(model: Mapping[str, Any]) -> Text:
    state = ", ".join(sorted(set(model["states"]))) or ("queued" if model["waiting"] else "failed")
    return Text(state, style=_STYLES.get(state, "red" if model["error"] else ""))


def _clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def _decision(moment: Mapping[str, Any]) -> Text:
    return Text(moment["text"], style="red" if moment["kind"] in ("failed", "refused", "lost") else "")


_DEVICES: Final[_Columns] = {
    "DEVICE": device_name,
    "": lambda device: device_bar(device) or device["error"] or "",
    **{name.upper(): size(name) for name in ("free", "ours", "others", "promised", "margin")},
}
_MODELS: Final[_Columns] = {
    "MODEL": itemgetter("id"),
    "STATE": _state,
    "PREDICTED": size("predicted"),
    "MEASURED": size("measured"),
    "REQUESTS": lambda model: str(model["leases"]),
    "WAITING": lambda model: str(model["waiting"] or "-"),
    "IDLE": lambda model: duration(model["idle_seconds"]),
    "EXPIRES": lambda model: "pinned" if model["pinned"] else duration(model["expires_in_seconds"]),
    "LAST DECISION": _why,
}
_REQUESTS: Final[_Columns] = {
    "REQUEST": itemgetter("id"),
    "MODEL": itemgetter("model"),
    "STATE": itemgetter("state"),
    "CLIENT": lambda request: request["client"] or "-",
    "PATH": itemgetter("path"),
    "AGE": lambda request: duration(request["age_seconds"]),
    "SENT": lambda request: f"{request['bytes'] / 1024:.1f} KiB",
}
_DOWNLOADS: Final[_Columns] = {
    "DOWNLOAD": lambda job: ", ".join(job["models"]) or job["repo"],
    "STATE": itemgetter("state"),
    "": lambda job: share_bar(job["done_bytes"] / max(1, job["total_bytes"])),
    "DONE": size("done_bytes"),
    "OF": size("total_bytes"),
    "PER SECOND": size("bytes_per_second"),
    "LEFT": lambda job: duration(job["expected_seconds"]),
}
_MOMENTS: Final[_Columns] = {"TIME": lambda moment: _clock(moment["at"]), "DECISION": _decision}


def _table(columns: _Columns, items: Iterable[Mapping[str, Any]]) -> Table:
    """Return a row for each item, with a blank between columns and nothing drawn."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for head in columns:
        table.add_column(head, no_wrap="DECISION" not in head, overflow="ellipsis")
    for item in items:
        table.add_row(*(cell(item) for cell in columns.values()))
    return table

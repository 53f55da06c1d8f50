"""`/journal`: the newest decisions of the scheduler as JSON lines, which `llama-router simulate` replays.

First lines that describe the machine (`device`, `gib`, `margin_gib`) and the models that were asked for
(`model`, `gib`, `slots`, `load_seconds`); then one with `event` for each event and command, oldest first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from aiohttp import web

from router.admin.context import CONTEXT, Context, Known
from router.admin.route import Access, Routes
from router.observability.journal import Entry, entry_lines
from router.scheduler.types import Acquire
from router.scheduler.views import DeviceView, Snapshot

GIB: Final = 1 << 30
JSON_LINES: Final = "application/x-ndjson"

ROUTES: Final = Routes()


@ROUTES.add(
    "GET",
    "/journal",
    access=Access.ADMIN,
    summary="The newest decisions of the scheduler, as JSON lines",
    answer=Any,
    media=(JSON_LINES,),
)
async def export(request: web.Request) -> web.Response:
    """At most the newest 3000, as far back as none between them is missing. They hold names of models, times
    and sizes; no text of any request or answer, no message of an error, no key and no path."""
    context: Context = request.app[CONTEXT]
    entries, now = context.pool.journal.complete(), context.pool.snapshot()
    body = await asyncio.to_thread(_encoded, context.known, now, entries)
    return web.Response(body=body, content_type=JSON_LINES)


def _encoded(known: Known, now: Snapshot, entries: Sequence[Entry]) -> bytes:
    """Some microseconds for each entry: a thread's work."""
    devices = [one for one in now.devices if not one.id.endswith("/host")] or list(now.devices)
    lines = [_device(one) for one in devices]
    asked = {entry.event.model for entry in entries if isinstance(entry.event, Acquire)}
    lines += _models(known, now, devices, asked)
    lines += (line for entry in entries for line in entry_lines(entry))
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def _device(one: DeviceView) -> dict[str, object]:
    return {"device": one.label.split()[0], "gib": one.total / GIB, "margin_gib": one.margin / GIB}


def _models(
    known: Known, now: Snapshot, devices: Sequence[DeviceView], asked: set[str]
) -> Iterator[dict[str, object]]:
    """Those that can be loaded at all, each with what it has reserved or would reserve on these devices."""
    room = sum(one.total - one.margin for one in devices)
    loads = {view.name: view.load_seconds for view in now.models}
    reserved = {one.model: one.reserved for one in now.instances}
    for name in sorted(asked):
        definition = known.definitions.by_name.get(name)
        if definition is None or not definition.model.placements:
            continue
        footprint = reserved.get(name) or definition.model.placements[0].footprint
        size = sum(footprint.get(one.id, 0) for one in devices)
        if size > room:
            continue
        yield {
            "model": name,
            "gib": max(size, 1 << 20) / GIB,  # one that is on the host alone takes none of these devices
            "slots": definition.entry.preset.parallel or 1,
            "load_seconds": loads.get(name),
        }

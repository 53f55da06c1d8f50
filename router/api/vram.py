"""Who holds the memory of each device, in bytes: ours by instance, other programs, what is promised,
what is free."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from router.api.answer import is_set, json_response
from router.api.context import CONTEXT
from router.api.route import Route
from router.core.types import DeviceId
from router.core.views import DeviceView, InstanceView, Snapshot


async def vram(request: web.Request) -> web.Response:
    """As last measured: the pool measures by itself while anything is loaded. `?measure=1` measures first."""
    pool = request.app[CONTEXT].pool
    if is_set(request, "measure"):
        await pool.measure()
    return json_response(vram_body(pool.snapshot()))


def vram_body(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "policy": snapshot.policy,
        "models_max": snapshot.models_max,
        "devices": [_device(device, snapshot) for device in snapshot.devices],
    }


def _device(device: DeviceView, snapshot: Snapshot) -> dict[str, object]:
    ours = [one for one in snapshot.instances if device.id in one.reserved or device.id in one.used]
    return {
        "id": device.id,
        "label": device.label,
        "healthy": device.free is not None,
        "total": device.total,
        "free": device.free,
        "ours": device.used,
        "others": device.others,
        "reserved": device.reserved,
        "promised": device.promised,
        "returning": device.returning,
        "margin": device.margin,
        "room": device.room,
        "instances": [_instance(one, device.id) for one in ours],
    }


def _instance(one: InstanceView, device: DeviceId) -> dict[str, object]:
    return {
        "id": one.id,
        "model": one.model,
        "state": one.state.value,
        "reserved": one.reserved.get(device, 0),
        "measured": one.used.get(device),
        "leases": len(one.leases),
    }


ROUTES = (Route("GET", "/vram", vram),)

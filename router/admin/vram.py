"""Who holds the memory of each device, in bytes, and what a load would need: measured, predicted, planned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec
from aiohttp import web

from router.admin.answer import is_set, json_response
from router.admin.context import CONTEXT, NAME_REFUSALS, Context
from router.admin.plan import OneModel, Plan, model_body, plan_body, shown_room
from router.admin.route import Query, Routes
from router.errors import InvalidRequest, ModelUnusable
from router.hosts import Measurement
from router.memory.devices import DeviceInfo
from router.memory.estimate.learning import Confidence, FootprintStatus
from router.scheduler.types import DeviceId, InstanceId, ModelName
from router.scheduler.views import DeviceView, InstanceView, Snapshot
from router.supervisor.planning import Seen

ROUTES: Final = Routes()
_MEASURE: Final = Query("measure", "Measure the devices first", bool)
_CTX_SIZE: Final = Query("ctx_size", "As if this were its context, in tokens", int)
_REFUSALS: Final = (InvalidRequest, *NAME_REFUSALS, ModelUnusable)


# --- shapes: in bytes; a device is named by its id ---


class Share(msgspec.Struct, frozen=True):
    """What an instance has of one device."""

    id: InstanceId
    model: ModelName
    state: str
    reserved: int
    measured: int | None
    leases: int


class DeviceShares(msgspec.Struct, frozen=True):
    """A device with all its shares. `room` is what a newcomer could have."""

    id: DeviceId
    label: str
    healthy: bool
    error: str | None
    total: int
    free: int | None
    ours: int
    others: int | None
    reserved: int
    promised: int
    returning: int
    margin: int
    room: int | None
    utilisation_percent: float | None
    temperature_celsius: float | None
    asleep: bool
    shared_with: list[str]
    instances: list[Share]


class Held(msgspec.Struct, frozen=True):
    """What an instance was predicted to take of a device, what is kept for it, what it takes, and the most
    that was ever seen."""

    predicted: int
    reserved: int
    measured: int | None
    peak: int | None


class LoadedModel(msgspec.Struct, frozen=True):
    id: InstanceId
    model: ModelName
    state: str
    confidence: Confidence
    predicted: int
    reserved: int
    measured: int | None
    devices: dict[DeviceId, Held]


class Vram(msgspec.Struct, frozen=True):
    policy: str
    models_max: int
    devices: list[DeviceShares]
    models: list[LoadedModel]
    notes: list[str]


# --- handlers ---


@ROUTES.add(
    "GET",
    "/vram",
    summary="Who holds the memory of each device; or what a load of one model would need",
    query=(_MEASURE, Query("model", "Only what a load of this one would need"), _CTX_SIZE),
    answer=(Vram, OneModel),
    refusals=_REFUSALS,
)
async def vram(request: web.Request) -> web.Response:
    """As last measured: the pool measures by itself while anything is loaded. `?measure=1` measures first.

    `?model=NAME` tells instead what a load of that model would need, term by term, and what a request for it
    would do now; with `&ctx_size=N` as if that were its context.
    """
    context = request.app[CONTEXT]
    pool = context.pool
    if is_set(request, "measure"):
        await pool.measure()
    if "model" in request.query:
        return json_response(await _one_model(request, context))
    return json_response(vram_body(pool.snapshot(), pool.standing, pool.measurements.values()))


@ROUTES.add(
    "GET",
    "/vram/plan",
    summary="Which models fit together",
    query=(_MEASURE, Query("model", "One of those that shall fit", list[str]), _CTX_SIZE),
    answer=Plan,
    refusals=_REFUSALS,
)
async def plan(request: web.Request) -> web.Response:
    """`?model=A&model=B`: which of them fit together if nothing else is loaded; without any, a line for every
    model that is not hidden. `&ctx_size=N` as if that were their context. `?measure=1` measures first."""
    context = request.app[CONTEXT]
    if is_set(request, "measure"):
        await context.pool.measure()
    names = tuple(dict.fromkeys(context.name_of(name) for name in request.query.getall("model", [])))
    seen, ctx_size = _seen(context), _ctx_size(request)
    async with context.planning:  # one at a time: requests that are being served come first
        return json_response(await asyncio.to_thread(plan_body, seen, names, ctx_size))


def vram_body(
    snapshot: Snapshot,
    standing: Callable[[InstanceId], FootprintStatus | None],
    measurements: Iterable[Measurement],
) -> Vram:
    """Every device with all its shares; every instance with what was predicted, reserved and measured of it;
    `notes` tell what is odd about the measuring itself, and first why models run on the CPU though there is
    a GPU."""
    measurements = tuple(measurements)
    infos = {device: info for one in measurements for device, info in one.infos.items()}
    return Vram(
        policy=snapshot.policy,
        models_max=snapshot.models_max,
        devices=[_device(device, snapshot, infos) for device in snapshot.devices],
        models=[_loaded(one, standing(one.id)) for one in snapshot.instances],
        notes=[note for one in measurements for note in (*one.warnings, *one.fallbacks.values(), *one.notes)],
    )


# --- one model ---


async def _one_model(request: web.Request, context: Context) -> OneModel:
    name = context.name_of(request.query["model"])
    seen, ctx_size = _seen(context), _ctx_size(request)
    if ctx_size is None:
        definition = seen.defined(name)
        # As the scheduler has it, with what was learned.
        explanation = context.pool.explain(name)
    else:
        async with context.planning:
            definition = await asyncio.to_thread(seen.defined, name, ctx_size)
        explanation = context.pool.explain(name, definition.model)
    return model_body(seen, definition, explanation)


def _seen(context: Context) -> Seen:
    """All that belongs to the event loop, taken at one moment."""
    definitions, pool = context.known.definitions, context.pool
    return Seen(definitions, pool.snapshot(), {name: pool.standings(name) for name in definitions.by_name})


def _ctx_size(request: web.Request) -> int | None:
    given = request.query.get("ctx_size")
    if given is None:
        return None
    if not (given.isascii() and given.isdigit() and len(given) <= 10 and int(given) > 0):
        raise InvalidRequest(f"ctx_size is {given[:40]!r}, which is no number of tokens above 0")
    return int(given)


# --- devices and who is on them ---


def _device(device: DeviceView, snapshot: Snapshot, infos: Mapping[DeviceId, DeviceInfo]) -> DeviceShares:
    info = infos.get(device.id)
    is_healthy = device.free is not None
    error = (info.error if info is not None else None) or "it has not been measured"
    return DeviceShares(
        id=device.id,
        label=device.label,
        healthy=is_healthy,
        error=None if is_healthy else error,
        total=device.total,
        free=device.free,
        ours=device.used,
        others=device.others,
        reserved=device.reserved,
        promised=device.promised,
        returning=device.returning,
        margin=device.margin,
        room=shown_room(device, device.room),
        utilisation_percent=info.utilisation_percent if info is not None else None,
        temperature_celsius=info.temperature_celsius if info is not None else None,
        asleep=info is not None and info.asleep,
        # GPUs that have no memory of their own draw from this one.
        shared_with=[one.label for key, one in infos.items() if _draws_from(key, one, device.id)],
        instances=[
            Share(
                one.id,
                one.model,
                one.state.value,
                reserved=one.reserved.get(device.id, 0),
                measured=one.used.get(device.id),
                leases=len(one.leases),
            )
            for one in snapshot.instances
            if device.id in one.reserved or device.id in one.used
        ],
    )


def _draws_from(key: DeviceId, info: DeviceInfo, device: DeviceId) -> bool:
    host, _, name = device.partition("/")
    return key != device and key.partition("/")[0] == host and info.pool == name


def _loaded(one: InstanceView, standing: FootprintStatus | None) -> LoadedModel:
    """`measured` is what it holds now; `peak` the most that was ever measured of this model in such a place,
    also by earlier routers."""
    if standing is not None:
        confidence, predicted, peak = standing.confidence, standing.predicted, standing.measured
    else:  # nobody learns: what was measured is at least known of this instance
        confidence = "measured" if any(one.used.values()) else "estimated"
        predicted, peak = one.placement.footprint, {}
    return LoadedModel(
        id=one.id,
        model=one.model,
        state=one.state.value,
        confidence=confidence,
        predicted=sum(predicted.values()),
        reserved=sum(one.reserved.values()),
        measured=sum(one.used.values()) if one.used else None,
        devices={
            device: Held(
                predicted.get(device, 0), one.reserved.get(device, 0), one.used.get(device), peak.get(device)
            )
            for device in {**one.reserved, **predicted, **one.used}
        },
    )

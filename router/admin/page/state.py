"""The state of the whole router at one moment, as the status page shows it: built from memory alone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from math import isfinite

import msgspec

from router import __version__
from router.admin.context import Context
from router.admin.listing import Listing, visible
from router.admin.recent import Moment
from router.admin.vram import DeviceShares, vram_body
from router.observability.stats import Counted
from router.scheduler.types import Model, ModelName
from router.scheduler.views import InstanceView


class ShownModel(msgspec.Struct, frozen=True):
    """One model. Bytes are sums over its devices; times are Unix seconds; `progress` of a load is 0..1.
    `last` is the last decision about it, in words."""

    id: ModelName
    aliases: tuple[str, ...]
    value: str
    states: tuple[str, ...]
    predicted: int
    measured: int | None
    leases: int
    waiting: int
    reason: str | None
    expected_seconds: float | None
    since: float | None
    idle_since: float | None
    expires_at: float | None
    pinned: bool
    progress: float | None
    requests: int
    hits: int
    load_seconds: float | None
    error: str | None
    last: str | None
    last_at: float | None


class State(msgspec.Struct, frozen=True):
    """All that the page shows but its history."""

    version: str
    policy: str
    models_max: int
    devices: list[DeviceShares]
    notes: list[str]
    models: list[ShownModel]


def state(context: Context, lasts: Mapping[ModelName, Moment]) -> State:
    """`lasts`: the last moment of each model."""
    known, pool, snapshot = context.known, context.pool, context.pool.snapshot()
    memory = vram_body(snapshot, pool.standing, pool.measurements.values())
    listing, counted = Listing(known.cards, snapshot), context.stats.told().models
    # A monotonic time of the scheduler as Unix time, to a second: what did not change must read the same.
    offset = time.time() - snapshot.now
    return State(
        version=__version__,
        policy=snapshot.policy,
        models_max=snapshot.models_max,
        devices=memory.devices,
        notes=memory.notes,
        models=[
            _model(listing, known.definitions.by_name[name].model, counted.get(name), lasts.get(name), offset)
            for name in visible(known.definitions)
        ],
    )


def _model(
    listing: Listing, model: Model, counted: Counted | None, last: Moment | None, offset: float
) -> ShownModel:
    def unix(moments: Iterable[float | None]) -> float | None:
        known = [moment for moment in moments if moment is not None and isfinite(moment)]
        return float(round(max(known) + offset)) if known else None

    name = model.name
    row, ones, view = listing.row(name), listing.running.get(name, ()), listing.views.get(name)
    status, measured = row.status, [sum(one.used.values()) for one in ones if one.used]
    seconds = status.expected_seconds
    return ShownModel(
        id=name,
        aliases=row.aliases,
        value=status.value,
        states=tuple(one.state.value for one in ones),
        predicted=_predicted(model, ones),
        measured=sum(measured) if measured else None,
        leases=sum(len(one.leases) for one in ones),
        waiting=status.waiting,
        reason=status.reason,
        expected_seconds=float(round(seconds)) if seconds is not None and isfinite(seconds) else None,
        since=unix(one.since for one in ones),
        idle_since=unix(one.idle_since for one in ones),
        expires_at=unix(one.expires_at for one in ones),
        pinned=status.pinned,
        progress=round(status.progress.value, 1) if status.progress is not None else None,
        requests=counted.requests if counted is not None else 0,
        hits=counted.hits if counted is not None else 0,
        load_seconds=round(view.load_seconds, 2) if view is not None and view.is_load_measured else None,
        error=status.error,
        last=last.text if last is not None else None,
        last_at=last.at if last is not None else None,
    )


def _predicted(model: Model, ones: Iterable[InstanceView]) -> int:
    """The bytes that its instances have reserved, or that a load would."""
    footprints = [one.reserved for one in ones] or [one.footprint for one in model.placements[:1]]
    return sum(sum(footprint.values()) for footprint in footprints)

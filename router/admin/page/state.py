"""The state of the whole router at one moment, as the status page shows it: built from memory alone."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from math import isfinite
from typing import Any

import msgspec

from router import __version__
from router.admin.context import Context
from router.admin.listing import Row, listed
from router.admin.page.timeline import Moment
from router.admin.shapes import DeviceShares
from router.admin.vram import vram_body
from router.observability.stats import Counted
from router.scheduler.types import ModelName
from router.scheduler.views import InstanceView, ModelView, QueueView, Snapshot


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
    pool, known = context.pool, context.known
    snapshot = pool.snapshot()
    standings = {one.id: pool.standing(one.id) for one in snapshot.instances}
    memory = vram_body(snapshot, standings, pool.measurements.values())
    return State(
        version=__version__,
        policy=snapshot.policy,
        models_max=snapshot.models_max,
        devices=memory["devices"],
        notes=memory["notes"],
        models=list(_models(context, snapshot, known.definitions.by_name, lasts)),
    )


def _models(
    context: Context, snapshot: Snapshot, definitions: Mapping[ModelName, Any], lasts: Mapping[str, Moment]
) -> Iterable[ShownModel]:
    queues = {queue.model: queue for queue in snapshot.queues}
    views = {view.name: view for view in snapshot.models}
    counted = context.stats.told().models
    # A monotonic time of the scheduler as Unix time, to a second: what did not change must read the same.
    offset = time.time() - snapshot.now
    running: dict[ModelName, list[InstanceView]] = {}
    for one in snapshot.instances:
        running.setdefault(one.model, []).append(one)
    for card in listed(context.known.cards, context.known.definitions, snapshot):
        name = card.id
        yield _shown(
            card,
            running.get(name, []),
            queues.get(name),
            views.get(name),
            counted.get(name),
            _predicted(definitions[name], running.get(name, [])),
            lasts.get(name),
            offset,
        )


def _shown(
    card: Row,
    ones: list[InstanceView],
    queue: QueueView | None,
    view: ModelView | None,
    counted: Counted | None,
    predicted: int,
    last: Moment | None,
    offset: float,
) -> ShownModel:
    def unix(moments: Iterable[float | None]) -> float | None:
        known = [moment for moment in moments if moment is not None and isfinite(moment)]
        return float(round(max(known) + offset)) if known else None

    measured = [sum(one.used.values()) for one in ones if one.used]
    status = card.status
    return ShownModel(
        id=card.id,
        aliases=card.aliases,
        value=status.value,
        states=tuple(one.state.value for one in ones),
        predicted=predicted,
        measured=sum(measured) if measured else None,
        leases=sum(len(one.leases) for one in ones),
        waiting=queue.waiting if queue is not None else 0,
        reason=queue.reason if queue is not None else None,
        expected_seconds=_whole(queue.expected_seconds) if queue is not None else None,
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


def _predicted(definition: Any, ones: list[InstanceView]) -> int:
    """What it has reserved, or would."""
    if ones:
        return sum(sum(one.reserved.values()) for one in ones)
    placements = definition.model.placements
    return sum(placements[0].footprint.values()) if placements else 0


def _whole(seconds: float | None) -> float | None:
    return float(round(seconds)) if seconds is not None and isfinite(seconds) else None

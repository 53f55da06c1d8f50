"""Two snapshots as events: what changed between them and is no entry of the journal. And a snapshot as a
whole, in the same shapes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from router.scheduler.types import ModelName, State
from router.scheduler.views import InstanceView, QueueView, Snapshot

#: Stands for all models.
ALL: Final = "*"


class ModelEvent(msgspec.Struct, frozen=True):
    """llama.cpp's frame. `event` is one of its own: model_status, status_change, download_progress,
    download_finished, download_failed, model_remove, models_reload; or one of ours: plan, drain, evict, stop,
    pin, queue, activity, memory, snapshot, reset, shutdown."""

    model: ModelName
    event: str
    data: Mapping[str, Any]


def changes(before: Snapshot, now: Snapshot) -> Iterator[ModelEvent]:
    """Who waits for what, what is planned, who drains, how far a load is, and who is used."""
    yield from _queues(before, now)
    old = {one.id: one for one in before.instances}
    loads = {view.name: view.load_seconds for view in now.models}
    for one in now.instances:
        yield from _instance(old.get(one.id), one, now.now, loads.get(one.model))


def memory(before: Snapshot, now: Snapshot) -> Iterator[ModelEvent]:
    """Bytes per device; where nothing moved, nothing."""
    if before.devices != now.devices:
        yield ModelEvent(ALL, "memory", {"devices": devices(now)})


def devices(snapshot: Snapshot) -> list[Mapping[str, Any]]:
    return [
        {
            "id": one.id,
            "label": one.label,
            "total": one.total,
            "margin": one.margin,
            "free": one.free,
            "ours": one.used,
            "others": one.others,
            "reserved": one.reserved,
        }
        for one in snapshot.devices
    ]


def instances(snapshot: Snapshot) -> Mapping[ModelName, list[Mapping[str, Any]]]:
    """Everything that runs or is planned, by model."""
    found = defaultdict[ModelName, list[Mapping[str, Any]]](list)
    for one in snapshot.instances:
        shown = {
            "id": one.id,
            "state": one.state.value,
            "leases": len(one.leases),
            "pinned": one.pinned,
            "reserved": dict(one.reserved),
            "measured": dict(one.used),
            "since_seconds": round(snapshot.now - one.since, 3),
            "idle_seconds": None if one.idle_since is None else round(snapshot.now - one.idle_since, 3),
            "cause": _cause(one),
            "for": one.for_model,
        }
        found[one.model].append(shown)
    return found


def queue_data(queue: QueueView) -> dict[str, Any]:
    names = ("waiting", "position", "reason", "expected_seconds")
    return {name: getattr(queue, name) for name in names}


def _queues(before: Snapshot, now: Snapshot) -> Iterator[ModelEvent]:
    """What a queue expects changes with every moment: that alone is no event."""
    old = {one.model: (one.waiting, one.position, one.reason) for one in before.queues}
    for queue in now.queues:
        if old.pop(queue.model, None) != (queue.waiting, queue.position, queue.reason):
            yield ModelEvent(queue.model, "queue", queue_data(queue))
    for model in old:
        yield ModelEvent(model, "queue", {"waiting": 0})


def _instance(
    was: InstanceView | None, one: InstanceView, now: float, load_seconds: float | None
) -> Iterator[ModelEvent]:
    match one.state:
        case State.PLANNED if was is None:
            needed = {device: size for device, size in one.reserved.items() if size}
            plan = {"instance": one.id, "devices": needed, "leave": list(one.victims)}
            yield ModelEvent(one.model, "plan", plan)
        case State.DRAINING if was is None or was.state is not State.DRAINING:
            drain = {"instance": one.id, "cause": _cause(one), "for": one.for_model}
            yield ModelEvent(one.model, "drain", {**drain, "leases": len(one.leases)})
        case State.STARTING:
            # As llama.cpp tells it; `value` is the share of the time that loads of this model have taken.
            passed = now - one.started_at if one.started_at is not None else 0.0
            value = min(0.99, passed / load_seconds) if load_seconds else 0.0
            progress = {"stages": ["text_model"], "current": "text_model", "value": round(value, 3)}
            loading = {"status": "loading", "instance": one.id, "progress": progress}
            yield ModelEvent(one.model, "status_change", loading)
    if len(one.leases) != (len(was.leases) if was is not None else 0):
        yield ModelEvent(one.model, "activity", {"instance": one.id, "leases": len(one.leases)})


def _cause(one: InstanceView) -> str | None:
    return one.cause.value if one.cause is not None else None

"""Two snapshots as events: what changed between them and is no entry of the journal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from router.observability.events.told import ALL, ModelEvent
from router.scheduler.types import DeviceId, InstanceId, ModelName, State
from router.scheduler.views import InstanceView, QueueView, Snapshot


def changes(before: Snapshot, now: Snapshot) -> Iterator[ModelEvent]:
    """Who waits for what, what is planned, who drains, how far a load is, and who is used."""
    yield from _queues(before, now)
    old = {one.id: one for one in before.instances}
    loads = {view.name: view.load_seconds for view in now.models}
    for one in now.instances:
        yield from _instance(old.get(one.id), one, now, loads.get(one.model))


def memory(before: Snapshot | None, now: Snapshot) -> Iterator[ModelEvent]:
    """Bytes per device; where nothing moved, nothing."""
    if before is None or before.devices != now.devices:
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


def instances(snapshot: Snapshot) -> dict[ModelName, list[Mapping[str, Any]]]:
    """Everything that runs or is planned, by model."""
    found: dict[ModelName, list[Mapping[str, Any]]] = {}
    for one in snapshot.instances:
        shown: dict[str, Any] = {
            "id": one.id,
            "state": one.state.value,
            "leases": len(one.leases),
            "pinned": one.pinned,
            "reserved": dict(one.reserved),
            "measured": dict(one.used),
            "since_seconds": round(snapshot.now - one.since, 3),
            "idle_seconds": None if one.idle_since is None else round(snapshot.now - one.idle_since, 3),
            "cause": one.cause.value if one.cause is not None else None,
            "for": one.for_model,
        }
        found.setdefault(one.model, []).append(shown)
    return found


def queue_data(queue: QueueView) -> dict[str, Any]:
    return {
        "waiting": queue.waiting,
        "position": queue.position,
        "reason": queue.reason,
        "expected_seconds": queue.expected_seconds,
    }


def _queues(before: Snapshot, now: Snapshot) -> Iterator[ModelEvent]:
    old = {queue.model: queue for queue in before.queues}
    for queue in now.queues:
        was = old.pop(queue.model, None)
        # What it expects changes with every moment: that alone is no news.
        if was is None or (was.waiting, was.position, was.reason) != (
            queue.waiting,
            queue.position,
            queue.reason,
        ):
            yield ModelEvent(queue.model, "queue", queue_data(queue))
    for model in old:
        yield ModelEvent(model, "queue", {"waiting": 0})


def _instance(
    was: InstanceView | None, one: InstanceView, now: Snapshot, load_seconds: float | None
) -> Iterator[ModelEvent]:
    match one.state:
        case State.PLANNED if was is None:
            plan = {"instance": one.id, "devices": _bytes(one.reserved), "leave": list(one.victims)}
            yield ModelEvent(one.model, "plan", plan)
        case State.DRAINING if was is None or was.state is not State.DRAINING:
            cause = one.cause.value if one.cause is not None else None
            drain = {"instance": one.id, "cause": cause, "for": one.for_model, "leases": len(one.leases)}
            yield ModelEvent(one.model, "drain", drain)
        case State.STARTING:
            yield ModelEvent(one.model, "status_change", _loading(one.id, one, now.now, load_seconds))
    leases = len(was.leases) if was is not None else 0
    if len(one.leases) != leases:
        yield ModelEvent(one.model, "activity", {"instance": one.id, "leases": len(one.leases)})


def _loading(
    instance: InstanceId, one: InstanceView, now: float, load_seconds: float | None
) -> dict[str, Any]:
    """As llama.cpp tells it; `value` is the share of the time that loads of this model have taken."""
    passed = now - one.started_at if one.started_at is not None else 0.0
    value = min(0.99, passed / load_seconds) if load_seconds else 0.0
    stages = ["text_model"]
    progress = {"stages": stages, "current": stages[0], "value": round(value, 3)}
    return {"status": "loading", "instance": instance, "progress": progress}


def _bytes(footprint: Mapping[DeviceId, int]) -> dict[DeviceId, int]:
    return {device: size for device, size in footprint.items() if size}

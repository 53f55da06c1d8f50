"""What there is at this moment: read off a snapshot when it is asked for, kept nowhere."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from router.memory.devices import DeviceInfo
from router.memory.estimate.learning import FootprintStatus
from router.observability.stats import Counted
from router.scheduler.types import DeviceId, InstanceId, ModelName, State
from router.scheduler.views import DeviceView, Snapshot

_MODEL: Final = ("model",)
_DEVICE: Final = ("device", "name")
_COUNTED: Final[Mapping[str, str]] = {
    "hits": "Requests that found their model loaded.",
    "loads": "Loads that came to a ready llama-server.",
    "swaps": "Loads for which at least one other llama-server had to leave.",
    "evictions": "llama-servers ended to make room for another model.",
    "crashes": "Ready llama-servers that ended without being told to.",
}


#: Bytes by model and device.
_Bytes: TypeAlias = defaultdict[tuple[ModelName, DeviceId], int]
#: Bytes of a device, None where they are not known.
_MEMORY: Final[Mapping[str, tuple[str, Callable[[DeviceView], int | None]]]] = {
    "size": ("Memory of a device that can be used at all.", lambda one: one.total),
    "free": ("Memory that is free, as measured.", lambda one: one.free),
    "ours": ("Memory that our models hold, as measured.", lambda one: one.used),
    "others": ("Memory that other programs hold.", lambda one: one.others),
    "reserved": ("Memory reserved for our models.", lambda one: one.reserved),
    "promised": ("Memory reserved for our models and not taken yet.", lambda one: one.promised),
    "room": ("What a newcomer may have.", lambda one: one.room),
    "margin": ("What is to stay free, by configuration.", lambda one: one.margin),
    "margin_left": (
        "What would be free if our models took all that was promised them: below the margin, others took it.",
        lambda one: None if one.free is None else one.free - one.promised,
    ),
}


@dataclass(frozen=True, slots=True)
class Seen:
    """All of one moment. `standings` are those of running instances."""

    snapshot: Snapshot
    standings: Mapping[InstanceId, FootprintStatus | None]
    infos: Mapping[DeviceId, DeviceInfo]
    counted: Mapping[ModelName, Counted] = field(default_factory=dict)


def state_families(seen: Seen) -> Iterator[Metric]:
    yield from _models(seen)
    yield from _memory_of_models(seen)
    yield from _devices(seen)


def _models(seen: Seen) -> Iterator[Metric]:
    """A row for every model, loaded or not: a series that comes and goes cannot be told from one at 0."""
    snapshot = seen.snapshot
    queues = {queue.model: queue for queue in snapshot.queues}
    leases = dict.fromkeys((model.name for model in snapshot.models), 0)
    instances = {(name, State.READY): 0 for name in leases}
    for one in snapshot.instances:
        leases[one.model] = leases.get(one.model, 0) + len(one.leases)
        instances[one.model, one.state] = instances.get((one.model, one.state), 0) + 1
    yield _gauge(
        "leases", "Requests that hold a model now.", _MODEL, (((name,), n) for name, n in leases.items())
    )
    yield _gauge(
        "queue_length",
        "Requests that wait for a model now.",
        _MODEL,
        (((name,), queues[name].waiting if name in queues else 0) for name in leases),
    )
    yield _gauge(
        "queue_oldest_seconds",
        "How long the longest waiting request for a model has waited.",
        _MODEL,
        (((name,), snapshot.now - queue.oldest_since) for name, queue in queues.items()),
    )
    yield _gauge(
        "instances",
        "llama-servers by state: planned, starting, ready, draining, stopping.",
        ("model", "state"),
        (((name, state.value), count) for (name, state), count in instances.items()),
    )
    yield _gauge(
        "expected_load_seconds",
        "How long a load of the model is expected to take, from those that were measured.",
        _MODEL,
        (((model.name,), model.load_seconds) for model in snapshot.models),
    )
    yield _gauge(
        "models_limit",
        "At most so many models at a time (scheduler.models_max); 0: as many as fit.",
        (),
        [((), snapshot.models_max)],
    )
    for name, help_ in _COUNTED.items():
        family = CounterMetricFamily(f"llama_router_{name}_total", help_, labels=_MODEL)
        for model in snapshot.models:
            counted = seen.counted.get(model.name)
            family.add_metric((model.name,), 0 if counted is None else getattr(counted, name))
        yield family


def _memory_of_models(seen: Seen) -> Iterator[Metric]:
    """Replicas on one device are summed."""
    predicted, reserved, measured, error = (_Bytes(int) for _ in range(4))
    for one in seen.snapshot.instances:
        if one.state is State.PLANNED:
            continue
        standing = seen.standings.get(one.id)
        promised = standing.predicted if standing is not None else one.placement.footprint
        peak = standing.measured if standing is not None else {}
        beyond = {device: size - promised[device] for device, size in peak.items() if device in promised}
        for of_all, of_one in (
            (predicted, promised),
            (reserved, one.reserved),
            (measured, one.used),
            (error, beyond),
        ):
            for device, size in of_one.items():
                of_all[one.model, _short(device)] += size
    for name, help_, sizes in (
        ("predicted", "What was predicted from the file and the settings.", predicted),
        ("reserved", "What is reserved now: the prediction, corrected by what was measured.", reserved),
        ("measured", "What was measured last.", measured),
        ("error", "The most that was ever measured, less what was predicted.", error),
    ):
        help_ = f"Memory of a loaded model on a device. {help_}"
        yield _gauge(f"model_memory_{name}_bytes", help_, ("model", "device"), sizes.items())


def _devices(seen: Seen) -> Iterator[Metric]:
    devices = [(one, (_short(one.id), one.label)) for one in seen.snapshot.devices]
    found = [(seen.infos[one.id], labels) for one, labels in devices if one.id in seen.infos]
    for name, (help_, read) in _MEMORY.items():
        rows = [(labels, read(one)) for one, labels in devices]
        yield _gauge(f"device_memory_{name}_bytes", help_, _DEVICE, rows)
    yield _gauge(
        "device_healthy",
        "1: the device can be measured, and takes models.",
        _DEVICE,
        ((labels, int(one.free is not None)) for one, labels in devices),
    )
    yield _gauge(
        "device_utilisation_ratio",
        "How busy a device is, from 0 to 1, where its driver tells.",
        _DEVICE,
        (
            (labels, info.utilisation_percent / 100)
            for info, labels in found
            if info.utilisation_percent is not None
        ),
    )
    yield _gauge(
        "device_temperature_celsius",
        "Temperature of a device, where its driver tells.",
        _DEVICE,
        ((labels, info.temperature_celsius) for info, labels in found),
    )


def _gauge(
    name: str,
    help_: str,
    labels: tuple[str, ...],
    rows: Iterable[tuple[tuple[str, ...], float | None]],
) -> Metric:
    """What is not known is left out."""
    family = GaugeMetricFamily(f"llama_router_{name}", help_, labels=labels)
    for values, value in rows:
        if value is not None:
            family.add_metric(values, value)
    return family


def _short(device: DeviceId) -> str:
    """Without the host: one router, one machine."""
    return device.partition("/")[2] or device

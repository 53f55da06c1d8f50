"""What there is at this moment: read off a snapshot when it is asked for, kept nowhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from router.memory.devices import DeviceInfo
from router.memory.estimate.learning import FootprintStatus
from router.observability.stats import Counted
from router.scheduler.types import DeviceId, InstanceId, ModelName, State
from router.scheduler.views import DeviceView, InstanceView, Snapshot

if TYPE_CHECKING:
    from prometheus_client import Metric

_MODEL: Final = ("model",)
_MODEL_ON_DEVICE: Final = ("model", "device")
_DEVICE: Final = ("device", "name")
_COUNTED: Final[Mapping[str, str]] = {
    "hits": "Requests that found their model loaded.",
    "loads": "Loads that came to a ready llama-server.",
    "swaps": "Loads for which at least one other llama-server had to leave.",
    "evictions": "llama-servers ended to make room for another model.",
    "crashes": "Ready llama-servers that ended without being told to.",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """All of one moment. `standings` are those of running instances."""

    snapshot: Snapshot
    standings: Mapping[InstanceId, FootprintStatus | None]
    infos: Mapping[DeviceId, DeviceInfo]
    counted: Mapping[ModelName, Counted] = field(default_factory=dict)


def state_families(seen: Seen) -> Iterator[Metric]:
    yield from _models(seen.snapshot)
    yield from _counted(seen)
    yield from _memory_of_models(seen)
    yield from _devices(seen)


def _models(snapshot: Snapshot) -> Iterator[Metric]:
    """A row for every model, loaded or not: a series that comes and goes cannot be told from one at 0."""
    queues = {queue.model: queue for queue in snapshot.queues}
    leases = dict.fromkeys((model.name for model in snapshot.models), 0)
    instances: dict[tuple[ModelName, State], int] = {(name, State.READY): 0 for name in leases}
    for one in snapshot.instances:
        leases[one.model] = leases.get(one.model, 0) + len(one.leases)
        instances[one.model, one.state] = instances.get((one.model, one.state), 0) + 1
    yield _gauge(
        "llama_router_leases",
        "Requests that hold a model now.",
        _MODEL,
        (((name,), count) for name, count in leases.items()),
    )
    yield _gauge(
        "llama_router_queue_length",
        "Requests that wait for a model now.",
        _MODEL,
        (((name,), queues[name].waiting if name in queues else 0) for name in leases),
    )
    yield _gauge(
        "llama_router_queue_oldest_seconds",
        "How long the longest waiting request for a model has waited.",
        _MODEL,
        (((name,), snapshot.now - queue.oldest_since) for name, queue in queues.items()),
    )
    yield _gauge(
        "llama_router_instances",
        "llama-servers by state: planned, starting, ready, draining, stopping.",
        ("model", "state"),
        (((name, state.value), count) for (name, state), count in instances.items()),
    )
    yield _gauge(
        "llama_router_expected_load_seconds",
        "How long a load of the model is expected to take, from those that were measured.",
        _MODEL,
        (((model.name,), model.load_seconds) for model in snapshot.models),
    )
    yield _gauge(
        "llama_router_models_limit",
        "At most so many models at a time (scheduler.models_max); 0: as many as fit.",
        (),
        (((), snapshot.models_max),),
    )


def _counted(seen: Seen) -> Iterator[Metric]:
    """What `router.observability.stats` has counted since the start."""
    from prometheus_client.core import CounterMetricFamily

    for name, help_ in _COUNTED.items():
        family = CounterMetricFamily(f"llama_router_{name}_total", help_, labels=_MODEL)
        for model in seen.snapshot.models:
            counted = seen.counted.get(model.name)
            family.add_metric((model.name,), 0 if counted is None else getattr(counted, name))
        yield family


def _memory_of_models(seen: Seen) -> Iterator[Metric]:
    """Replicas on one device are summed."""
    predicted: dict[tuple[ModelName, DeviceId], int] = {}
    reserved: dict[tuple[ModelName, DeviceId], int] = {}
    measured: dict[tuple[ModelName, DeviceId], int] = {}
    error: dict[tuple[ModelName, DeviceId], int] = {}
    for one in seen.snapshot.instances:
        if one.state is State.PLANNED:
            continue
        standing = seen.standings.get(one.id)
        promised = standing.predicted if standing is not None else one.placement.footprint
        _add(predicted, one, promised)
        _add(reserved, one, one.reserved)
        _add(measured, one, one.used)
        if standing is not None:
            _add(
                error, one, {d: peak - promised[d] for d, peak in standing.measured.items() if d in promised}
            )
    for name, help_, values in (
        ("predicted", "What was predicted from the file and the settings.", predicted),
        ("reserved", "What is reserved now: the prediction, corrected by what was measured.", reserved),
        ("measured", "What was measured last.", measured),
        ("error", "The most that was ever measured, less what was predicted.", error),
    ):
        yield _gauge(
            f"llama_router_model_memory_{name}_bytes",
            f"Memory of a loaded model on a device. {help_}",
            _MODEL_ON_DEVICE,
            (((model, _short(device)), size) for (model, device), size in values.items()),
        )


def _devices(seen: Seen) -> Iterator[Metric]:
    devices = seen.snapshot.devices

    def of_memory(name: str, help_: str, read: Mapping[DeviceId, int | None]) -> Metric:
        rows = ((_labels(one), read[one.id]) for one in devices)
        return _gauge(f"llama_router_device_memory_{name}_bytes", help_, _DEVICE, rows)

    yield of_memory("size", "Memory of a device that can be used at all.", {d.id: d.total for d in devices})
    yield of_memory("free", "Memory that is free, as measured.", {d.id: d.free for d in devices})
    yield of_memory("ours", "Memory that our models hold, as measured.", {d.id: d.used for d in devices})
    yield of_memory("others", "Memory that other programs hold.", {d.id: d.others for d in devices})
    yield of_memory("reserved", "Memory reserved for our models.", {d.id: d.reserved for d in devices})
    yield of_memory(
        "promised", "Memory reserved for our models and not taken yet.", {d.id: d.promised for d in devices}
    )
    yield of_memory("room", "What a newcomer may have.", {d.id: d.room for d in devices})
    yield of_memory("margin", "What is to stay free, by configuration.", {d.id: d.margin for d in devices})
    yield of_memory(
        "margin_left",
        "What would be free if our models took all that was promised them: below the margin, others took it.",
        {d.id: None if d.free is None else d.free - d.promised for d in devices},
    )
    yield _gauge(
        "llama_router_device_healthy",
        "1: the device can be measured, and takes models.",
        _DEVICE,
        ((_labels(one), int(one.free is not None)) for one in devices),
    )
    found = [(one, info) for one in devices if (info := seen.infos.get(one.id)) is not None]
    yield _gauge(
        "llama_router_device_utilisation_ratio",
        "How busy a device is, from 0 to 1, where its driver tells.",
        _DEVICE,
        (
            (_labels(one), None if info.utilisation_percent is None else info.utilisation_percent / 100)
            for one, info in found
        ),
    )
    yield _gauge(
        "llama_router_device_temperature_celsius",
        "Temperature of a device, where its driver tells.",
        _DEVICE,
        ((_labels(one), info.temperature_celsius) for one, info in found),
    )


def _gauge(
    name: str,
    help_: str,
    labels: tuple[str, ...],
    rows: Iterable[tuple[tuple[str, ...], float | None]],
) -> Metric:
    """What is not known is left out."""
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(name, help_, labels=labels)
    for values, value in rows:
        if value is not None:
            family.add_metric(values, value)
    return family


def _add(to: dict[tuple[ModelName, DeviceId], int], one: InstanceView, sizes: Mapping[DeviceId, int]) -> None:
    for device, size in sizes.items():
        to[one.model, device] = to.get((one.model, device), 0) + size


def _labels(device: DeviceView) -> tuple[str, str]:
    return _short(device.id), device.label


def _short(device: DeviceId) -> str:
    """Without the host: one router, one machine."""
    return device.partition("/")[2] or device

"""The shapes of what `/vram`, `/vram/plan` and `/explain` answer: read by the type checker where they are
made, and by programs in `/openapi.json`. Bytes, everywhere; a device is named by its id."""

from __future__ import annotations

from typing import Literal, NotRequired, TypeAlias, TypedDict

from router.memory.estimate.learning import Confidence
from router.scheduler.types import DeviceId, InstanceId, ModelName

ByDevice: TypeAlias = dict[DeviceId, int]


class Explained(TypedDict):
    """Why a model is where it is. `would_evict` is who would leave for it, `reading` how its files were read
    the last time, `warnings` why it runs on the CPU though there is a GPU."""

    model: ModelName
    state: str
    text: str
    waiting: int
    waits_for: str | None
    would_evict: tuple[InstanceId, ...]
    placement: ByDevice | None
    shortfall: ByDevice
    last_evicted_for: ModelName | None
    last_evicted_seconds_ago: float | None
    second_opinion: NotRequired[str | None]
    reading: NotRequired[str | None]
    warnings: NotRequired[tuple[str, ...]]


# --- /vram ---


class Share(TypedDict):
    """What an instance has of one device."""

    id: InstanceId
    model: ModelName
    state: str
    reserved: int
    measured: int | None
    leases: int


class DeviceShares(TypedDict):
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


class Held(TypedDict):
    """What an instance was predicted to take of a device, what is kept for it, what it takes, and the most
    that was ever seen."""

    predicted: int
    reserved: int
    measured: int | None
    peak: int | None


class LoadedModel(TypedDict):
    id: InstanceId
    model: ModelName
    state: str
    confidence: Confidence
    predicted: int
    reserved: int
    measured: int | None
    devices: dict[DeviceId, Held]


class Vram(TypedDict):
    policy: str
    models_max: int
    devices: list[DeviceShares]
    models: list[LoadedModel]
    notes: list[str]


# --- plans ---


class PlannedDevice(TypedDict):
    """`room` now, `room_if_empty` with none of our models loaded."""

    id: DeviceId
    label: str
    healthy: bool
    total: int
    margin: int
    others: int | None
    room: int | None
    room_if_empty: int | None


class Term(TypedDict):
    device: DeviceId
    kind: str
    bytes: int
    explanation: str


class Opinion(TypedDict):
    """What llama-fit-params thinks of it."""

    state: str
    text: str


class Way(TypedDict):
    """One way to load a model; its terms add up to its footprint."""

    tier: int
    devices: tuple[DeviceId, ...]
    ctx_size: int
    n_gpu_layers: int | None
    tensor_split: tuple[float, ...] | None
    bytes: int
    footprint: ByDevice
    predicted: ByDevice
    confidence: Confidence
    is_guess: bool
    missing_now: ByDevice
    missing_if_empty: ByDevice
    second_opinion: Opinion | None
    terms: list[Term]


class Refused(TypedDict):
    status: int
    code: str
    message: str


class OneModel(TypedDict):
    """Every way to load a model, best first. `chosen` is the index of the way that it would take."""

    model: ModelName
    state: str
    text: str
    would: Literal["start", "wait", "refuse"] | None
    chosen: int | None
    would_evict: tuple[InstanceId, ...]
    missing: ByDevice
    refusal: Refused | None
    n_ctx_train: int | None
    placements: list[Way]
    devices: list[PlannedDevice]


class PlanRow(TypedDict):
    """A model that cannot be used has an `error` and nothing else."""

    model: ModelName
    error: str | None
    ctx_size: NotRequired[int]
    bytes: NotRequired[int]
    footprint: NotRequired[ByDevice]
    devices: NotRequired[tuple[DeviceId, ...]]
    n_gpu_layers: NotRequired[int | None]
    confidence: NotRequired[Confidence]
    fits: NotRequired[Literal["now", "if empty", "no"]]
    loaded: NotRequired[bool]
    missing: NotRequired[ByDevice]


class FitModel(TypedDict):
    model: ModelName
    ctx_size: int
    reduced: bool
    devices: tuple[DeviceId, ...]
    footprint: ByDevice


class FitShape(TypedDict):
    """Models side by side, and what is left beside them."""

    models: list[FitModel]
    common_divisor: int
    footprint: ByDevice
    left: ByDevice


class Together(TypedDict):
    fits: bool
    exact: bool
    text: str
    all: FitShape | None
    sets: list[FitShape]


class Plan(TypedDict):
    devices: list[PlannedDevice]
    models_max: int
    models: list[PlanRow]
    together: Together | None

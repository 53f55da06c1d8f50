"""What a load would need and where it would go, as JSON: for one model term by term, for several whether they
fit together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType

from router.admin.listing import visible
from router.errors import ModelUnusable
from router.memory.estimate.learning import Confidence
from router.models.definitions import DefinedModel
from router.scheduler.ledger import UNBOUNDED
from router.scheduler.types import DeviceId, InstanceId, ModelName
from router.scheduler.views import DeviceView, Explanation
from router.supervisor.planning import (
    Choice,
    Fit,
    Seen,
    choices,
    empty_rooms,
    missing,
    opinion_words,
    plan_together,
    rooms_now,
    together_words,
)

ByDevice: TypeAlias = dict[DeviceId, int]

# --- shapes: in bytes; a device is named by its id ---


class PlannedDevice(msgspec.Struct, frozen=True):
    """`room` now, `room_if_empty` with none of our models loaded."""

    id: DeviceId
    label: str
    healthy: bool
    total: int
    margin: int
    others: int | None
    room: int | None
    room_if_empty: int | None


class Term(msgspec.Struct, frozen=True):
    device: DeviceId
    kind: str
    bytes: int
    explanation: str


class Opinion(msgspec.Struct, frozen=True):
    """What llama-fit-params thinks of it."""

    state: str
    text: str


class Way(msgspec.Struct, frozen=True):
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


class Refused(msgspec.Struct, frozen=True):
    status: int
    code: str
    message: str


class OneModel(msgspec.Struct, frozen=True):
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


class PlanRow(msgspec.Struct, frozen=True):
    """A model that cannot be used has an `error` and nothing else."""

    model: ModelName
    error: str | None
    ctx_size: int | UnsetType = UNSET
    bytes: int | UnsetType = UNSET
    footprint: ByDevice | UnsetType = UNSET
    devices: tuple[DeviceId, ...] | UnsetType = UNSET
    n_gpu_layers: int | UnsetType | None = UNSET
    confidence: Confidence | UnsetType = UNSET
    fits: Literal["now", "if empty", "no"] | UnsetType = UNSET
    loaded: bool | UnsetType = UNSET
    missing: ByDevice | UnsetType = UNSET


class FitModel(msgspec.Struct, frozen=True):
    model: ModelName
    ctx_size: int
    reduced: bool
    devices: tuple[DeviceId, ...]
    footprint: ByDevice


class FitShape(msgspec.Struct, frozen=True):
    """Models side by side, and what is left beside them."""

    models: list[FitModel]
    common_divisor: int
    footprint: ByDevice
    left: ByDevice


class Together(msgspec.Struct, frozen=True):
    fits: bool
    exact: bool
    text: str
    all: FitShape | None
    sets: list[FitShape]


class Plan(msgspec.Struct, frozen=True):
    devices: list[PlannedDevice]
    models_max: int
    models: list[PlanRow]
    together: Together | None


# --- made ---


def model_body(seen: Seen, definition: DefinedModel, explanation: Explanation) -> OneModel:
    """One model: every way to load it, best first, with the terms of its bytes, and what a request for it
    would do now. `chosen` is the index of the way it would take; `missing` what it lacks, per device."""
    rooms, empty = rooms_now(seen.snapshot), empty_rooms(seen.snapshot)
    placements = [_way(one, rooms, empty) for one in choices(seen, definition)]
    refusal = explanation.refusal
    return OneModel(
        model=definition.model.name,
        state=explanation.state,
        text=explanation.text,
        would=explanation.would,
        chosen=_chosen(definition, explanation),
        would_evict=explanation.would_evict,
        missing=dict(explanation.shortfall) or _least_missing(placements, explanation),
        refusal=None if refusal is None else Refused(refusal.status, refusal.code, refusal.message),
        n_ctx_train=definition.metadata.n_ctx_train if definition.metadata is not None else None,
        placements=placements,
        devices=_devices(seen),
    )


def plan_body(seen: Seen, names: Sequence[ModelName], ctx_size: int | None = None) -> Plan:
    """Several models: a row for each, and whether all fit together; with no names a row for every model that
    is not hidden. Up to seconds of arithmetic: call it in a thread. Raises ModelUnusable for a named one."""
    rows = [_row(seen, name, ctx_size, is_named=bool(names)) for name in names or visible(seen.definitions)]
    side_by_side = _together(seen, names, ctx_size) if names else None
    return Plan(_devices(seen), seen.snapshot.models_max, rows, side_by_side)


def _devices(seen: Seen) -> list[PlannedDevice]:
    empty = empty_rooms(seen.snapshot)
    return [
        PlannedDevice(
            id=device.id,
            label=device.label,
            healthy=device.free is not None,
            total=device.total,
            margin=device.margin,
            others=device.others,
            room=shown_room(device, device.room),
            room_if_empty=shown_room(device, empty[device.id]),
        )
        for device in seen.snapshot.devices
    ]


def shown_room(device: DeviceView, room: int | None) -> int | None:
    """Without a memory check (margin 0) the arithmetic has no bound, which no reader wants to see."""
    return device.total if room is not None and room >= UNBOUNDED // 2 else room


# --- one model ---


def _chosen(definition: DefinedModel, explanation: Explanation) -> int | None:
    """Which of its placements the scheduler would take. It may know better bytes of it, not other flags."""
    chosen = explanation.placement
    if chosen is None:
        return None
    pairs = enumerate(definition.model.placements)
    same = (at for at, one in pairs if (one.devices, one.args) == (chosen.devices, chosen.args))
    return next(same, None)


def _way(one: Choice, rooms: Mapping[DeviceId, int], empty: Mapping[DeviceId, int]) -> Way:
    estimate, standing = one.estimate, one.standing
    return Way(
        tier=estimate.tier,
        devices=estimate.devices,
        ctx_size=estimate.ctx_size,
        n_gpu_layers=estimate.n_gpu_layers,
        tensor_split=estimate.tensor_split,
        bytes=sum(one.reserved.values()),
        footprint=dict(one.reserved),
        predicted=dict(estimate.reserved if standing is None else standing.predicted),
        confidence=one.confidence,
        is_guess=estimate.estimate.is_guess,
        missing_now=missing(rooms, one.reserved),
        missing_if_empty=missing(empty, one.reserved),
        # None where nobody learns, or for a context that is not that of the model.
        second_opinion=None if standing is None else Opinion(standing.opinion, opinion_words(standing)),
        terms=list(_terms(one)),
    )


def _terms(one: Choice) -> Iterator[Term]:
    """They add up to the footprint, device by device."""
    estimate = one.estimate
    for term in estimate.estimate.terms:
        yield Term(estimate.estimate.pool_of(term.device), term.kind, term.bytes, term.explanation)
    tried = {device: size - estimate.footprint[device] for device, size in estimate.reserved.items()}
    for kind, sizes, why in (
        ("attempt", tried, "the estimate is more than there is, but may be too high: tried once with this"),
        ("second-opinion", one.second_opinion, "llama-fit-params counts so much more"),
        ("learned", one.corrections, "what measurements have shown beyond that, or less"),
    ):
        for device, size in sizes.items():
            if size:
                yield Term(device, kind, size, why)


def _least_missing(placements: Iterable[Way], explanation: Explanation) -> dict[DeviceId, int]:
    """Of what is refused, how much the nearest placement lacks: of an empty machine if that is too small."""
    if explanation.would != "refuse":
        return {}
    is_too_small = isinstance(explanation.refusal, ModelUnusable)
    shorts = [one.missing_if_empty if is_too_small else one.missing_now for one in placements]
    return min(shorts, key=lambda short: sum(short.values()), default={})


# --- several models ---


def _row(seen: Seen, name: ModelName, ctx_size: int | None, *, is_named: bool) -> PlanRow:
    try:
        definition = seen.defined(name, ctx_size)
    except ModelUnusable as error:
        if is_named:
            raise
        return PlanRow(name, error.message)
    ways = choices(seen, definition)
    rooms, empty = rooms_now(seen.snapshot), empty_rooms(seen.snapshot)
    now = next((one for one in ways if not missing(rooms, one.reserved)), None)
    ever = now or next((one for one in ways if not missing(empty, one.reserved)), None)
    best = ever or min(ways, key=lambda one: sum(missing(empty, one.reserved).values()))
    return PlanRow(
        model=name,
        error=None,
        ctx_size=best.estimate.ctx_size,
        bytes=sum(best.reserved.values()),
        footprint=dict(best.reserved),
        devices=best.estimate.devices,
        n_gpu_layers=best.estimate.n_gpu_layers,
        confidence=best.confidence,
        fits="now" if now is not None else "if empty" if ever is not None else "no",
        loaded=bool(seen.snapshot.of_model(name)),
        missing=missing(empty, best.reserved),
    )


def _together(seen: Seen, names: Sequence[ModelName], ctx_size: int | None) -> Together:
    found, wishes = plan_together(seen, names, ctx_size)
    return Together(
        fits=found.all is not None,
        exact=found.is_exact,
        text=together_words(found, wishes, most=seen.snapshot.models_max),
        all=None if found.all is None else _fit(seen, found.all),
        sets=[_fit(seen, fit) for fit in found.sets],
    )


def _fit(seen: Seen, fit: Fit) -> FitShape:
    taken: Counter[DeviceId] = Counter()
    for way in fit.ways.values():
        taken.update(way.footprint)
    empty = empty_rooms(seen.snapshot)
    return FitShape(
        models=[
            FitModel(name, way.ctx_size, bool(fit.steps[name]), way.devices, dict(way.footprint))
            for name, way in fit.ways.items()
        ],
        common_divisor=1 << fit.common,
        footprint=dict(taken),
        left={
            device.id: (shown_room(device, empty[device.id]) or 0) - taken[device.id]
            for device in seen.snapshot.devices
        },
    )

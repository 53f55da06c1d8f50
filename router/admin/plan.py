"""What a load would need and where it would go, as JSON: for one model term by term, for several whether they
fit together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NotRequired, TypeAlias, TypedDict

from router.admin.listing import visible
from router.errors import ModelUnusable
from router.memory.estimate.learning import Confidence
from router.models.definitions import Definition
from router.scheduler.ledger import UNBOUNDED
from router.scheduler.types import DeviceId, Footprint, InstanceId, ModelName
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


# --- made ---


def model_body(seen: Seen, definition: Definition, explanation: Explanation) -> OneModel:
    """One model: every way to load it, best first, with the terms of its bytes, and what a request for it
    would do now. `chosen` is the index of the way it would take; `missing` what it lacks, per device."""
    ways = choices(seen, definition)
    at = _chosen(definition, explanation)
    rooms, empty = rooms_now(seen.snapshot), empty_rooms(seen.snapshot)
    placements = [_way(one, rooms, empty) for one in ways]
    refusal = explanation.refusal
    return {
        "model": definition.model.name,
        "state": explanation.state,
        "text": explanation.text,
        "would": explanation.would,
        "chosen": at,
        "would_evict": explanation.would_evict,
        "missing": dict(explanation.shortfall) or _least_missing(placements, explanation),
        "refusal": None
        if refusal is None
        else {"status": refusal.status, "code": refusal.code, "message": refusal.message},
        "n_ctx_train": definition.metadata.n_ctx_train if definition.metadata is not None else None,
        "placements": placements,
        "devices": devices_body(seen),
    }


def plan_body(seen: Seen, names: Sequence[ModelName], ctx_size: int | None = None) -> Plan:
    """Several models: a row for each, and whether all fit together; with no names a row for every model that
    is not hidden. Up to seconds of arithmetic: call it in a thread. Raises ModelUnusable for a named one."""
    rows = names or visible(seen.definitions)
    body: Plan = {
        "devices": devices_body(seen),
        "models_max": seen.snapshot.models_max,
        "models": [_row(seen, name, ctx_size, is_named=bool(names)) for name in rows],
        "together": None,
    }
    if names:
        together, wishes = plan_together(seen, names, ctx_size)
        body["together"] = {
            "fits": together.all is not None,
            "exact": together.is_exact,
            "text": together_words(together, wishes, most=seen.snapshot.models_max),
            "all": None if together.all is None else _fit(seen, together.all),
            "sets": [_fit(seen, fit) for fit in together.sets],
        }
    return body


def devices_body(seen: Seen) -> list[PlannedDevice]:
    """The devices as a plan counts them: `room` now, `room_if_empty` with none of our models loaded."""
    empty = empty_rooms(seen.snapshot)
    return [
        {
            "id": device.id,
            "label": device.label,
            "healthy": device.free is not None,
            "total": device.total,
            "margin": device.margin,
            "others": device.others,
            "room": shown_room(device, device.room),
            "room_if_empty": shown_room(device, empty[device.id]),
        }
        for device in seen.snapshot.devices
    ]


def shown_room(device: DeviceView, room: int | None) -> int | None:
    """Without a memory check (margin 0) the arithmetic has no bound, which no reader wants to see."""
    return device.total if room is not None and room >= UNBOUNDED // 2 else room


# --- one model ---


def _chosen(definition: Definition, explanation: Explanation) -> int | None:
    """Which of its placements the scheduler would take. It may know better bytes of it, not other flags."""
    chosen = explanation.placement
    if chosen is None:
        return None
    pairs = enumerate(definition.model.placements)
    same = (at for at, one in pairs if (one.devices, one.args) == (chosen.devices, chosen.args))
    return next(same, None)


def _way(one: Choice, rooms: Mapping[DeviceId, int], empty: Mapping[DeviceId, int]) -> Way:
    estimate = one.estimate
    return {
        "tier": estimate.tier,
        "devices": estimate.devices,
        "ctx_size": estimate.ctx_size,
        "n_gpu_layers": estimate.n_gpu_layers,
        "tensor_split": estimate.tensor_split,
        "bytes": sum(one.reserved.values()),
        "footprint": dict(one.reserved),
        "predicted": dict(estimate.reserved if one.standing is None else one.standing.predicted),
        "confidence": one.confidence,
        "is_guess": estimate.estimate.is_guess,
        "missing_now": missing(rooms, one.reserved),
        "missing_if_empty": missing(empty, one.reserved),
        "second_opinion": _opinion(one),
        "terms": _terms(one),
    }


def _terms(one: Choice) -> list[Term]:
    """They add up to the footprint, device by device."""
    terms: list[Term] = [
        {
            "device": one.estimate.estimate.pool_of(term.device),
            "kind": term.kind,
            "bytes": term.bytes,
            "explanation": term.explanation,
        }
        for term in one.estimate.estimate.terms
    ]
    tried = {d: size - one.estimate.footprint[d] for d, size in one.estimate.reserved.items()}
    for kind, sizes, why in (
        ("attempt", tried, "the estimate is more than there is, but may be too high: tried once with this"),
        ("second-opinion", one.second_opinion, "llama-fit-params counts so much more"),
        ("learned", one.corrections, "what measurements have shown beyond that, or less"),
    ):
        terms += [
            {"device": device, "kind": kind, "bytes": size, "explanation": why}
            for device, size in sizes.items()
            if size
        ]
    return terms


def _opinion(one: Choice) -> Opinion | None:
    """None where nobody learns, or for a context that is not that of the model."""
    if one.standing is None:
        return None
    return {"state": one.standing.opinion, "text": opinion_words(one.standing)}


def _least_missing(placements: Iterable[Way], explanation: Explanation) -> dict[DeviceId, int]:
    """Of what is refused, how much the nearest placement lacks: of an empty machine if that is too small."""
    if explanation.would != "refuse":
        return {}
    if isinstance(explanation.refusal, ModelUnusable):
        shorts = [one["missing_if_empty"] for one in placements]
    else:
        shorts = [one["missing_now"] for one in placements]
    return min(shorts, key=lambda short: sum(short.values()), default={})


# --- several models ---


def _row(seen: Seen, name: ModelName, ctx_size: int | None, *, is_named: bool) -> PlanRow:
    try:
        definition = seen.defined(name, ctx_size)
    except ModelUnusable as error:
        if is_named:
            raise
        return {"model": name, "error": error.message}
    ways = choices(seen, definition)
    rooms, empty = rooms_now(seen.snapshot), empty_rooms(seen.snapshot)
    now = next((one for one in ways if not missing(rooms, one.reserved)), None)
    ever = now or next((one for one in ways if not missing(empty, one.reserved)), None)
    best = ever or min(ways, key=lambda one: sum(missing(empty, one.reserved).values()))
    return {
        "model": name,
        "error": None,
        "ctx_size": best.estimate.ctx_size,
        "bytes": sum(best.reserved.values()),
        "footprint": dict(best.reserved),
        "devices": best.estimate.devices,
        "n_gpu_layers": best.estimate.n_gpu_layers,
        "confidence": best.confidence,
        "fits": "now" if now is not None else "if empty" if ever is not None else "no",
        "loaded": bool(seen.snapshot.of_model(name)),
        "missing": missing(empty, best.reserved),
    }


def _fit(seen: Seen, fit: Fit) -> FitShape:
    taken: dict[DeviceId, int] = {}
    for way in fit.ways.values():
        for device, size in way.footprint.items():
            taken[device] = taken.get(device, 0) + size
    return {
        "models": [
            {
                "model": name,
                "ctx_size": way.ctx_size,
                "reduced": bool(fit.steps[name]),
                "devices": way.devices,
                "footprint": dict(way.footprint),
            }
            for name, way in fit.ways.items()
        ],
        "common_divisor": 1 << fit.common,
        "footprint": taken,
        "left": _left(seen, taken),
    }


def _left(seen: Seen, taken: Footprint) -> dict[DeviceId, int]:
    """What a further model could still have."""
    empty = empty_rooms(seen.snapshot)
    return {
        device.id: (shown_room(device, empty[device.id]) or 0) - taken.get(device.id, 0)
        for device in seen.snapshot.devices
    }

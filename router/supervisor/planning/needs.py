"""What is known of models and devices, made into what is counted with: choices, wishes and rooms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from router.memory.estimate import EstimatedPlacement
from router.memory.estimate.learning import Confidence, FootprintStatus
from router.models.definitions import DefinedModel, Definitions
from router.scheduler.ledger import UNBOUNDED
from router.scheduler.types import Device, DeviceId, Footprint, ModelName
from router.scheduler.views import DeviceView, Snapshot
from router.supervisor.planning.together import ModelDemand, Together, Way, fit_together

#: Contexts are halved down to this, as llama-server's own --fit does; a smaller one that is asked for stands.
SMALLEST_CTX: Final = 4096


@dataclass(frozen=True, slots=True)
class Seen:
    """All that is looked at. `standings` is what was learned of each placement of a model, where it was."""

    definitions: Definitions
    snapshot: Snapshot
    standings: Mapping[ModelName, Sequence[FootprintStatus]] = field(default_factory=dict)

    @property
    def devices(self) -> tuple[Device, ...]:
        return tuple(Device(one.id, one.total, one.margin, one.label) for one in self.snapshot.devices)

    def defined(self, name: ModelName, ctx_size: int | None = None) -> DefinedModel:
        """A model as it is defined, or as it would be with another context: never more than it was trained
        with, unless its own settings say more. Raises ModelUnusable."""
        definition = self.definitions.by_name[name]
        if definition.model.error is not None:
            raise definition.model.error.copy()
        if ctx_size is None:
            return definition
        trained = definition.metadata.n_ctx_train if definition.metadata is not None else None
        if trained is not None:
            ctx_size = min(ctx_size, max(trained, largest_ctx(definition)))
        return self.definitions.at_context(name, ctx_size, self.devices)


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to load a model: its bytes term by term, and what would be reserved. The two differ where a
    measurement has corrected the estimate."""

    estimate: EstimatedPlacement
    reserved: Footprint
    confidence: Confidence
    standing: FootprintStatus | None = None

    @property
    def second_opinion(self) -> dict[DeviceId, int]:
        """What llama.cpp itself counts beyond the estimate."""
        beyond = self.standing.beyond if self.standing is not None else {}
        return {device: size for device, size in beyond.items() if size}

    @property
    def corrections(self) -> dict[DeviceId, int]:
        """What is reserved beyond both; less than nothing where that was too high."""
        told, beyond = self.estimate.reserved, self.second_opinion
        return {
            device: difference
            for device in {**told, **self.reserved}
            if (difference := self.reserved.get(device, 0) - told.get(device, 0) - beyond.get(device, 0))
        }


def choices(seen: Seen, definition: DefinedModel) -> tuple[Choice, ...]:
    """The ways to load a model, best first. What was learned holds for its own context alone."""
    name = definition.model.name
    standings = seen.standings.get(name, ()) if definition is seen.definitions.by_name[name] else ()
    if len(standings) != len(definition.estimates):
        return _offered(seen, [Choice(one, one.reserved, "estimated") for one in definition.estimates])
    pairs = zip(definition.estimates, standings, strict=True)
    found = [Choice(one, standing.reserved, standing.confidence, standing) for one, standing in pairs]
    return _offered(seen, found)


def _offered(seen: Seen, found: Sequence[Choice]) -> tuple[Choice, ...]:
    """Without the resorts, which stand last, where something else could ever fit."""
    most = {one.id: UNBOUNDED if one.margin <= 0 else one.total - one.margin for one in seen.devices}
    others = tuple(one for one in found if not one.estimate.is_fallback)
    return others if any(not missing(most, one.reserved) for one in others) else tuple(found)


def plan_together(
    seen: Seen, names: Sequence[ModelName], ctx_size: int | None = None
) -> tuple[Together, tuple[ModelDemand, ...]]:
    """Which of these models fit together on this machine if nothing else is loaded, and at which contexts;
    and what was tried for each of them.

    Up to seconds of arithmetic. Raises ModelUnusable for one that cannot be loaded at all.
    """
    rooms, most = empty_rooms(seen.snapshot), seen.snapshot.models_max
    # Most questions end here, before any model is placed anew.
    as_it_is = tuple(wish(seen, name, ctx_size, is_reducible=False) for name in names)
    found = fit_together(rooms, as_it_is, most=most)
    if found.all is not None:
        return found, as_it_is
    reducible = tuple(wish(seen, name, ctx_size) for name in names)
    return fit_together(rooms, reducible, most=most), reducible


def wish(
    seen: Seen, name: ModelName, ctx_size: int | None = None, *, is_reducible: bool = True
) -> ModelDemand:
    """A model with the context it is defined with, or with another one, and with halves of that."""
    definition = seen.defined(name, ctx_size)
    steps = [_ways(seen, definition)]
    size = largest_ctx(definition)
    while is_reducible and size > SMALLEST_CTX:
        size = max(SMALLEST_CTX, size // 2)
        steps.append(_ways(seen, seen.definitions.at_context(name, size, seen.devices)))
    return ModelDemand(name, tuple(steps), definition.model.exclusive)


def largest_ctx(definition: DefinedModel) -> int:
    """Its context; "auto" gives each placement another one, and this is the largest."""
    return max((one.ctx_size for one in definition.estimates), default=0)


# --- rooms ---


def empty_rooms(snapshot: Snapshot) -> dict[DeviceId, int]:
    """Bytes per device that models could have if none were loaded; other programs keep what they have."""
    return {device.id: _empty_room(device) for device in snapshot.devices}


def rooms_now(snapshot: Snapshot) -> dict[DeviceId, int]:
    """Bytes per device that a newcomer may take beside all that is there; 0 on an unhealthy one."""
    return {device.id: device.room or 0 for device in snapshot.devices}


def missing(rooms: Mapping[DeviceId, int], footprint: Footprint) -> dict[DeviceId, int]:
    """Bytes short per device; empty when it fits."""
    return {
        device: need - max(0, rooms.get(device, 0))
        for device, need in footprint.items()
        if need > max(0, rooms.get(device, 0))
    }


def _empty_room(device: DeviceView) -> int:
    if device.others is None:
        return 0  # it is not healthy
    if device.margin <= 0:
        return UNBOUNDED  # the memory check is switched off there
    return max(0, device.total - device.margin - device.others)


def _ways(seen: Seen, definition: DefinedModel) -> tuple[Way, ...]:
    return tuple(
        Way(one.estimate.ctx_size, one.estimate.devices, one.reserved) for one in choices(seen, definition)
    )

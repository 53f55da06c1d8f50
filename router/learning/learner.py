"""Folds measurements into what is known of each model, corrects what is reserved, tells the scheduler.

It hears what the scheduler was told and what it answered, as the journal does, and so knows who runs where,
since when, and whether it was used.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Final, Self

from router.core.types import (
    NOTHING,
    Adopted,
    Command,
    Device,
    DeviceId,
    Event,
    Exited,
    Footprint,
    Grant,
    InstanceId,
    Learned,
    LeaseId,
    Measured,
    Model,
    ModelName,
    Placement,
    Ready,
    Release,
    Start,
)
from router.estimate import learning
from router.estimate.learning import (
    Prediction,
    Standing,
    believed_loss,
    folded,
    ran_out,
    reservation,
    standing,
)
from router.hosts import Measurement
from router.learning.kept import EntryId, Kept
from router.store import Store

log = logging.getLogger("router.learning")

#: Measurements nearer to each other than this are one trial: memory on its way back is measured every 50 ms.
TRIAL_SECONDS: Final = 2.0
#: A change of a footprint by less than this share of it is not worth a new plan.
MATERIAL_SHARE: Final = 100


@dataclass(slots=True, eq=False)
class _Running:
    """One instance. `reserved` is what the scheduler keeps for it as far as this side knows, `seen` the most
    it was measured to hold, `used` what it holds now.
    """

    model: ModelName
    prediction: Prediction
    reserved: Footprint
    is_ready: bool = False
    requests: int = 0
    leases: int = 0
    was_used: bool = False
    tried_at: float = float("-inf")
    seen: dict[DeviceId, int] = field(default_factory=dict)
    used: Footprint = field(default_factory=lambda: NOTHING)


class Learning:
    """An async context manager around what is kept in `store`; all else is synchronous, on one event loop."""

    def __init__(
        self,
        store: Store,
        *,
        now: Callable[[], float] = time.time,
        trial_seconds: float = TRIAL_SECONDS,
    ) -> None:
        self._kept = Kept(store, now=now)
        self._trial_seconds = trial_seconds
        self._predictions: Mapping[ModelName, tuple[Prediction, ...]] = {}
        self._models: dict[ModelName, Model] = {}
        self._told: dict[ModelName, Model] = {}
        self._users: dict[EntryId, list[ModelName]] = {}
        self._margins: dict[DeviceId, int] = {}
        self._running: dict[InstanceId, _Running] = {}
        self._leases: dict[LeaseId, InstanceId] = {}
        self._free: dict[DeviceId, int | None] = {}
        self._changed: set[EntryId] = set()

    async def __aenter__(self) -> Self:
        await self._kept.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for running in self._running.values():
            self._kept.touch(running.prediction.id)
        await self._kept.__aexit__(kind, error, trace)

    def define(
        self,
        models: Mapping[ModelName, Model],
        predictions: Mapping[ModelName, tuple[Prediction, ...]],
        devices: Iterable[Device],
    ) -> dict[ModelName, Model]:
        """Take the models there are from now on, and return them with what was learned in the place of what
        was predicted. What runs already goes on under what it was started with.
        """
        self._models, self._predictions = dict(models), predictions
        self._margins = {device.id: device.margin for device in devices}
        self._users = {}
        for name, places in predictions.items():
            for entry in {place.id for place in places}:
                self._users.setdefault(entry, []).append(name)
        self._changed.clear()
        self._told = {name: self._corrected(name) for name in models}
        return dict(self._told)

    # --- what happens ---

    def heard(self, event: Event, commands: Sequence[Command]) -> list[Event]:
        """Follow what the scheduler was told and answered; returns what it is to be told in turn."""
        found: list[Event] = []
        match event:
            case Adopted(instance, model, placement):
                self._begin(instance, model, placement)
                self._became_ready(instance)
            case Ready(instance):
                self._became_ready(instance)
            case Release(lease):
                self._gave_back(lease)
            case Measured():
                found = self._news()
            case Exited(instance, out_of_memory=out_of_memory):
                found = self._ended(instance, out_of_memory)
        for command in commands:
            match command:
                case Start(instance, model, placement):
                    self._begin(instance, model, placement)
                case Grant(lease, instance):
                    self._granted(lease, instance)
        return found

    def corrections(self, taken: Measurement) -> dict[InstanceId, Footprint]:
        """Learn from a measurement; returns what is to be reserved from now on, where that is another."""
        self._free.update(taken.free)
        corrected: dict[InstanceId, Footprint] = {}
        for instance, running in self._running.items():
            if instance not in taken.used:
                continue
            running.used = taken.used[instance]
            told, lost = taken.told.get(instance, NOTHING), taken.lost.get(instance, NOTHING)
            for device, size in told.items():
                running.seen[device] = max(size, running.seen.get(device, 0))
            if not running.is_ready or not self._fold(running, told, lost, taken.taken_at):
                continue
            prediction = running.prediction
            wanted = reservation(prediction, self._known(prediction), running.used)
            if wanted != running.reserved:
                running.reserved = corrected[instance] = wanted
        return corrected

    # --- for those who look ---

    def of_instance(self, instance: InstanceId) -> Standing | None:
        """What was predicted and measured of a running instance; None for one that is not known here."""
        running = self._running.get(instance)
        if running is None:
            return None
        learned = self._known(running.prediction)
        return standing(running.prediction, learned, reserved=running.reserved, measured=running.used)

    def of_model(self, model: ModelName) -> tuple[Standing, ...]:
        """What a load would reserve and why, for each placement of the model in its order."""
        places = self._predictions.get(model, ())
        return tuple(standing(place, self._known(place)) for place in places)

    # --- steps of the above ---

    def _known(self, prediction: Prediction) -> learning.Learned | None:
        learned = self._kept.get(prediction.id)
        # A row of the database is believed only if it could be ours.
        return learned if learned is not None and len(learned.peak) == len(prediction.devices) else None

    def _begin(self, instance: InstanceId, model: ModelName, placement: Placement) -> None:
        prediction = self._prediction_of(model, placement)
        if prediction is not None:
            self._running[instance] = _Running(model, prediction, placement.footprint)

    def _prediction_of(self, model: ModelName, placement: Placement) -> Prediction | None:
        known = self._models.get(model)
        if known is None or not self._predictions.get(model):
            return None
        pairs = zip(known.placements, self._predictions[model], strict=True)
        same = (p for place, p in pairs if (place.devices, place.args) == (placement.devices, placement.args))
        return next(same, None)

    def _became_ready(self, instance: InstanceId) -> None:
        running = self._running.get(instance)
        if running is not None:
            running.is_ready = True
            self._kept.touch(running.prediction.id)

    def _granted(self, lease: LeaseId, instance: InstanceId) -> None:
        running = self._running.get(instance)
        if running is not None:
            self._leases[lease] = instance
            running.leases += 1

    def _gave_back(self, lease: LeaseId) -> None:
        running = self._running.get(self._leases.pop(lease, ""))
        if running is not None:
            running.leases -= 1
            running.requests += 1
            running.was_used = True

    def _fold(self, running: _Running, told: Footprint, lost: Footprint, at: float) -> bool:
        """Learn from what was measured of one instance. False: that said nothing."""
        prediction = running.prediction
        # A process that works on a device holds something there: a zero is a driver that does not tell.
        sizes = [told.get(device) or None for device in prediction.devices]
        is_trial = None not in sizes and at - running.tried_at >= self._trial_seconds
        is_trial = is_trial and (running.was_used or running.leases > 0)
        sample = [
            size if size is not None else believed_loss(predicted, lost.get(device))
            for device, predicted, size in zip(prediction.devices, prediction.predicted, sizes, strict=True)
        ]
        if not any(sample):
            return False
        if is_trial:
            running.tried_at, running.was_used = at, False
        before = self._known(prediction)
        learned = folded(before, sample, requests=running.requests, is_trial=is_trial)
        running.requests = 0
        if learned != before:
            self._kept.put(prediction.id, learned, prediction.files)
            self._changed.add(prediction.id)
        return True

    def _ended(self, instance: InstanceId, out_of_memory: bool) -> list[Event]:
        running = self._running.pop(instance, None)
        if running is None:
            return []
        self._kept.touch(running.prediction.id)
        return self._ran_out(running) if out_of_memory else []

    def _ran_out(self, running: _Running) -> list[Event]:
        """Every placement of the model is believed to take more: the scheduler may choose another for the
        next try, and will have enlarged them all."""
        places = self._predictions.get(running.model, ())
        if running.prediction not in places:
            return []  # its definition was replaced meanwhile
        alike: dict[EntryId, list[Prediction]] = {}
        for place in places:
            alike.setdefault(place.id, []).append(place)
        for entry, same in alike.items():
            learned = self._known(same[0])
            place, reserved, seen = same[0], reservation(same[0], learned), dict[DeviceId, int]()
            if entry == running.prediction.id:
                place, reserved, seen = running.prediction, dict(running.reserved), running.seen
            raised = ran_out(
                learned,
                [reserved.get(device, 0) for device in place.devices],
                [seen.get(device, 0) for device in place.devices],
                [max(sizes) for sizes in zip(*(self._attainable(one, running) for one in same), strict=True)],
            )
            self._kept.put(entry, raised, place.files)
        log.warning(
            "%s ran out of memory with %s reserved: more is reserved for it from now on",
            running.model,
            " and ".join(f"{size / 2**30:.2f} GiB on {d}" for d, size in running.reserved.items()),
        )
        return self._news({place.id for place in places})

    def _attainable(self, place: Prediction, dead: _Running) -> list[int]:
        """What each device could give if all of ours left it: not what others hold, nor its margin."""
        living = [*self._running.values(), dead]
        found = []
        for device, most in zip(place.devices, place.most, strict=True):
            free = self._free.get(device)
            if free is not None:
                ours = sum(running.used.get(device, 0) for running in living)
                most = min(most, max(0, free + ours - self._margins.get(device, 0)))
            found.append(most)
        return found

    def _news(self, entries: Iterable[EntryId] | None = None) -> list[Event]:
        """The models whose footprints have changed so much that the scheduler should know."""
        changed = self._changed if entries is None else entries
        names = dict.fromkeys(name for entry in changed for name in self._users.get(entry, ()))
        self._changed = set()
        found: list[Event] = []
        for name in names:
            model = self._corrected(name)
            if entries is not None or _differ(self._told[name], model):
                self._told[name] = model
                found.append(Learned(model))
        return found

    def _corrected(self, name: ModelName) -> Model:
        model, places = self._models[name], self._predictions.get(name, ())
        if not places:
            return model
        pairs = zip(model.placements, places, strict=True)
        return replace(model, placements=tuple(self._placed(place, expected) for place, expected in pairs))

    def _placed(self, place: Placement, expected: Prediction) -> Placement:
        learned = self._known(expected)
        return place if learned is None else replace(place, footprint=reservation(expected, learned))


def _differ(old: Model, new: Model) -> bool:
    pairs = zip(old.placements, new.placements, strict=True)
    return any(_is_material(was.footprint, now.footprint) for was, now in pairs)


def _is_material(old: Footprint, new: Footprint) -> bool:
    return any(
        abs(new.get(device, 0) - old.get(device, 0)) * MATERIAL_SHARE > old.get(device, 0)
        for device in {**old, **new}
    )

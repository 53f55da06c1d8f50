"""Folds measurements into what is known of each model, corrects what is reserved, tells the scheduler.

It hears what the scheduler was told and what it answered, as the journal does, and so knows who runs where
and since when; how much each is used it is told with every measurement.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Final, Self

from router.db.store import Store
from router.hosts import Measurement
from router.ids import Definition
from router.memory.estimate import learning
from router.memory.estimate.fit_params import TIMEOUT_SECONDS
from router.memory.estimate.learning import (
    FootprintStatus,
    Opinion,
    Prediction,
    believed_loss,
    folded,
    ran_out,
    reservation,
    standing,
)
from router.scheduler.ledger import UNBOUNDED
from router.scheduler.types import (
    NOTHING,
    Adopted,
    Command,
    Device,
    DeviceId,
    Event,
    Exited,
    Footprint,
    InstanceId,
    Learned,
    Measured,
    Model,
    ModelName,
    Placement,
    Ready,
    Start,
)
from router.scheduler.views import Use
from router.supervisor.calibration.fit_params_cache import LOAD_PATIENCE_SECONDS, FitParamsCache
from router.supervisor.calibration.kept import EntryId, Kept

log = logging.getLogger("router.supervisor.calibration")

#: Measurements nearer to each other than this are one trial: memory on its way back is measured every 50 ms.
TRIAL_SECONDS: Final = 2.0
#: Loads with other settings than a model's own that are remembered, to learn from them.
VARIED_MAX: Final = 64
#: A device of which we can have so much is ours: what others hold of it is not why a model does not fit.
OURS_SHARE: Final = 0.9
#: A change of a footprint by less than this share of it is not worth a new plan.
MATERIAL_SHARE: Final = 100


@dataclass(frozen=True, slots=True)
class _Defined:
    """A model, and one prediction for each of its placements; none for one that cannot be run."""

    model: Model
    places: tuple[Prediction, ...] = ()

    @property
    def pairs(self) -> list[tuple[Placement, Prediction]]:
        return list(zip(self.model.placements, self.places, strict=True)) if self.places else []


@dataclass(slots=True, eq=False)
class _Running:
    """One instance."""

    model: ModelName
    prediction: Prediction
    #: Bytes per device that the scheduler reserves for it.
    reserved: Footprint
    is_ready: bool = False
    #: Whether it was measured since it is ready.
    is_known: bool = False
    #: How many of its requests had ended when they were last counted.
    counted: int = 0
    #: How many of them had ended at the last trial, and when that was, by the loop's clock.
    tried: int = 0
    tried_at: float = float("-inf")
    #: The most bytes per device that it was measured to hold.
    seen: dict[DeviceId, int] = field(default_factory=dict)
    #: What it holds now, in bytes per device.
    used: Footprint = field(default_factory=lambda: NOTHING)


class Learning:
    """An async context manager around what is kept in `store`; all else is synchronous, on one event loop."""

    def __init__(
        self,
        store: Store,
        *,
        now: Callable[[], float] = time.time,
        trial_seconds: float = TRIAL_SECONDS,
        opinions: FitParamsCache | None = None,
    ) -> None:
        self._kept = Kept(store, now=now)
        self._opinions = opinions or FitParamsCache(store, now=now)
        #: Set when `second_opinions` has other models to ask about.
        self._redefined = asyncio.Event()
        #: Whether another router learns from now on.
        self._is_over = False
        #: Measurements nearer to each other are one trial, in seconds.
        self._trial_seconds = trial_seconds
        #: The models as they are defined.
        self._own: dict[ModelName, _Defined] = {}
        #: The last models that were loaded with other settings, `VARIED_MAX` at most.
        self._varied: dict[tuple[ModelName, Definition], _Defined] = {}
        #: The models as the scheduler knows them.
        self._told: dict[ModelName, Model] = {}
        #: Bytes per device that stay free.
        self._margins: dict[DeviceId, int] = {}
        self._running: dict[InstanceId, _Running] = {}
        #: Free bytes per device as last measured; None: it could not be.
        self._free: dict[DeviceId, int | None] = {}
        #: What has changed since the scheduler was last told.
        self._changed: set[EntryId] = set()

    async def __aenter__(self) -> Self:
        await self._opinions.__aenter__()
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
        found = (_Defined(model, predictions.get(name, ())) for name, model in models.items())
        self._own = {one.model.name: self._with_answers(one) for one in found}
        self._redefined.set()
        self._margins = {device.id: device.margin for device in devices}
        self._changed.clear()
        self._told = {name: self._corrected(defined) for name, defined in self._own.items()}
        return dict(self._told)

    def vary(self, model: Model, places: Sequence[Prediction]) -> Model:
        """Take a model as one load gets it, with other settings than its own, and return it with what was
        learned of these.
        """
        defined = self._with_answers(_Defined(model, tuple(places)))
        self._varied[model.name, model.definition] = defined
        while len(self._varied) > VARIED_MAX:
            del self._varied[next(iter(self._varied))]
        return self._corrected(defined)

    # --- second opinions ---

    async def second_opinions(self) -> AsyncIterator[Event]:
        """For ever: of each placement that takes no GPU ask what llama.cpp counts, one after another and out
        of everybody's way. Yields what the scheduler is to be told."""
        while True:
            await self._redefined.wait()
            self._redefined.clear()
            for place in [place for defined in self._own.values() for place in defined.places]:
                question = place.question
                if question is None or self._opinions.of(question) is not None:
                    continue
                if question.touches_gpus or place.is_fallback:
                    continue
                if self._is_over:
                    return
                await self._opinions.ask(question, place.files, within_seconds=TIMEOUT_SECONDS)
                for event in self._changes(self._take_answers()):
                    yield event

    async def consult(self, instance: InstanceId) -> list[Event]:
        """Before a child is started, in the room that is reserved for it: ask, where nobody has, what
        llama.cpp counts. Bounded by `LOAD_PATIENCE_SECONDS`. Where more was counted than is reserved, returns
        what the scheduler is to be told before it plans anew; else nothing.
        """
        running = self._running.get(instance)
        if running is None or running.prediction.question is None:
            return []
        question, files = running.prediction.question, running.prediction.files
        if self._opinions.of(question) is None:
            await self._opinions.ask(question, files, within_seconds=LOAD_PATIENCE_SECONDS)
            self._changed |= self._take_answers()
        prediction = running.prediction = self._with_answer(running.prediction)
        wanted = reservation(prediction, self._known(prediction))
        is_enough = all(size <= running.reserved.get(device, 0) for device, size in wanted.items())
        if is_enough or not prediction.beyond:
            return []
        varied = [one for one in self._varied.values() if prediction.id in {place.id for place in one.places}]
        return [*self._changes({prediction.id}), *(Learned(self._corrected(one)) for one in varied)]

    async def hand_over(self) -> None:
        """Another router learns from now on."""
        self._is_over = True
        await self._opinions.close()

    def _with_answer(self, place: Prediction) -> Prediction:
        answer = self._opinions.of(place.question) if place.question is not None else None
        return place.with_fit_params(answer) if answer else place

    def _with_answers(self, defined: _Defined) -> _Defined:
        return replace(defined, places=tuple(map(self._with_answer, defined.places)))

    def _take_answers(self) -> set[EntryId]:
        """Take the answers there are into account; returns the entries of which more is predicted now."""
        before = [place for defined in self._own.values() for place in defined.places]
        self._own = {name: self._with_answers(defined) for name, defined in self._own.items()}
        self._varied = {load: self._with_answers(defined) for load, defined in self._varied.items()}
        after = [place for defined in self._own.values() for place in defined.places]
        return {now.id for was, now in zip(before, after, strict=True) if now != was}

    def _opinion(self, place: Prediction) -> Opinion:
        if place.question is None:
            return place.no_question
        answer = self._opinions.of(place.question)
        if not answer:
            return "open" if answer is None else "none"
        return "more" if place.beyond else "agrees"

    # --- what happens ---

    def on_event(self, event: Event, commands: Sequence[Command]) -> list[Event]:
        """Follow what the scheduler was told and answered; returns what it is to be told in turn."""
        found: list[Event] = []
        match event:
            case Adopted(instance, model, placement, definition):
                self._begin(instance, model, placement, definition)
                self._became_ready(instance, is_known=True)
            case Ready(instance):
                self._became_ready(instance)
            case Measured():
                found = self._changes()
            case Exited(instance, out_of_memory=out_of_memory):
                found = self._ended(instance, out_of_memory)
        for command in commands:
            if isinstance(command, Start):
                self._begin(command.instance, command.model, command.placement, command.definition)
        return found

    def corrections(self, taken: Measurement, use: Mapping[InstanceId, Use]) -> dict[InstanceId, Footprint]:
        """Learn from a measurement; returns what is to be reserved from now on, where that is another."""
        self._free.update(taken.free)
        corrected: dict[InstanceId, Footprint] = {}
        for instance, running in self._running.items():
            if instance not in taken.used or instance not in use:
                continue
            running.used = taken.used[instance]
            told, lost = taken.told.get(instance, NOTHING), taken.lost.get(instance, NOTHING)
            for device, size in told.items():
                running.seen[device] = max(size, running.seen.get(device, 0))
            if not running.is_ready:
                continue
            if not running.is_known:  # its first request has only just been let in
                running.is_known = True
                continue
            if not self._fold(running, use[instance], told, lost, taken.taken_at):
                continue
            prediction = running.prediction
            wanted = reservation(prediction, self._known(prediction), running.used)
            if wanted != running.reserved:
                running.reserved = corrected[instance] = wanted
        return corrected

    # --- for those who look ---

    def of_instance(self, instance: InstanceId) -> FootprintStatus | None:
        """What was predicted and measured of a running instance; None for one that is not known here."""
        running = self._running.get(instance)
        if running is None:
            return None
        learned = self._known(running.prediction)
        return standing(
            running.prediction,
            learned,
            reserved=running.reserved,
            measured=running.used,
            opinion=self._opinion(running.prediction),
        )

    def of_model(self, model: ModelName) -> tuple[FootprintStatus, ...]:
        """What a load would reserve and why, for each placement of the model in its order."""
        places = self._places(model)
        return tuple(standing(place, self._known(place), opinion=self._opinion(place)) for place in places)

    # --- steps of the above ---

    def _known(self, prediction: Prediction) -> learning.Learned | None:
        learned = self._kept.get(prediction.id)
        # A row of the database is believed only if it could be ours.
        return learned if learned is not None and len(learned.peak) == len(prediction.devices) else None

    def _begin(
        self, instance: InstanceId, model: ModelName, placement: Placement, definition: Definition
    ) -> None:
        prediction = self._prediction_of(model, placement, definition)
        if prediction is not None:
            self._running[instance] = _Running(model, prediction, placement.footprint)

    def _prediction_of(
        self, model: ModelName, placement: Placement, definition: Definition
    ) -> Prediction | None:
        defined = self._varied.get((model, definition)) if definition.overrides else self._own.get(model)
        for place, prediction in defined.pairs if defined is not None else ():
            if (place.devices, place.args) == (placement.devices, placement.args):
                return prediction
        return None

    def _places(self, model: ModelName) -> tuple[Prediction, ...]:
        return self._own[model].places if model in self._own else ()

    def _became_ready(self, instance: InstanceId, *, is_known: bool = False) -> None:
        running = self._running.get(instance)
        if running is not None:
            running.is_ready, running.is_known = True, is_known
            self._kept.touch(running.prediction.id)

    def _fold(self, running: _Running, use: Use, told: Footprint, lost: Footprint, at: float) -> bool:
        """Learn from what was measured of one instance. False: that said nothing."""
        prediction = running.prediction
        # A process that works on a device holds something there: a zero is a driver that does not tell.
        sizes = [told.get(device) or None for device in prediction.devices]
        is_trial = None not in sizes and at - running.tried_at >= self._trial_seconds
        is_trial = is_trial and (use.completed > running.tried or use.leases > 0)
        sample = [
            size if size is not None else believed_loss(predicted, lost.get(device))
            for device, predicted, size in zip(prediction.devices, prediction.predicted, sizes, strict=True)
        ]
        if not any(sample):
            return False
        if is_trial:
            running.tried_at, running.tried = at, use.completed
        before = self._known(prediction)
        learned = folded(before, sample, requests=use.completed - running.counted, is_trial=is_trial)
        running.counted = use.completed
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
        places = self._places(running.model)
        if running.prediction.id not in {place.id for place in places}:
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
                most := self._worth_trying(same, running),
            )
            # That it never fits there is known at the next start, too; what was too little may do then.
            self._kept.put(entry, raised, place.files, is_lasting=UNBOUNDED in most)
        log.warning(
            "%s ran out of memory with %s reserved: more is reserved for it from now on",
            running.model,
            " and ".join(f"{size / 2**30:.2f} GiB on {d}" for d, size in running.reserved.items()),
        )
        return self._changes({place.id for place in places})

    def _worth_trying(self, same: Sequence[Prediction], dead: _Running) -> list[int]:
        """Per device, up to what is reserved for the next try: no more than it could give. But what had all
        that, on a device that nobody else uses, or was an attempt only, is not tried once more where there is
        something else to be done: it is believed to take more than there is.
        """
        attainable = [max(sizes) for sizes in zip(*(self._attainable(p, dead) for p in same), strict=True)]
        place = dead.prediction
        if place.id != same[0].id or not (place.has_resort or place.is_attempt):
            return attainable
        is_spent = any(
            0 < most * OURS_SHARE <= best <= dead.reserved.get(device, 0)
            for device, most, best in zip(place.devices, place.most, attainable, strict=True)
        )
        return [UNBOUNDED] * len(attainable) if is_spent or place.is_attempt else attainable

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

    def _changes(self, entries: Iterable[EntryId] | None = None) -> list[Event]:
        """What the scheduler should know: the models whose footprints have changed much; those of `entries`,
        however little.
        """
        changed = set(self._changed if entries is None else entries)
        self._changed -= changed
        found: list[Event] = []
        for name, defined in self._own.items() if changed else ():
            if changed.isdisjoint(place.id for place in defined.places):
                continue
            model = self._corrected(defined)
            if entries is not None or _differ(self._told[name], model):
                self._told[name] = model
                found.append(Learned(model))
        return found

    def _corrected(self, defined: _Defined) -> Model:
        """The model with what was learned in the place of what was predicted."""
        if not defined.places:
            return defined.model
        placements = tuple(self._placed(place, expected) for place, expected in defined.pairs)
        return replace(defined.model, placements=placements)

    def _placed(self, place: Placement, expected: Prediction) -> Placement:
        learned = self._known(expected)
        if learned is None and not expected.beyond:
            return place
        return replace(place, footprint=reservation(expected, learned))


def _differ(old: Model, new: Model) -> bool:
    pairs = zip(old.placements, new.placements, strict=True)
    return any(_is_material(was.footprint, now.footprint) for was, now in pairs)


def _is_material(old: Footprint, new: Footprint) -> bool:
    return any(
        abs(new.get(device, 0) - old.get(device, 0)) * MATERIAL_SHARE > old.get(device, 0)
        for device in {**old, **new}
    )

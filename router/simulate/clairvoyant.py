"""What could have been reached: a planner that sees the future, and a beam search over how it weighs.

Nobody knows the best schedule of such a trace; finding it is NP-hard already for one device without closed
loops. This search gives a schedule that was really run in the same world, so its goodput is reachable; the
true optimum can only be higher. A decider's "fraction of the best" is therefore an upper bound of its
fraction of the optimum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from router.scheduler.types import Device, InstanceId, Model, ModelName, Placement, State
from router.simulate.report import SLO_SECONDS, measure
from router.simulate.resident import Resident, Residents
from router.simulate.trace import Trace
from router.simulate.world import Outcome, World

BEAM_WIDTH: Final = 3
SLICE_SECONDS: Final = 45.0


@dataclass(frozen=True, slots=True)
class Weights:
    """One way to choose. `by`: whom a load serves first - most answers saved per second of load ("saved"),
    longest wait ("oldest") or most waiting per second of load ("mass"). `hold`: an idle model that is used
    again within so many of its own load times is no victim. `close`: a busy model may be closed for one
    that saves so many times more answers (0 = never).
    """

    by: str = "saved"
    hold: float = 0.0
    close: float = 0.0


VARIANTS: Final = (
    Weights("saved"),
    Weights("saved", hold=1.0),
    Weights("saved", hold=1.0, close=2.0),
    Weights("oldest", hold=1.0),
    Weights("mass", hold=2.0),
    Weights("saved", hold=4.0),
)


class Clairvoyant(Residents):
    """Loads what `weights` say and evicts whom the settled future needs last (Belady's rule), knowing
    when every answer ends."""

    def __init__(
        self,
        models: Mapping[ModelName, Model],
        devices: Iterable[Device],
        slo_seconds: float,
        weights: Weights = VARIANTS[0],
    ) -> None:
        super().__init__(models, devices)
        self.slo_seconds = slo_seconds
        self.weights = weights
        self.world: World | None = None
        self._next: dict[ModelName, tuple[Placement, frozenset[InstanceId]]] = {}

    def fork(self, weights: Weights) -> Clairvoyant:
        """A copy that decides by other weights from now on; the caller gives it its own world."""
        copy = Clairvoyant(self.models, (), self.slo_seconds, weights)
        self.copy_into(copy)
        copy._next = self._next.copy()
        return copy

    def decide(self) -> None:
        for resident in list(self.residents.values()):
            if resident.state is State.DRAINING and not resident.leases:
                self.stop(resident)
        for model, (placement, victims) in list(self._next.items()):
            if model not in self.waiting:
                self._give_up(model, victims)
            elif not victims & self.residents.keys():
                del self._next[model]
                self._release_room(placement)
                self.start(model, placement)
        if self.queue:
            for model in self._by_value():
                self._make_room(model)

    def _by_value(self) -> list[ModelName]:
        values = {m: self._value(m) for m in self.wanted() if m not in self.of_model and m not in self._next}
        return sorted(values, key=lambda model: -values[model])

    def _value(self, model: ModelName) -> float:
        world = self._seen()
        load = self.models[model].load_seconds
        sent = [world.sent[int(lease[1:])] for lease in self.waiting[model]]
        match self.weights.by:
            case "oldest":
                return self.now - min(sent)
            case "mass":
                return sum(self.now - at for at in sent) / load
            case _:
                saved = sum(1 for at in sent if self.now + load - at <= self.slo_seconds)
                return (saved + 1e-3 * len(sent)) / load

    def _make_room(self, model: ModelName) -> None:
        placement = self.fit(model)
        if placement is not None:
            self.start(model, placement)
            return
        choices = [
            (cost, n) for n, p in enumerate(self.models[model].placements) if (cost := self._price(model, p))
        ]
        if not choices:
            return
        (_, victims), n = min(choices, key=lambda choice: (choice[0][0], choice[1]))
        placement = self.models[model].placements[n]
        for resident in victims:
            if resident.leases:
                resident.state = State.DRAINING
            else:
                self.stop(resident)
        self._next[model] = (placement, frozenset(r.id for r in victims))
        for device, size in placement.footprint.items():
            self.room[device] -= size

    def _price(self, model: ModelName, placement: Placement) -> tuple[float, list[Resident]] | None:
        """The victims that make room for this placement, whoever is needed last first, and what they
        cost; None if they do not."""
        short = {d: size - self.room[d] for d, size in placement.footprint.items() if size > self.room[d]}
        world = self._seen()
        candidates: list[tuple[float, Resident]] = []
        for resident in self.residents.values():
            if resident.state is not State.READY or not short.keys() & resident.placement.footprint.keys():
                continue
            load = self.models[resident.model].load_seconds
            if resident.leases:
                ratio = self.weights.close * len(resident.leases)
                if self.weights.close and len(self.waiting[model]) >= ratio:
                    candidates.append((10.0 * load + world.leaves_at(resident.id) - self.now, resident))
                continue
            gap = world.next_use(resident.model) - self.now
            if gap >= self.weights.hold * load:
                candidates.append((load / (1.0 + gap / load), resident))
        candidates.sort(key=lambda c: (c[0], c[1].id))
        cost, chosen = 0.0, []
        for price, resident in candidates:
            if any(size > 0 and device in resident.placement.footprint for device, size in short.items()):
                chosen.append(resident)
                cost += price
                for device, size in resident.placement.footprint.items():
                    if device in short:
                        short[device] -= size
            if all(size <= 0 for size in short.values()):
                return cost, chosen
        return None

    def _give_up(self, model: ModelName, victims: frozenset[InstanceId]) -> None:
        placement, _ = self._next.pop(model)
        self._release_room(placement)
        for name in victims:
            resident = self.residents.get(name)
            if resident is not None and resident.state is State.DRAINING:
                resident.state = State.READY
                self.grant_all(resident)

    def _release_room(self, placement: Placement) -> None:
        for device, size in placement.footprint.items():
            self.room[device] += size

    def _seen(self) -> World:
        assert self.world is not None, "the planner was given its world"
        return self.world


def best_goodput(trace: Trace, slo_seconds: float = SLO_SECONDS, width: int = BEAM_WIDTH) -> World:
    """The finished run with the highest goodput that the search found.

    Every `SLICE_SECONDS` each of the `width` best futures so far is tried with every variant of weights;
    those with the most answers within the SLO, given or still possible, go on.
    """
    beam = [_begin(trace, slo_seconds)]
    until = 0.0
    while until < trace.seconds:
        until += SLICE_SECONDS
        beam = _best_of(
            [_try(world, weights, until) for world in beam for weights in VARIANTS], slo_seconds, width
        )
    for world in beam:
        world.run()
    return max(beam, key=lambda world: measure(world, slo_seconds).goodput_per_hour)


def steady_runs(trace: Trace, slo_seconds: float = SLO_SECONDS) -> Iterable[World]:
    """One run with each variant of weights kept from beginning to end: the beam may lose what pays off
    only later."""
    for weights in VARIANTS:
        world = _try(_begin(trace, slo_seconds), weights, 0.0)
        world.run()
        yield world


def _begin(trace: Trace, slo_seconds: float) -> World:
    planner = Clairvoyant(trace.machine.models(), trace.machine.devices, slo_seconds)
    world = World(trace, planner)
    planner.world = world
    return world


def _try(world: World, weights: Weights, until: float) -> World:
    assert isinstance(world.decider, Clairvoyant), "only planners are forked"
    planner = world.decider.fork(weights)
    future = world.fork(planner)
    planner.world = future
    future.run(until)
    return future


def _best_of(futures: Sequence[World], slo_seconds: float, width: int) -> list[World]:
    """The best, no two of which are alike in all that is compared."""
    scored: dict[tuple[float, float, int], World] = {}
    for world in futures:
        scored.setdefault(_score(world, slo_seconds), world)
    return [scored[score] for score in sorted(scored, reverse=True)[:width]]


def _score(world: World, slo_seconds: float) -> tuple[float, float, int]:
    good = 0.0
    waited = 0.0
    for number, outcome in enumerate(world.outcome):
        if outcome == Outcome.UNSENT or world.trace.requests[number].cancel is not None:
            continue
        wait = min(world.first[number], world.now) - world.sent[number]
        if (
            outcome in (Outcome.DONE, Outcome.GRANTED)
            and world.first[number] - world.sent[number] <= slo_seconds
        ):
            good += 1.0
        elif outcome == Outcome.WAITING and wait < slo_seconds:
            good += 0.5 * (1.0 - wait / slo_seconds)
        waited += wait if outcome != Outcome.DONE else 0.0
    return (good, -waited, -world.tally.loads)

"""How llama.cpp's router, llama-swap and Ollama decide, imitated for comparison.

Each follows its original's source and what was measured of it; the docstrings say what was left out, always
to the original's advantage. None ever stops a child in the middle of an answer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Final

from router.errors import QueueFull
from router.scheduler.types import (
    Acquire,
    Cause,
    Device,
    DeviceId,
    InstanceId,
    LeaseId,
    Measured,
    Model,
    ModelName,
    Placement,
    State,
)
from router.simulate.resident import Resident, Residents


class CountFifo(Residents):
    """llama.cpp's router as released: one queue of models, of which only the front may load, until it has
    loaded.

    For every queued model in turn the least recently used idle model is evicted until there is room, on
    whatever device it happens to be. A busy model is never evicted and never closed, and requests for
    running models pass the queue by. Better here than there: it counts bytes where the original counts
    models, so it never runs out of memory.
    """

    def decide(self) -> None:
        claims: dict[DeviceId, int] = {}
        wanted = self.wanted()
        for model in wanted:
            resident = self.of_model.get(model)
            if resident is not None and resident.state is State.STARTING:
                continue
            placement = self._clear(model, claims)
            if placement is None:
                break
            for device, size in placement.footprint.items():
                claims[device] = claims.get(device, 0) + size
        if wanted and not self.is_loading() and wanted[0] not in self.of_model:
            placement = self.fit(wanted[0])
            if placement is not None:
                self.start(wanted[0], placement)

    def _clear(self, model: ModelName, claims: Mapping[DeviceId, int]) -> Placement | None:
        while (placement := self.fit(model, self.leaving(State.STOPPING), claims)) is None:
            idle = [r for r in self.residents.values() if r.is_idle]
            if not idle:
                return None
            self.stop(min(idle, key=lambda r: r.last_used))
        return placement


class DrainOnMiss(Residents):
    """First come, first served: the front of the queue drains the least recently used model, busy or not.

    That is llama.cpp's router with the proposed memory margin: a draining model takes no new request and
    leaves when its last answer ends. The original's forced kill after a timeout is left out.
    """

    def decide(self) -> None:
        for resident in list(self.residents.values()):
            if resident.state is State.DRAINING and not resident.leases:
                self.stop(resident)
        wanted = self.wanted()
        if not wanted or self.is_loading():
            return
        front = wanted[0]
        if front in self.of_model:  # it is itself still on its way out
            return
        placement = self.fit(front)
        if placement is not None:
            self.start(front, placement)
            return
        while self.fit(front, self.leaving(State.STOPPING, State.DRAINING)) is None:
            open_ones = [r for r in self.residents.values() if r.state is State.READY]
            if not open_ones:
                return
            victim = min(open_ones, key=lambda r: r.last_used)
            victim.state = State.DRAINING
            if not victim.leases:
                self.stop(victim)


class SwapWhenIdle(Residents):
    """llama-swap: a swap happens as soon as nothing it would evict has a request in flight.

    Which models may stand beside each other is enumerated beforehand. No linger, no recency, no ageing.

    It is given the best static grouping found with knowledge of the whole trace (`group_statically`), where
    its users have to guess, and no limit on concurrent requests (the original answers 429 to the eleventh).
    Its health check is kept: the first look after 0.25 s, then one each second.
    """

    FIRST_LOOK_SECONDS: Final = 0.25
    LOOK_EVERY_SECONDS: Final = 1.0

    def __init__(
        self,
        models: Mapping[ModelName, Model],
        devices: Iterable[Device],
        popularity: Mapping[ModelName, float],
    ) -> None:
        super().__init__(models, devices)
        self.places, self.staying = group_statically(models, self.room, popularity)
        self._swaps: dict[ModelName, set[InstanceId]] = {}
        self._looks: dict[InstanceId, float] = {}

    def next_deadline(self) -> float | None:
        return min(self._looks.values(), default=None)

    def became_ready(self, resident: Resident) -> None:
        """It answers; that is noticed at the next look."""
        since = self.now - resident.started_at - self.FIRST_LOOK_SECONDS
        looks = max(0, math.ceil(since / self.LOOK_EVERY_SECONDS - 1e-9))
        self._looks[resident.id] = (
            resident.started_at + self.FIRST_LOOK_SECONDS + looks * self.LOOK_EVERY_SECONDS
        )

    def decide(self) -> None:
        for name, at in list(self._looks.items()):
            if at <= self.now:
                del self._looks[name]
                super().became_ready(self.residents[name])
        for model, victims in list(self._swaps.items()):
            if not victims & self.residents.keys():
                del self._swaps[model]
                self.start(model, self.places[model])
        for model in self.wanted():
            if model not in self.of_model and model not in self._swaps:
                self._try_swap(model)

    def _try_swap(self, model: ModelName) -> None:
        if any(self._excludes(model, other) for other in self._swaps):
            return
        victims = [r for r in self.residents.values() if self._excludes(model, r.model)]
        if any(not r.is_idle for r in victims):
            return
        for resident in victims:
            self.stop(resident)
        self._swaps[model] = {r.id for r in victims}
        if not victims:
            del self._swaps[model]
            self.start(model, self.places[model])

    def _excludes(self, one: ModelName, other: ModelName) -> bool:
        if one == other or one in self.staying or other in self.staying:
            return False
        return bool(self.places[one].footprint.keys() & self.places[other].footprint.keys())


def group_statically(
    models: Mapping[ModelName, Model], room: Mapping[DeviceId, int], popularity: Mapping[ModelName, float]
) -> tuple[Mapping[ModelName, Placement], frozenset[ModelName]]:
    """A fixed placement per model, and who stays for ever; the others of a device take turns, one at a time.

    Greedy, the most popular first: the placement with the fewest expected switches. A switch is expected
    where two consecutive requests for the turn-takers of a device differ: (sum of shares)^2 - sum of
    squared shares.
    """
    places: dict[ModelName, Placement] = {}
    for model in sorted(models, key=lambda m: (-popularity.get(m, 0.0), m)):
        options = models[model].placements
        costs = [_cost(places | {model: option}, room, popularity) for option in options]
        places[model] = options[costs.index(min(costs))]
    return places, _staying(places, room, popularity)


def _cost(
    places: Mapping[ModelName, Placement], room: Mapping[DeviceId, int], popularity: Mapping[ModelName, float]
) -> float:
    staying = _staying(places, room, popularity)
    cost = 0.0
    for device in room:
        shares = [
            popularity.get(m, 0.0) for m, p in places.items() if device in p.footprint and m not in staying
        ]
        cost += sum(shares) ** 2 - sum(share * share for share in shares)
    return cost


def _staying(
    places: Mapping[ModelName, Placement], room: Mapping[DeviceId, int], popularity: Mapping[ModelName, float]
) -> frozenset[ModelName]:
    """Per device the most requested set of models that leaves room for the largest of all others there."""
    staying: set[ModelName] = set()
    for device in room:
        here = {m: p.footprint[device] for m, p in places.items() if device in p.footprint}
        movable = [m for m in here if len(places[m].footprint) == 1]
        best: tuple[float, tuple[ModelName, ...]] = (0.0, ())
        for count in range(1, len(movable) + 1):
            for chosen in combinations(movable, count):
                largest = max((size for m, size in here.items() if m not in chosen), default=0)
                if sum(here[m] for m in chosen) + largest <= room[device]:
                    best = max(best, (sum(popularity.get(m, 0.0) for m in chosen), chosen))
        staying.update(best[1])
    return frozenset(staying)


class FifoNoGate(Residents):
    """Ollama: one queue, one loader; nobody is looked at before the first in the queue is loaded.

    A loaded model serves new requests at once, also when it is about to be evicted: nothing closes it.
    Beside others a model is admitted into 80 % of the free memory of one device, or of all of them summed.
    Victims go one at a time, the first idle one by name (keep_alive is the same for all); if none is idle
    the first by name, when it happens to become idle. After a victim the loader waits until three quarters
    of its memory are back, 5 s at most. If the client whose request started a load leaves, the load is
    aborted. Better here than there: four slots instead of one, and exact sizes.
    """

    FREE_SHARE: Final = 0.8
    KEEP_ALIVE_SECONDS: Final = 300.0
    QUEUE_LIMIT: Final = 512
    LOADED_PER_DEVICE: Final = 3
    LOOK_EVERY_SECONDS: Final = 0.25
    RECOVERY_SECONDS: Final = 5.0
    RECOVERED_SHARE: Final = 0.75

    def __init__(self, models: Mapping[ModelName, Model], devices: Iterable[Device]) -> None:
        devices = tuple(devices)
        super().__init__(models, devices)
        self._total = {d.id: d.total for d in devices}
        self._free = dict(self._total)
        self._loading_for: LeaseId | None = None
        self._victim: Resident | None = None
        self._victim_bytes = 0
        self._free_before = 0
        self._recovery: tuple[float, float] | None = None  # next look, last look

    def next_deadline(self) -> float | None:
        deadlines = [r.idle_since + self.KEEP_ALIVE_SECONDS for r in self.residents.values() if r.is_idle]
        if self._recovery is not None:
            deadlines.append(self._recovery[0])
        return min(deadlines, default=None)

    def measured(self, event: Measured) -> None:
        self._free = {device: size or 0 for device, size in event.free.items()}

    def acquired(self, event: Acquire) -> None:
        resident = self.of_model.get(event.model)
        if resident is not None and resident.state is State.READY:
            self.grant(event.lease, resident)
        elif len(self.queue) >= self.QUEUE_LIMIT:
            self.refuse(
                event.lease, QueueFull("server busy, please try again: maximum pending requests exceeded")
            )
        else:
            self.enqueue(event.lease, event.model)

    def released(self, lease: LeaseId) -> None:
        super().released(lease)
        if lease == self._loading_for:
            self._loading_for = None
            for resident in self.residents.values():
                if resident.state is State.STARTING:
                    self.stop(resident, Cause.ABORTED)

    def became_ready(self, resident: Resident) -> None:
        """Only the request that started the load is served; those behind it come up one after the other."""
        if resident.state is not State.STARTING:
            return
        resident.state = State.READY
        resident.idle_since = self.now
        if self._loading_for is not None:
            self.grant(self._loading_for, resident)
            self._loading_for = None

    def exited(self, instance: InstanceId) -> None:
        super().exited(instance)
        if self._victim is not None and self._victim.id == instance:
            self._victim = None
            self._recovery = (self.now + self.LOOK_EVERY_SECONDS, self.now + self.RECOVERY_SECONDS)

    def decide(self) -> None:
        self._expire()
        if self._victim is not None and self._victim.is_idle:
            self._evict(self._victim)
        if self._recovery is not None and not self._is_recovered():
            return
        while self.queue and self._victim is None and self._loading_for is None and self._recovery is None:
            lease, model = next(iter(self.queue.items()))
            resident = self.of_model.get(model)
            if resident is not None and resident.state is State.READY:
                self.grant(lease, resident)
            elif resident is not None or not self._load(lease, model):
                return

    def _expire(self) -> None:
        for resident in list(self.residents.values()):
            if resident.is_idle and self.now >= resident.idle_since + self.KEEP_ALIVE_SECONDS:
                self.stop(resident, Cause.EXPIRED)

    def _is_recovered(self) -> bool:
        assert self._recovery is not None
        look, last = self._recovery
        if self.now < look:
            return False
        back = sum(self._free.values()) - self._free_before
        if self.now >= last or back >= self.RECOVERED_SHARE * self._victim_bytes:
            self._recovery = None
            return True
        self._recovery = (min(last, self.now + self.LOOK_EVERY_SECONDS), last)
        return False

    def _load(self, lease: LeaseId, model: ModelName) -> bool:
        """Start `model` for `lease`, or choose a victim: True if it was started."""
        if len(self.residents) < self.LOADED_PER_DEVICE * len(self._total):
            placement = self._place(model)
            if placement is not None:
                self.start(model, placement)
                self._loading_for = lease
                return True
        by_name = sorted(
            (r for r in self.residents.values() if r.state is State.READY), key=lambda r: r.model
        )
        idle = [r for r in by_name if not r.leases]
        if by_name:
            self._victim = idle[0] if idle else by_name[0]
            if idle:
                self._evict(self._victim)
        return False

    def _evict(self, resident: Resident) -> None:
        self._victim_bytes = sum(resident.placement.footprint.values())
        self._free_before = sum(self._free.values())
        self.stop(resident)

    def _place(self, model: ModelName) -> Placement | None:
        """One device if 80 % of its free memory hold it, else all of them if 80 % of the sum do; the
        first model goes unchecked."""
        options = self.models[model].placements
        size = sum(options[0].footprint.values())
        free = {device: max(0, min(self._free[device], self._unclaimed(device))) for device in self._total}
        if not self.residents:
            return max(options, key=lambda p: min(free[d] for d in p.footprint))
        singles = [d for d in free if size <= free[d] * self.FREE_SHARE]
        if singles:
            device = max(singles, key=lambda d: free[d])
            return Placement(options[0].host, {device: size}, (device,))
        total = sum(free.values())
        if len(free) > 1 and size <= total * self.FREE_SHARE:
            split = {device: size * share // total for device, share in free.items()}
            largest = max(split, key=lambda d: split[d])
            split[largest] += size - sum(split.values())
            return Placement(options[0].host, split, tuple(split))
        return None

    def _unclaimed(self, device: DeviceId) -> int:
        booked = sum(r.placement.footprint.get(device, 0) for r in self.residents.values())
        return self._total[device] - booked

"""What every decider of this room has in common: who waits, who is resident, and a memory ledger.

The routers imitated in `baselines` have no ledger, or a worse one; they are given this one, so that what
the table compares is the order in which they load and evict, not how often they run out of memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from router.errors import RouterError
from router.ids import instance_id
from router.scheduler.types import (
    Acquire,
    Cause,
    Command,
    Device,
    DeviceId,
    Event,
    Exited,
    Footprint,
    Grant,
    InstanceId,
    LeaseId,
    Measured,
    Model,
    ModelName,
    Placement,
    Ready,
    Refuse,
    Release,
    Start,
    State,
    Stop,
)


@dataclass(slots=True)
class Resident:
    """An instance as a decider sees it. `last_used` is when it was loaded or last granted."""

    id: InstanceId
    model: ModelName
    placement: Placement
    state: State
    last_used: float
    started_at: float = 0.0
    idle_since: float = 0.0
    leases: set[LeaseId] = field(default_factory=set)

    @property
    def is_idle(self) -> bool:
        return self.state is State.READY and not self.leases

    def copy(self) -> Resident:
        return Resident(
            self.id, self.model, self.placement, self.state, self.last_used, self.started_at, self.idle_since,
            self.leases.copy(),
        )  # fmt: skip


class Residents:
    """Bookkeeping for a decider: at most one instance per model. A subclass decides in `decide`.

    Memory is booked from Start to Exited. The driver returns it a little later, but a child takes its first
    bytes later still, so what the originals risk here never goes wrong in this world.
    """

    def __init__(self, models: Mapping[ModelName, Model], devices: Iterable[Device]) -> None:
        self.models = models
        self.room: dict[DeviceId, int] = {d.id: d.total - d.margin for d in devices}
        self.queue: dict[LeaseId, ModelName] = {}  # in the order of arrival
        self.waiting: dict[
            ModelName, dict[LeaseId, int]
        ] = {}  # the same by model, with the number of arrival
        self.residents: dict[InstanceId, Resident] = {}
        self.of_model: dict[ModelName, Resident] = {}
        self.now = 0.0
        self._out: list[Command] = []
        self._holders: dict[LeaseId, Resident] = {}
        self._arrivals = 0
        self._births = 0

    def copy_into(self, copy: Residents) -> None:
        """Give `copy` these books, to change by itself."""
        copy.room, copy.now, copy.queue = self.room.copy(), self.now, self.queue.copy()
        copy.waiting = {model: leases.copy() for model, leases in self.waiting.items()}
        copy.residents = {name: resident.copy() for name, resident in self.residents.items()}
        copy.of_model = {r.model: copy.residents[r.id] for r in self.of_model.values()}
        copy._holders = {lease: copy.residents[r.id] for lease, r in self._holders.items()}
        copy._arrivals, copy._births = self._arrivals, self._births

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take note, then decide."""
        self._out, self.now = [], now
        match event:
            case Acquire():
                self.acquired(event)
            case Release():
                self.released(event.lease)
            case Ready():
                self.became_ready(self.residents[event.instance])
            case Exited():
                self.exited(event.instance)
            case Measured():
                self.measured(event)
            case _:
                pass
        self.decide()
        return self._out

    def next_deadline(self) -> float | None:
        return None

    def decide(self) -> None:
        """Start, stop and grant as it must be now."""
        raise NotImplementedError

    # --- what an event means; a subclass may mean something else ---

    def acquired(self, event: Acquire) -> None:
        """A ready model serves at once, whoever else is waiting; all others join the queue."""
        resident = self.of_model.get(event.model)
        if resident is not None and resident.state is State.READY:
            self.grant(event.lease, resident)
        else:
            self.enqueue(event.lease, event.model)

    def released(self, lease: LeaseId) -> None:
        self.dequeue(lease)
        resident = self._holders.pop(lease, None)
        if resident is not None:
            resident.leases.remove(lease)
            resident.idle_since = self.now

    def became_ready(self, resident: Resident) -> None:
        """A loaded model serves everybody who waits for it."""
        if resident.state is State.STARTING:
            resident.state = State.READY
            resident.idle_since = self.now
            self.grant_all(resident)

    def exited(self, instance: InstanceId) -> None:
        resident = self.residents.pop(instance)
        for device, size in resident.placement.footprint.items():
            self.room[device] += size
        if self.of_model.get(resident.model) is resident:
            del self.of_model[resident.model]

    def measured(self, event: Measured) -> None:
        """Memory changed; the ledger above does not look."""

    # --- the queue ---

    def enqueue(self, lease: LeaseId, model: ModelName) -> None:
        self._arrivals += 1
        self.queue[lease] = model
        self.waiting.setdefault(model, {})[lease] = self._arrivals

    def dequeue(self, lease: LeaseId) -> None:
        """Take it out; nothing if it does not wait."""
        model = self.queue.pop(lease, None)
        if model is not None:
            del self.waiting[model][lease]
            if not self.waiting[model]:
                del self.waiting[model]

    def wanted(self) -> list[ModelName]:
        """Models that are waited for, in the order of their first request."""
        return sorted(self.waiting, key=lambda model: next(iter(self.waiting[model].values())))

    # --- commands ---

    def grant(self, lease: LeaseId, resident: Resident) -> None:
        self.dequeue(lease)
        self._holders[lease] = resident
        resident.leases.add(lease)
        resident.last_used = self.now
        self._out.append(Grant(lease, resident.id))

    def grant_all(self, resident: Resident) -> None:
        for lease in list(self.waiting.get(resident.model, ())):
            self.grant(lease, resident)

    def refuse(self, lease: LeaseId, error: RouterError) -> None:
        self.dequeue(lease)
        self._out.append(Refuse(lease, error))

    def start(self, model: ModelName, placement: Placement) -> Resident:
        self._births += 1
        resident = Resident(
            instance_id(model, self._births),
            model,
            placement,
            State.STARTING,
            last_used=self.now,
            started_at=self.now,
        )
        for device, size in placement.footprint.items():
            self.room[device] -= size
        self.residents[resident.id] = self.of_model[model] = resident
        self._out.append(Start(resident.id, model, placement))
        return resident

    def stop(self, resident: Resident, cause: Cause = Cause.EVICTED) -> None:
        resident.state = State.STOPPING
        self._out.append(Stop(resident.id, cause))

    # --- questions ---

    def is_loading(self) -> bool:
        return any(r.state is State.STARTING for r in self.residents.values())

    def leaving(self, *states: State) -> dict[DeviceId, int]:
        """Bytes that instances in these states will give back."""
        total: dict[DeviceId, int] = {}
        for resident in self.residents.values():
            if resident.state in states:
                for device, size in resident.placement.footprint.items():
                    total[device] = total.get(device, 0) + size
        return total

    def fit(
        self,
        model: ModelName,
        more: Footprint | None = None,
        less: Footprint | None = None,
    ) -> Placement | None:
        """The placement that leaves the least room over, among those that fit when `more` bytes come
        back and `less` go."""
        best: tuple[int, Placement] | None = None
        for placement in self.models[model].placements:
            over = 0
            for device, size in placement.footprint.items():
                left = self.room[device] + (more or {}).get(device, 0) - (less or {}).get(device, 0) - size
                if left < 0:
                    break
                over += left
            else:
                if best is None or over < best[0]:
                    best = (over, placement)
        return best[1] if best else None

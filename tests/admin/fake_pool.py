"""A pool in memory: the whole interface of router.supervisor.pool.Pool, with instances that are whatever Unix
sockets a test made."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from router.errors import ModelNotFound, RouterError
from router.hosts import Address, Measurement
from router.ids import NO_DEFINITION, Definition
from router.memory.estimate.learning import FootprintStatus
from router.observability.journal import Journal
from router.scheduler.types import Cause, Device, Event, Model, Placement, Priority, State
from router.scheduler.views import DeviceView, Explanation, InstanceView, ModelView, QueueView, Snapshot
from router.supervisor.pool import Ending, Lease

GIB = 2**30
GPU = "local/cuda:GPU-5f3c"


@dataclass(slots=True)
class Acquired:
    """What a lease was asked with."""

    model: str
    priority: Priority | None
    keep_alive: float | None
    size: float | None


@dataclass(slots=True)
class Instance:
    id: str
    model: str
    socket: str
    state: State = State.READY
    leases: list[str] = field(default_factory=list)
    cause: Cause | None = None
    definition: Definition = NO_DEFINITION
    ending: Ending = field(default_factory=Ending)


class FakePool:
    """`sockets` maps a model to the sockets of its instances, in the order in which they will be started."""

    def __init__(self, sockets: Mapping[str, list[str]] | None = None) -> None:
        self.sockets = {model: list(paths) for model, paths in (sockets or {}).items()}
        self.instances: dict[str, Instance] = {}
        self.journal = Journal()
        self.acquired: list[Acquired] = []
        self.granted: list[Lease] = []
        self.released: list[str] = []
        self.refusals: list[RouterError | None] = []
        self.queues: tuple[QueueView, ...] = ()
        self.views: dict[str, ModelView] = {}
        self.logs: dict[str, tuple[str, ...]] = {}
        self.told: list[Event] = []
        self.unloads: list[tuple[str, bool, float | None]] = []
        self.reloads: list[Mapping[str, Model]] = []
        self.overrides: list[Model | None] = []
        self.pins: list[tuple[str, bool | None]] = []
        self.log_paths: dict[str, Path] = {}
        self.explanation: dict[str, Any] = {}
        self.explained: list[tuple[str, Model | None]] = []
        self.standing_of: dict[str, FootprintStatus] = {}
        self.standings_of: dict[str, tuple[FootprintStatus, ...]] = {}
        self.measurements: dict[str, Measurement] = {}
        self.host_view: DeviceView | None = None
        self.measured = 0
        self.waiting = 0
        self.load_gate: asyncio.Event | None = None
        self._ids = itertools.count(1)

    # --- the interface of Pool ---

    @asynccontextmanager
    async def lease(self, model: str, **asked: Any) -> AsyncIterator[Lease]:
        lease = await self.acquire(model, **asked)
        try:
            yield lease
        finally:
            self.release(lease)

    async def acquire(
        self,
        model: str,
        *,
        priority: Priority | None = None,
        keep_alive: float | None = None,
        size: float | None = None,
        timeout: float | None = None,
    ) -> Lease:
        self.acquired.append(Acquired(model, priority, keep_alive, size))
        if self.refusals and (refusal := self.refusals.pop(0)) is not None:
            raise refusal
        running = [one for one in self.instances.values() if one.model == model]
        instance = running[0] if running else await self._start(model)
        lease = Lease(
            id=f"r{next(self._ids)}",
            model=model,
            instance=instance.id,
            address=Address(instance.socket),
            ending=instance.ending,
            action="already_loaded" if running else "loaded",
            queue_seconds=0.0,
            load_seconds=0.0 if running else 1.25,
        )
        instance.leases.append(lease.id)
        self.granted.append(lease)
        return lease

    def acquire_nowait(
        self,
        model: str,
        *,
        priority: Priority | None = None,
        keep_alive: float | None = None,
        size: float | None = None,
    ) -> Lease | None:
        instance = next((one for one in self.instances.values() if one.model == model), None)
        if instance is None or instance.state is not State.READY or any(self.refusals[:1]):
            return None
        del self.refusals[:1]
        self.acquired.append(Acquired(model, priority, keep_alive, size))
        address = Address(instance.socket)
        lease = Lease(f"r{next(self._ids)}", model, instance.id, address, instance.ending)
        instance.leases.append(lease.id)
        self.granted.append(lease)
        return lease

    def release(self, lease: Lease) -> None:
        if (instance := self.instances.get(lease.instance)) is not None:
            instance.leases.remove(lease.id)
        self.released.append(lease.id)

    async def load(
        self, model: str, *, overrides: Model | None = None, keep_alive: float | None = None
    ) -> None:
        self.overrides.append(overrides)
        async with self.lease(model, keep_alive=keep_alive):
            pass

    def pin(self, model: str, pinned: bool | None) -> None:
        self.pins.append((model, pinned))

    def newest(self, model: str) -> str | None:
        return next((one.id for one in reversed(self.instances.values()) if one.model == model), None)

    def log_path(self, instance: str) -> Path | None:
        return self.log_paths.get(instance)

    async def unload(self, model: str, *, force: bool = False, deadline: float | None = None) -> bool:
        self.unloads.append((model, force, deadline))
        running = [one.id for one in self.instances.values() if one.model == model]
        for instance in running:
            self.exit(instance)
        return bool(running)

    def snapshot(self) -> Snapshot:
        views = tuple(self._view(one) for one in self.instances.values())
        models = tuple(self.views.values())
        devices = (_device(views), *([self.host_view] if self.host_view is not None else []))
        return Snapshot(100.0, "lru", views, self.queues, devices, models, models_max=0)

    def explain(self, model: str, overrides: Model | None = None) -> Explanation:
        if model not in self.sockets:
            raise ModelNotFound(f"model {model!r} not found")
        self.explained.append((model, overrides))
        plain = Explanation(model, "unloaded", f"{model} is not loaded.", 0, None, (), None, {}, None, None)
        return replace(plain, **self.explanation)

    def standing(self, instance: str) -> FootprintStatus | None:
        return self.standing_of.get(instance)

    def warnings(self, model: str) -> tuple[str, ...]:
        return tuple(text for one in self.measurements.values() for text in one.warnings)

    def standings(self, model: str) -> tuple[FootprintStatus, ...]:
        return self.standings_of.get(model, ())

    def address(self, instance: str) -> Address | None:
        found = self.instances.get(instance)
        return Address(found.socket) if found is not None else None

    def log_tail(self, instance: str, lines: int = 20) -> tuple[str, ...]:
        return self.logs.get(instance, ())[-lines:]

    async def measure(self) -> None:
        self.measured += 1

    async def reload(self, models: Mapping[str, Model], devices: tuple[Device, ...] | None = None) -> None:
        self.reloads.append(models)

    # --- what a test does to it ---

    def tell(self, event: Event) -> None:
        self.told.append(event)

    def exit(self, instance: str) -> None:
        """The child is gone and the pool has been told."""
        if (one := self.instances.pop(instance, None)) is not None:
            one.ending.over.set()

    def exit_all(self) -> None:
        for instance in list(self.instances):
            self.exit(instance)

    def stop(self, instance: str, cause: Cause) -> None:
        """The router itself ends the instance."""
        self.instances[instance].ending.cause = cause
        self.exit(instance)

    @property
    def open_leases(self) -> int:
        return len(self.granted) - len(self.released)

    async def _start(self, model: str) -> Instance:
        if self.load_gate is not None:
            self.waiting += 1
            try:
                await self.load_gate.wait()
            finally:
                self.waiting -= 1
        instance = Instance(f"{model}#{next(self._ids)}", model, self.sockets[model].pop(0))
        self.instances[instance.id] = instance
        return instance

    @staticmethod
    def _view(one: Instance) -> InstanceView:
        return InstanceView(
            id=one.id,
            model=one.model,
            state=one.state,
            placement=Placement("local", {GPU: 6 * GIB}, (GPU,), ("-c", "512", "-ngl", "99"), ctx_size=512),
            leases=tuple(one.leases),
            reserved={GPU: 6 * GIB},
            used={GPU: 5 * GIB},
            since=90.0,
            idle_since=None if one.leases else 95.0,
            expires_at=None,
            pinned=False,
            cause=one.cause,
            for_model=None,
            definition=one.definition,
        )


def _device(instances: tuple[InstanceView, ...]) -> DeviceView:
    ours = 5 * GIB * len(instances)
    return DeviceView(
        id=GPU,
        label="NVIDIA H200",
        total=24 * GIB,
        margin=GIB,
        free=20 * GIB - ours,
        reserved=6 * GIB * len(instances),
        used=ours,
        promised=GIB * len(instances),
        returning=0,
        others=4 * GIB,
        room=19 * GIB - 6 * GIB * len(instances),
    )

"""A Host without processes, for tests of the pool: devices that fill, loads that end when the test says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from router.engines import Launch
from router.errors import LoadFailed
from router.hosts import Address, Exit, HostFull, InstanceRecord, Measurement
from router.ids import NO_DEFINITION, Definition
from router.scheduler.types import Device, Footprint, HostId, InstanceId, ModelName, Placement

GIB = 1 << 30


@dataclass
class FakeChild:
    placement: Placement
    loaded: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    exit: Exit = field(default_factory=lambda: Exit(0, "exited with status 0"))


class FakeHost:
    """`auto_ready`: loads end at once, else when the test calls `finish_load`. `fail_next`: next errors."""

    def __init__(self, total_gib: float = 24.0, margin_gib: float = 1.0, *, auto_ready: bool = True) -> None:
        self.id: HostId = "local"
        self.device = Device("local/cuda:0", int(total_gib * GIB), int(margin_gib * GIB), "cuda:0")
        self.children: dict[InstanceId, FakeChild] = {}
        self.auto_ready = auto_ready
        self.fail_next: list[Exception] = []
        self.started: list[InstanceId] = []
        self.stopped: list[InstanceId] = []
        self.counts: Counter[str] = Counter()
        self.strangers = 0
        self.reserved: dict[InstanceId, Footprint] = {}

    async def devices(self) -> tuple[Device, ...]:
        return (self.device,)

    async def measure(self, *, max_age_seconds: float = 0.0) -> Measurement:
        self.counts["measure"] += 1
        at = asyncio.get_running_loop().time()
        used: dict[InstanceId, Footprint] = {
            name: child.placement.footprint for name, child in self.children.items() if child.loaded.is_set()
        }
        taken = sum(bytes_ for footprint in used.values() for bytes_ in footprint.values())
        free = self.device.total - taken - self.strangers
        return Measurement(at, {self.device.id: free}, used)

    def reserve(self, reserved: Mapping[InstanceId, Footprint]) -> None:
        self.reserved |= reserved

    async def instances(self) -> tuple[InstanceRecord, ...]:
        return ()

    async def start(
        self,
        instance: InstanceId,
        model: ModelName,
        placement: Placement,
        launch: Launch,
        *,
        definition: Definition = NO_DEFINITION,
    ) -> Address:
        if self.fail_next:
            error = self.fail_next.pop(0)
            await asyncio.sleep(0)
            raise error
        self.started.append(instance)
        child = self.children[instance] = FakeChild(placement)
        try:
            if self.auto_ready:
                await asyncio.sleep(0)
            else:
                loading = asyncio.ensure_future(child.loaded.wait())
                dying = asyncio.ensure_future(child.gone.wait())
                try:
                    await asyncio.wait((loading, dying), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    loading.cancel()
                    dying.cancel()
                if child.gone.is_set():
                    raise LoadFailed(f"{instance} died while loading", details={"log": ["boom"]})
        except BaseException:
            self.children.pop(instance, None)
            raise
        child.loaded.set()
        return Address(f"/run/{instance}.sock")

    async def wait(self, instance: InstanceId) -> Exit:
        child = self.children[instance]
        await child.gone.wait()
        del self.children[instance]
        return child.exit

    async def stop(self, instance: InstanceId, *, grace_seconds: float) -> None:
        self.stopped.append(instance)
        if instance in self.children:
            self.children[instance].gone.set()

    def log_tail(self, instance: InstanceId, lines: int = 20) -> tuple[str, ...]:
        return (f"last line of {instance}",)

    def log_path(self, instance: InstanceId) -> Path | None:
        return None

    # --- what a test makes happen ---

    def finish_load(self, instance: InstanceId) -> None:
        self.children[instance].loaded.set()

    def crash(self, instance: InstanceId) -> None:
        self.children[instance].exit = Exit(-11, "killed by SIGSEGV", ("segfault",))
        self.children[instance].gone.set()


def full(instance: str = "x") -> HostFull:
    return HostFull(f"no room for {instance} by the host's own numbers")

"""The oracle's own arithmetic of bytes, from the raw measurements and the truth of the world; it never
asks the ledger.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

from router.scheduler.types import Device, DeviceId, Footprint, HostId, InstanceId, Placement, host_of

if TYPE_CHECKING:
    from tests.scheduler.world import Child, Sample, World


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes a newcomer would find on each device that is known to be healthy."""

    on: Mapping[DeviceId, float]

    def holds(self, footprint: Footprint) -> bool:
        return all(need <= self.on.get(device, -inf) for device, need in footprint.items() if need > 0)


class Reckoning:
    """What the scheduler was told of the memory, and what it could have concluded from that."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.told_free: dict[DeviceId, int | None] = {}
        self.told_used: dict[InstanceId, dict[DeviceId, int]] = {}
        self.told_at: dict[HostId, float] = {}
        self.strangers_seen: dict[DeviceId, int] = {}
        self.use_seen: dict[InstanceId, dict[DeviceId, int]] = {}
        self.lost: set[InstanceId] = set()

    # --- what it is told ---

    def sees(self, sample: Sample) -> None:
        """A measurement is being delivered."""
        self.told_free.update(sample.free)
        self.told_used.update(sample.used)
        self.strangers_seen.update(sample.strangers)
        self.use_seen.update(sample.seen)
        self.told_at[sample.host] = sample.at

    def corrects(self, child: Child, footprint: Footprint) -> None:
        """The host says what this child really needs; what it has taken is the least."""
        told = self.told_used.get(child.instance, {})
        child.reserved = {device: max(bytes_, told.get(device, 0)) for device, bytes_ in footprint.items()}

    def host_goes(self, host: HostId, children: Collection[InstanceId]) -> None:
        self.lost |= set(children)
        self.told_free.update({device: None for device in self.told_free if host_of(device) == host})

    # --- what it comes to ---

    def could_ever_fit(self, placement: Placement) -> bool:
        """Whether an empty machine could hold it."""
        return all(
            device in self.world.devices and self._is_possible(self.world.devices[device], need)
            for device, need in placement.footprint.items()
        )

    def fits_in_truth(self, footprint: Footprint) -> bool:
        """Whether the room is real on every device, by the truth as far as it could be known."""
        devices = self.world.devices
        checked = {d: need for d, need in footprint.items() if need > 0 and devices[d].margin > 0}
        healthy = all(self.told_free.get(device) is not None for device in checked)
        return healthy and all(self._left(devices[device]) >= need for device, need in checked.items())

    def room(
        self,
        *,
        gone: Collection[InstanceId],
        stays: InstanceId | None,
        claims: Collection[Footprint],
        trust_returning: bool,
    ) -> Room:
        """Room per device by what was measured, once `gone` and all that is being stopped, but not `stays`,
        have left, with `claims` counted.

        Pessimistic: what might be read either way counts as taken. With `trust_returning` false nothing
        that is still on its way back counts as free.
        """
        on: dict[DeviceId, float] = {}
        for device in self.world.devices.values():
            free = self.told_free.get(device.id)
            if free is None:
                continue
            if device.margin <= 0:
                on[device.id] = inf
                continue
            claimed = sum(claim.get(device.id, 0) for claim in claims)
            by_measure, by_books = float(free - claimed), float(device.total - claimed)
            for child in self.world.holding.values():
                leaves = child.instance != stays and (child.instance in gone or child.stop_told)
                measure, state = self._weight(child, device, leaves and trust_returning, trust_returning)
                by_measure += measure
                by_books += state
            on[device.id] = min(by_measure, by_books) - device.margin
        return Room(on)

    # --- steps of the above ---

    def _is_possible(self, device: Device, need: int) -> bool:
        return device.margin <= 0 or need + device.margin <= device.total

    def _left(self, device: Device) -> int:
        """Bytes above the margin when ours have taken all they may and the strangers keep what they were
        seen with.

        Strangers who came after the measurement, and liars after it, are nobody's fault.
        """
        taken = self.strangers_seen.get(device.id, 0)
        for child in self.world.holding.values():
            seen = self.use_seen.get(child.instance, {}).get(device.id, 0)
            most = max(child.reserved.get(device.id, 0), seen)
            if child.is_alive and child.instance not in self.lost:
                taken += most
            else:
                taken += min(child.use(device.id, self.world.now), most)
        return device.total - device.margin - taken

    def _weight(self, child: Child, device: Device, leaves: bool, trust_returning: bool) -> tuple[int, int]:
        """What one child adds to the measured free bytes, and to those of the books."""
        used = self.told_used.get(child.instance, {}).get(device.id, 0)
        reserved = max(child.reserved.get(device.id, 0), used)
        if child.is_alive:
            return (used, 0) if leaves else (used - reserved, -reserved)
        assert child.exited_at is not None
        if child.exited_at <= self.told_at.get(device.host, -inf):
            return 0, 0
        # Surely not yet in the last measurement: it was still there when that was taken.
        if trust_returning:
            returns = self.world.now - child.exited_at < self.world.scene.settings.recovery
            return (used, 0) if returns else (used - reserved, -reserved)
        return used - reserved, -reserved

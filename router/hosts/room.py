"""What a sample of devices means for the children of this machine: bytes free and used, and whether one more
fits.

Arithmetic only. Ids are those of the core: `host/device`. Memory is counted per pool: a GPU that shares the
machine's memory is no device of its own here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from router.config import MemoryConfig
from router.hosts import Measurement
from router.memory.devices import DeviceInfo, Sample
from router.scheduler.types import NOTHING, Device, DeviceId, Footprint, HostId, InstanceId, Placement


@dataclass(slots=True, eq=False)
class Occupant:
    """A child's claim on memory, from its reservation on.

    `free_before` is what was free when it began, `changes` the host's count of starts and exits then (None if
    another was loading): together they tell what it took where the driver does not say who holds what.
    `taken` is that, once it is ready; `lost` the part of it that is no mere reservation.
    """

    instance: InstanceId
    placement: Placement
    is_ready: bool = False
    pid: int | None = None
    free_before: Mapping[DeviceId, int | None] = field(default_factory=dict)
    changes: int | None = None
    taken: Footprint = field(default_factory=dict)
    lost: Footprint = field(default_factory=dict)
    corrected: Footprint | None = None

    @property
    def reserved(self) -> Footprint:
        """What is kept for it: what it was started with, until that is corrected."""
        return self.placement.footprint if self.corrected is None else self.corrected


class Room:
    """Reads samples for one host under its configuration."""

    def __init__(self, host: HostId, memory: MemoryConfig) -> None:
        self._host = host
        self._memory = memory

    def id(self, device: str) -> DeviceId:
        return f"{self._host}/{device}"

    def infos(self, sample: Sample) -> dict[DeviceId, DeviceInfo]:
        """Every device that the configuration leaves enabled, by its id in the core."""
        return {self.id(info.id): info for info in sample.devices.values() if self._is_enabled(info)}

    def devices(self, sample: Sample) -> tuple[Device, ...]:
        """The memory pools, for the core."""
        return tuple(
            Device(device, info.total_bytes, self._margin_bytes(info), info.label)
            for device, info in self.infos(sample).items()
            if info.pool == info.id
        )

    def measurement(self, sample: Sample, occupants: Iterable[Occupant], changes: int) -> Measurement:
        """Free bytes per device and used bytes per child.

        Where use cannot be attributed to processes, a child counts with nothing while it loads (what it took
        is then counted twice, which is safe) and afterwards with what the device lost meanwhile. If others
        started or ended in that time, that difference means nothing, and its reservation is taken for true.
        """
        free = {device.id: self._info(sample, device.id).free_bytes for device in self.devices(sample)}
        used, told, lost = {}, {}, {}
        for occupant in occupants:
            if occupant.is_ready and not occupant.taken:
                occupant.lost = _lost(occupant, free, changes)
                occupant.taken = {**occupant.placement.footprint, **occupant.lost}
            name = occupant.instance
            used[name] = self._used(sample, occupant)
            believed = {d for d in occupant.placement.footprint if self._is_attributed(sample, d)}
            told[name] = {d: used[name].get(d, 0) for d in believed}
            lost[name] = {d: size for d, size in occupant.lost.items() if d not in believed}
        infos = self.infos(sample)
        return Measurement(sample.taken_at, free, used, told, lost, sample.notes, infos, sample.warnings)

    def refusal(
        self, newcomer: Placement, measured: Measurement, sample: Sample, others: Iterable[Occupant]
    ) -> str | None:
        """Why the newcomer does not fit, given what the others have yet to take: those that load, and with
        use those that serve. None if it does.

        F - G - N >= M on every device of its placement; a margin of 0 switches the check off.
        """
        others = tuple(others)
        infos = self.infos(sample)
        for device in newcomer.devices:
            info = infos.get(device)
            if info is not None and info.pool != info.id and info.free_bytes is None:
                return f"{info.label} is unhealthy: {info.error or 'it cannot be measured'}"
        for device, need in newcomer.footprint.items():
            info = infos.get(device)
            if info is None:
                return f"{device} is not there, or switched off"
            margin, free = self._margin_bytes(info), measured.free.get(device)
            if margin == 0 or need == 0:
                continue
            if free is None:
                return f"{info.label} is unhealthy: {info.error or 'it cannot be measured'}"
            promised = sum(
                max(
                    0,
                    other.reserved.get(device, 0) - measured.used.get(other.instance, NOTHING).get(device, 0),
                )
                for other in others
            )
            if free - promised - need < margin:
                return (
                    f"needs {_gib(need)} on {info.label}: {_gib(free)} free, {_gib(promised)} of it promised"
                    f" to other models, {_gib(margin)} margin"
                )
        return None

    def _info(self, sample: Sample, device: DeviceId) -> DeviceInfo:
        return sample.devices[device.partition("/")[2]]

    @staticmethod
    def _is_attributed(sample: Sample, device: DeviceId) -> bool:
        return sample.attributed.get(device.partition("/")[2], False)

    def _used(self, sample: Sample, occupant: Occupant) -> Footprint:
        told = sample.used.get(occupant.pid, {}) if occupant.pid is not None else {}
        used: dict[DeviceId, int] = {}
        for name in sample.devices:
            if sample.attributed.get(name, False):
                size = told.get(name, 0)
            else:
                size = occupant.taken.get(self.id(name), 0) if occupant.is_ready else 0
            if size:
                used[self.id(name)] = size
        return used

    def _is_enabled(self, info: DeviceInfo) -> bool:
        return all(device.enabled for name, device in self._memory.devices.items() if _is_called(info, name))

    def _margin_bytes(self, info: DeviceInfo) -> int:
        for name, device in self._memory.devices.items():
            if device.margin_mib is not None and _is_called(info, name):
                return device.margin_mib << 20
        return self._memory.margin_mib << 20


def _lost(occupant: Occupant, free: Mapping[DeviceId, int | None], changes: int) -> Footprint:
    """What the devices lost while it loaded; nothing where others of ours started or ended in that time."""
    if changes != occupant.changes:
        return {}
    pairs = {d: (occupant.free_before.get(d), free.get(d)) for d in occupant.placement.footprint}
    return {
        device: max(0, before - now)
        for device, (before, now) in pairs.items()
        if before is not None and now is not None
    }


def _is_called(info: DeviceInfo, name: str) -> bool:
    """A label begins with a short name: "cuda:0 NVIDIA GeForce RTX 3090"."""
    names = (info.id, info.uuid, info.label, info.label.partition(" ")[0])
    return name.lower() in {one.lower() for one in names if one}


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"

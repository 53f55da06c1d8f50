"""What a sample of devices means for the children of a host: bytes free and used, and whether one more fits.

Arithmetic only. Ids are those of the scheduler: `host/device`. Memory is counted per pool: a GPU that shares
the main memory is no device of its own here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from router.config import MemoryConfig
from router.hosts import Measurement
from router.memory.devices import DeviceInfo, Sample
from router.scheduler.types import NOTHING, Device, DeviceId, Footprint, HostId, InstanceId, Placement


@dataclass(slots=True, eq=False)
class Claim:
    """The claim of a child on memory, from its reservation on.

    `free_before` and `changes` tell what the child took on a device whose driver does not attribute memory to
    processes.
    """

    instance: InstanceId
    placement: Placement
    is_ready: bool = False
    #: None until the process is spawned.
    pid: int | None = None
    #: Free bytes per device when the start began.
    free_before: Mapping[DeviceId, int | None] = field(default_factory=dict)
    #: The host's count of starts and exits when the start began; None if another child was loading.
    changes: int | None = None
    #: Bytes per device since the child is ready: of `lost`, else of its reservation.
    taken: Footprint = field(default_factory=dict)
    #: Bytes that each device lost while the child loaded, where no other child started or ended meanwhile.
    lost: Footprint = field(default_factory=dict)
    #: What measurements have corrected the reservation to, in bytes per device.
    corrected: Footprint | None = None

    @property
    def reserved(self) -> Footprint:
        """What is kept for it: what it was started with, until that is corrected."""
        return self.placement.footprint if self.corrected is None else self.corrected


class Admission:
    """Reads the samples of one host under its configuration."""

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

    def measurement(self, sample: Sample, claims: Iterable[Claim], changes: int) -> Measurement:
        """Free bytes per device and used bytes per child.

        Where use cannot be attributed to processes, a child counts with nothing while it loads (what it took
        is then counted twice, which is safe) and afterwards with what the device lost meanwhile. If others
        started or ended in that time, that difference means nothing, and its reservation is taken for true.
        """
        infos = self.infos(sample)
        free = {device.id: infos[device.id].free_bytes for device in self.devices(sample)}
        attributed = {self.id(name) for name, is_told in sample.attributed.items() if is_told}
        used, told, lost = {}, {}, {}
        for claim in claims:
            if claim.is_ready and not claim.taken:
                claim.lost = _lost(claim, free, changes)
                claim.taken = {**claim.placement.footprint, **claim.lost}
            name, placed = claim.instance, claim.placement.footprint
            used[name] = self._used(sample, claim)
            told[name] = {device: used[name].get(device, 0) for device in placed if device in attributed}
            lost[name] = {device: size for device, size in claim.lost.items() if device not in attributed}
        return Measurement(sample.taken_at, free, used, told, lost, sample.notes, infos, sample.warnings)

    def refusal(
        self, newcomer: Placement, measured: Measurement, sample: Sample, others: Iterable[Claim]
    ) -> str | None:
        """Why the newcomer does not fit, given what the others have yet to take: those that load, and with
        use those that serve. None if it does.

        F - G - N >= M on every device of its placement; a margin of 0 switches the check off.
        """
        infos, others = self.infos(sample), tuple(others)
        for device in newcomer.devices:
            info = infos.get(device)
            if info is not None and info.pool != info.id and info.free_bytes is None:
                return _unhealthy(info)
        for device, need in newcomer.footprint.items():
            info = infos.get(device)
            if info is None:
                return f"{device} is not there, or switched off"
            margin, free = self._margin_bytes(info), measured.free.get(device)
            if margin == 0 or need == 0:
                continue
            if free is None:
                return _unhealthy(info)
            promised = 0
            for other in others:
                used = measured.used.get(other.instance, NOTHING).get(device, 0)
                promised += max(0, other.reserved.get(device, 0) - used)
            if free - promised - need < margin:
                return (
                    f"needs {_gib(need)} on {info.label}: {_gib(free)} free, {_gib(promised)} of it promised"
                    f" to other models, {_gib(margin)} margin"
                )
        return None

    def _used(self, sample: Sample, claim: Claim) -> Footprint:
        told = sample.used.get(claim.pid, {}) if claim.pid is not None else {}
        taken = claim.taken if claim.is_ready else NOTHING
        used = {
            self.id(name): told.get(name, 0) if sample.attributed.get(name) else taken.get(self.id(name), 0)
            for name in sample.devices
        }
        return {device: size for device, size in used.items() if size}

    def _is_enabled(self, info: DeviceInfo) -> bool:
        return all(device.enabled for name, device in self._memory.devices.items() if _is_called(info, name))

    def _margin_bytes(self, info: DeviceInfo) -> int:
        for name, device in self._memory.devices.items():
            if device.margin_mib is not None and _is_called(info, name):
                return device.margin_mib << 20
        return self._memory.margin_mib << 20


def _lost(claim: Claim, free: Mapping[DeviceId, int | None], changes: int) -> Footprint:
    """What the devices lost while it loaded; nothing where others of ours started or ended in that time."""
    if changes != claim.changes:
        return {}
    pairs = {d: (claim.free_before.get(d), free.get(d)) for d in claim.placement.footprint}
    return {
        device: max(0, before - now)
        for device, (before, now) in pairs.items()
        if before is not None and now is not None
    }


def _is_called(info: DeviceInfo, name: str) -> bool:
    """A label begins with a short name: "cuda:0 NVIDIA GeForce RTX 3090"."""
    names = (info.id, info.uuid, info.label, info.label.partition(" ")[0])
    return name.lower() in {one.lower() for one in names if one}


def _unhealthy(info: DeviceInfo) -> str:
    return f"{info.label} is unhealthy: {info.error or 'it cannot be measured'}"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"

"""What one source of devices contributes to a sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from router.memory.devices.types import DeviceInfo

#: All pids of a process tree, by the pid that was asked for.
Trees = Mapping[int, frozenset[int]]


@dataclass(frozen=True, slots=True)
class Found:
    """Devices by id; `used` per asked pid and *pool*; `attributed` per device; `notes` for people.
    `warnings`: why models run on the CPU though there is a driver, unless another source finds devices.
    """

    devices: Mapping[str, DeviceInfo] = field(default_factory=dict)
    used: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    attributed: Mapping[str, bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def unhealthy(info: DeviceInfo, error: str) -> DeviceInfo:
    """The device as it was known, with nothing to be had there."""
    return replace(
        info, free_bytes=None, utilisation_percent=None, temperature_celsius=None, error=error, asleep=False
    )


def all_unhealthy(found: Found, error: str, note: str) -> Found:
    """The source gave no answer: what it found last cannot be used now."""
    devices = {device: unhealthy(info, error) for device, info in found.devices.items()}
    return Found(devices, {}, dict.fromkeys(devices, False), (note,))

"""The values of this package: a device as it was found, a sample of all, and what one source finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

#: The id of the machine's own memory, and of the pool that every unified-memory GPU draws from.
HOST: Final = "host"

#: All pids of a process tree, by the pid that was asked for.
Trees = Mapping[int, frozenset[int]]


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One memory that a model can be placed in, as last seen. Sizes in bytes.

    `id` is stable over reboots and never an index: "cuda:GPU-<uuid>", "cuda:MIG-<uuid>", "rocm:<unique id or
    PCI address>", "list:<NAME>" (known only by `llama-server --list-devices`) or "host". `uuid` is what goes
    into the mask of a child: CUDA_VISIBLE_DEVICES for "cuda", ROCR_VISIBLE_DEVICES for "rocm", `-dev` for
    "other", nothing for "host".

    `total_bytes` is what could ever be used: the driver's reserve, `reserved_bytes`, is taken off already.
    `free_bytes` is None when the device is unhealthy; `error` then says why. Nothing may be admitted there.

    `pool` is the id of the memory it draws from: its own, or "host" for a GPU that shares the machine's
    memory. Two devices of one pool have one free memory between them.

    `asleep`: the GPU is powered down and was not woken to be asked; `free_bytes` is what was free when it was
    last measured, plus what our own children, gone since, held then. No process uses a GPU that sleeps, so
    that figure holds.
    """

    id: str
    kind: str
    label: str
    uuid: str
    total_bytes: int
    free_bytes: int | None
    reserved_bytes: int = 0
    utilisation_percent: int | None = None
    temperature_celsius: int | None = None
    error: str | None = None
    pool: str = ""
    name: str = ""
    pci: str = ""
    driver: str = ""
    compute_capability: str = ""
    asleep: bool = False

    def unhealthy(self, error: str) -> DeviceInfo:
        """The device as it was known, with nothing to be had there."""
        return replace(
            self,
            free_bytes=None,
            utilisation_percent=None,
            temperature_celsius=None,
            error=error,
            asleep=False,
        )


@dataclass(frozen=True, slots=True)
class Sample:
    """All devices at one moment, and what the asked processes hold of them.

    `taken_at` is the caller's clock, never later than when sampling began. `used` holds every pid that was
    asked for, with the bytes of its whole process tree per *pool* (which is the device itself but for unified
    memory); a process that is gone, or holds nothing, has no entry there. `attributed` says per device
    whether those figures can be believed; where it is False, what the driver told of processes is left out
    and only `free_bytes` counts. `notes` is for people, and so are `warnings`: why models run on the CPU
    though this machine has a GPU and a driver for it.
    """

    taken_at: float
    devices: Mapping[str, DeviceInfo]
    used: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    attributed: Mapping[str, bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """What one source contributes to a sample, with the fields of `Sample`. Its `warnings` are dropped where
    another source finds devices."""

    devices: Mapping[str, DeviceInfo] = field(default_factory=dict)
    used: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    attributed: Mapping[str, bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def unhealthy(self, error: str, note: str) -> Found:
        """The source did not answer: what was found last cannot be used now."""
        devices = {device: info.unhealthy(error) for device, info in self.devices.items()}
        return Found(devices, {}, dict.fromkeys(devices, False), (note,))

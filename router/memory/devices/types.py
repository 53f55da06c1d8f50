"""The values the room of devices gives out: one device as it was found, and one sample of them all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

#: The id of the machine's own memory, and of the pool that every unified-memory GPU draws from.
HOST: Final = "host"


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One memory that a model can be placed in, as last seen. Sizes in bytes.

    `id` is stable over reboots and never an index: "cuda:GPU-<uuid>", "cuda:MIG-<uuid>", "rocm:<unique id or
    PCI address>", "list:<NAME>" (known only by `llama-server --list-devices`) or "host". `uuid` is what goes
    into the mask of a child: CUDA_VISIBLE_DEVICES for "cuda", ROCR_VISIBLE_DEVICES for "rocm", `-dev` for
    "other", nothing for "host".

    `total_bytes` is what could ever be used: the driver's reserve, `reserved_bytes`, is taken off already.
    `free_bytes` is None when the device is unhealthy; `error` then says why, in words. Nothing may be
    admitted there.

    `pool` is the id of the memory it draws from: its own, or "host" for a GPU that shares the machine's
    memory. Two devices of one pool have one free memory between them.

    `asleep`: the GPU is powered down and was not woken to be asked; `free_bytes` is what was free when it was
    last measured, plus what our own children, gone since, held then. A GPU that sleeps runs nobody's work, so
    that figure holds.
    """

    id: str
    kind: str
    label: str
    uuid: str
    total_bytes: int
    free_bytes: int | None
    reserved_bytes: int
    utilisation_percent: int | None
    temperature_celsius: int | None
    error: str | None
    pool: str
    name: str = ""
    pci: str = ""
    driver: str = ""
    compute_capability: str = ""
    asleep: bool = False


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

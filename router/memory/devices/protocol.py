"""What the router and its NVML probe say to each other: one JSON line each way per sample."""

from __future__ import annotations

import msgspec


class GpuProcess(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A process on a GPU. `bytes` is None where the driver does not tell (WDDM, WSL)."""

    pid: int
    bytes: int | None


class GpuReading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One GPU, or one MIG instance of it, as NVML told it now. With `error` set no figure means anything.

    `index` is for people: "1", or "1.0" for a MIG instance. `unified`: it has no memory of its own.
    `processes` is None where the list cannot be had (`process_error` says why). `graphics_bytes` is what
    processes hold that only the list of graphics processes knows.
    """

    uuid: str
    index: str
    name: str
    pci: str
    compute_capability: str = ""
    unified: bool = False
    total_bytes: int = 0
    reserved_bytes: int = 0
    free_bytes: int = 0
    utilisation_percent: int | None = None
    temperature_celsius: int | None = None
    processes: tuple[GpuProcess, ...] | None = None
    process_error: str | None = None
    graphics_bytes: int = 0
    error: str | None = None


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The probe's first line. With `error` there is no NVML to speak of, and the probe ends."""

    driver: str = ""
    error: str | None = None


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Read everything; what has not answered after `patience_seconds` is reported as such."""

    id: int
    patience_seconds: float


class Reading(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The answer to the request of that id. `broken`: devices that would not even say who they are."""

    id: int
    gpus: tuple[GpuReading, ...]
    broken: tuple[str, ...] = ()

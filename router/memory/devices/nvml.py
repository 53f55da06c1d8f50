"""What NVML says of one card, read through pynvml. Runs in the probe only: any of these calls may hang or
crash.

Every call of the library is translated here: into a figure, into None where the card does not know it, or
into `NvmlFailed` with words for people.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import pynvml

from router.memory.devices.protocol import GpuProcess, GpuReading

#: NVMLLibraryMismatchError is not an NVMLError: an old driver without the versioned call raises it.
_ERRORS: Final = (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError, UnicodeDecodeError)

_IN_WORDS: Final = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no driver library (libnvidia-ml.so.1)",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "driver not loaded",
    pynvml.NVML_ERROR_NO_PERMISSION: "no permission to use the driver's device nodes",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "driver library and kernel module differ in version",
    pynvml.NVML_ERROR_UNKNOWN: "unknown error (no device nodes, or they were taken from this container)",
    pynvml.NVML_ERROR_GPU_IS_LOST: "GPU is lost (it fell off the bus, or its driver was unloaded)",
    pynvml.NVML_ERROR_RESET_REQUIRED: "GPU requires a reset",
    pynvml.NVML_ERROR_NOT_SUPPORTED: "not supported",
    pynvml.NVML_ERROR_UNINITIALIZED: "driver session ended",
}

#: Systems on a chip whose GPU has no memory of its own, whatever a driver may report as its total.
_UNIFIED_NAMES: Final = re.compile(r"\b(GB10|Orin|Xavier|Thor|Tegra)\b")

_NOT_SUPPORTED: Final = (
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
)


class NvmlFailed(Exception):
    """A call failed: the message says how, in words. `code` is NVML's, 0 where it gave none."""

    def __init__(self, error: Exception) -> None:
        self.code = int(getattr(error, "value", 0))
        super().__init__(_IN_WORDS.get(self.code) or str(error) or type(error).__name__)


@dataclass(frozen=True, slots=True)
class _Device:
    """A handle and who it is. MIG instances have handles, names and UUIDs of their own."""

    handle: Any
    uuid: str
    index: str
    name: str
    pci: str
    compute_capability: str
    is_mig: bool = False
    unusable: str = ""


def open_session() -> str:
    """Loads and initialises the library; returns the driver's version. Raises NvmlFailed. May take seconds
    per GPU."""
    _call(pynvml.nvmlInit)
    return _told(pynvml.nvmlSystemGetDriverVersion) or ""


def card_count() -> int:
    """How many cards there are. Raises NvmlFailed."""
    return int(_call(pynvml.nvmlDeviceGetCount))


class Card:
    """A physical card: itself, or its MIG instances where it is cut into some. Not for two threads at
    once."""

    def __init__(self, index: int) -> None:
        self.index = index
        self._devices: tuple[_Device, ...] = ()

    def read(self) -> tuple[GpuReading, ...]:
        """All of it, now. Raises NvmlFailed where the card does not even say who it is."""
        devices = self._devices or _devices_of(self.index)
        readings = tuple(_read(device) for device in devices)
        # Handles outlive what they stand for (a reset, another MIG layout): after an error look again.
        self._devices = () if any(reading.error for reading in readings) else devices
        return readings


def _devices_of(index: int) -> tuple[_Device, ...]:
    handle = _call(pynvml.nvmlDeviceGetHandleByIndex, index)
    card = _Device(
        handle,
        _call(pynvml.nvmlDeviceGetUUID, handle),
        str(index),
        _told(pynvml.nvmlDeviceGetName, handle) or "NVIDIA GPU",
        _pci(handle),
        _capability(handle),
    )
    mode = _told(pynvml.nvmlDeviceGetMigMode, handle)
    if not mode or not mode[0]:
        return (card,)
    # CUDA offers a card in MIG mode by its instances only.
    return tuple(_mig_instances(card)) or (
        replace(card, unusable="MIG mode is on, and there is no instance"),
    )


def _mig_instances(card: _Device) -> list[_Device]:
    instances: list[_Device] = []
    for slot in range(_told(pynvml.nvmlDeviceGetMaxMigDeviceCount, card.handle) or 0):
        handle = _told(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, card.handle, slot)
        if handle is None:
            continue  # slots may be empty
        instances.append(
            _Device(
                handle,
                _call(pynvml.nvmlDeviceGetUUID, handle),
                f"{card.index}.{len(instances)}",
                _told(pynvml.nvmlDeviceGetName, handle) or f"{card.name} MIG",
                card.pci,
                card.compute_capability,
                is_mig=True,
            )
        )
    return instances


def _identity(device: _Device, **figures: Any) -> GpuReading:
    return GpuReading(
        uuid=device.uuid,
        index=device.index,
        name=device.name,
        pci=device.pci,
        compute_capability=device.compute_capability,
        **figures,
    )


def _read(device: _Device) -> GpuReading:
    """Processes first, memory second: an allocation in between then errs to the safe side."""
    if device.unusable:
        return _identity(device, error=device.unusable)
    handle = device.handle
    processes, process_error = _processes(handle)
    try:
        total, reserved, free = _memory(handle)
    except NvmlFailed as failed:
        if failed.code != pynvml.NVML_ERROR_NOT_SUPPORTED or device.is_mig:
            return _identity(device, error=str(failed))
        total = reserved = free = 0
    utilisation = _told(pynvml.nvmlDeviceGetUtilizationRates, handle)
    return _identity(
        device,
        unified=not total or bool(_UNIFIED_NAMES.search(device.name)),
        total_bytes=total,
        reserved_bytes=reserved,
        free_bytes=free,
        utilisation_percent=None if utilisation is None else int(utilisation.gpu),
        temperature_celsius=_temperature(handle),
        processes=processes,
        process_error=process_error,
        graphics_bytes=_graphics_bytes(handle, {process.pid for process in processes or ()}),
    )


def _memory(handle: Any) -> tuple[int, int, int]:
    """(total, reserved, free). Only v2 tells the driver's reserve from what is used; `free` is the same in
    both."""
    try:
        memory = _call(pynvml.nvmlDeviceGetMemoryInfo, handle, pynvml.nvmlMemory_v2)
    except NvmlFailed as failed:
        if failed.code not in _NOT_SUPPORTED:
            raise
        memory = _call(pynvml.nvmlDeviceGetMemoryInfo, handle)
        return int(memory.total), 0, int(memory.free)
    return int(memory.total), int(memory.reserved), int(memory.free)


def _processes(handle: Any) -> tuple[tuple[GpuProcess, ...] | None, str | None]:
    error = ""
    for call in (pynvml.nvmlDeviceGetComputeRunningProcesses, pynvml.nvmlDeviceGetComputeRunningProcesses_v2):
        try:
            listed = _call(call, handle)
        except NvmlFailed as failed:
            error = error or str(failed)
            continue
        return tuple(GpuProcess(int(one.pid), _bytes(one.usedGpuMemory)) for one in listed), None
    return None, error


def _graphics_bytes(handle: Any, listed: set[int]) -> int:
    """A desktop's and a game's memory. A process with both kinds of work stands in both lists, with the same
    figure."""
    graphics = _told(pynvml.nvmlDeviceGetGraphicsRunningProcesses, handle) or []
    return sum(_bytes(one.usedGpuMemory) or 0 for one in graphics if one.pid not in listed)


def _bytes(size: int | None) -> int | None:
    return None if size is None else int(size)


def _temperature(handle: Any) -> int | None:
    """The first of these is missing on older drivers, the second will be on newer ones."""
    sensor = pynvml.NVML_TEMPERATURE_GPU
    value = _told(pynvml.nvmlDeviceGetTemperatureV, handle, sensor)
    if value is None:
        value = _told(pynvml.nvmlDeviceGetTemperature, handle, sensor)
    return None if value is None else int(value)


def _pci(handle: Any) -> str:
    """The address as sysfs writes it: "0000:01:00.0". NVML pads the domain to eight digits and prints
    capitals."""
    info = _told(pynvml.nvmlDeviceGetPciInfo, handle)
    if info is None:
        return ""
    address = info.busId.decode(errors="replace") if isinstance(info.busId, bytes) else str(info.busId)
    domain, _, rest = address.lower().partition(":")
    return f"{domain[-4:]}:{rest}" if rest else address.lower()


def _capability(handle: Any) -> str:
    pair = _told(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    return f"{pair[0]}.{pair[1]}" if pair else ""


def _call(call: Callable[..., Any], *args: Any) -> Any:
    try:
        return call(*args)
    except _ERRORS as error:
        raise NvmlFailed(error) from error


def _told(call: Callable[..., Any], *args: Any) -> Any:
    """What is nice to know: None where the card does not tell."""
    try:
        return call(*args)
    except _ERRORS:
        return None

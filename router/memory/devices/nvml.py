"""What NVML says of one card, read through pynvml. Runs in the probe only: any of these calls may hang or
crash.

Every call of the library is translated here: into a figure, into None where the card does not know it, or
into `NvmlFailed` with words for people.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import pynvml
from msgspec.structs import replace

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


class _Device(NamedTuple):
    """A handle, and what it stands for: `identity` is a reading without figures (or with the error that
    there never will be any). MIG instances have handles, names and UUIDs of their own."""

    handle: Any
    identity: GpuReading
    is_mig: bool = False


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
        self._devices: list[_Device] = []

    def read(self) -> tuple[GpuReading, ...]:
        """All of it, now. Raises NvmlFailed where the card does not even say who it is."""
        devices = self._devices or _devices_of(self.index)
        readings = tuple(_read(device) for device in devices)
        # Handles outlive what they stand for (a reset, another MIG layout): after an error look again.
        self._devices = [] if any(reading.error for reading in readings) else devices
        return readings


def _devices_of(index: int) -> list[_Device]:
    handle = _call(pynvml.nvmlDeviceGetHandleByIndex, index)
    capability = _told(pynvml.nvmlDeviceGetCudaComputeCapability, handle)
    card = GpuReading(
        uuid=_call(pynvml.nvmlDeviceGetUUID, handle),
        index=str(index),
        name=_told(pynvml.nvmlDeviceGetName, handle) or "NVIDIA GPU",
        pci=_pci(handle),
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else "",
    )
    mode = _told(pynvml.nvmlDeviceGetMigMode, handle)
    if not mode or not mode[0]:
        return [_Device(handle, card)]
    # CUDA offers a card in MIG mode by its instances only.
    instances: list[_Device] = []
    for slot in range(_told(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        instance = _told(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, slot)
        if instance is not None:  # slots may be empty
            identity = replace(
                card,
                uuid=_call(pynvml.nvmlDeviceGetUUID, instance),
                index=f"{card.index}.{len(instances)}",
                name=_told(pynvml.nvmlDeviceGetName, instance) or f"{card.name} MIG",
            )
            instances.append(_Device(instance, identity, is_mig=True))
    return instances or [_Device(handle, replace(card, error="MIG mode is on, and there is no instance"))]


def _read(device: _Device) -> GpuReading:
    """Processes first, memory second: an allocation in between then errs to the safe side."""
    handle, identity = device.handle, device.identity
    if identity.error:
        return identity
    processes, process_error = _processes(handle)
    try:
        total, reserved, free = _memory(handle)
    except NvmlFailed as failed:
        if failed.code != pynvml.NVML_ERROR_NOT_SUPPORTED or device.is_mig:
            return replace(identity, error=str(failed))
        total = reserved = free = 0
    utilisation = _told(pynvml.nvmlDeviceGetUtilizationRates, handle)
    # The first of these is missing on older drivers, the second will be on newer ones.
    temperature = _told(pynvml.nvmlDeviceGetTemperatureV, handle, pynvml.NVML_TEMPERATURE_GPU)
    if temperature is None:
        temperature = _told(pynvml.nvmlDeviceGetTemperature, handle, pynvml.NVML_TEMPERATURE_GPU)
    listed = {process.pid for process in processes or ()}
    # A desktop's and a game's memory. A process with both kinds of work stands in both lists, with the same
    # figure.
    graphics = _told(pynvml.nvmlDeviceGetGraphicsRunningProcesses, handle) or []
    return replace(
        identity,
        unified=not total or bool(_UNIFIED_NAMES.search(identity.name)),
        total_bytes=total,
        reserved_bytes=reserved,
        free_bytes=free,
        utilisation_percent=None if utilisation is None else int(utilisation.gpu),
        temperature_celsius=None if temperature is None else int(temperature),
        processes=processes,
        process_error=process_error,
        graphics_bytes=sum(int(one.usedGpuMemory or 0) for one in graphics if one.pid not in listed),
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
        return tuple(GpuProcess(one.pid, one.usedGpuMemory) for one in listed), None
    return None, error


def _pci(handle: Any) -> str:
    """The address as sysfs writes it: "0000:01:00.0". NVML pads the domain to eight digits and prints
    capitals."""
    info = _told(pynvml.nvmlDeviceGetPciInfo, handle)
    if info is None:
        return ""
    address = info.busId.decode(errors="replace") if isinstance(info.busId, bytes) else str(info.busId)
    domain, _, rest = address.lower().partition(":")
    return f"{domain[-4:]}:{rest}" if rest else address.lower()


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

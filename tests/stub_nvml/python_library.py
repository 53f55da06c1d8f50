"""The stub library without a compiler: an object in the place of pynvml's loaded library, over the same
folder.

pynvml calls it as it calls the shared object, with `byref()` arguments; what C would write through the
pointer is written through `_obj` here. It cannot show what a crash inside of the library does, nor what the
loader does.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.stub_nvml.state import StubGpu, StubState, allocations, read_state

OK, UNINITIALIZED, INVALID_ARGUMENT, NOT_SUPPORTED, NOT_FOUND, INSUFFICIENT_SIZE = 0, 1, 2, 3, 6, 7
FUNCTION_NOT_FOUND, GPU_IS_LOST, ARGUMENT_VERSION_MISMATCH = 13, 15, 25
ALL_ONES = 2**64 - 1
MEMORY_V2 = 0x02000028


class Refused(Exception):
    """Carries the NVML status that the call returns."""


class PythonNvml:
    """One loaded library."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._handles: list[str] = []
        self._inits = 0
        #: pynvml sets `restype` on it, which a bound method would not bear.
        self.nvmlErrorString = lambda code: b"Stub error"

    def __getattr__(self, name: str) -> Callable[..., int]:
        call = getattr(type(self), f"_{name}", None)
        if call is None:
            raise AttributeError(name)

        def returns_a_status(*args: Any) -> int:
            try:
                call(self, *args)
            except Refused as refused:
                return int(refused.args[0])
            return OK

        return returns_a_status

    def _state(self) -> StubState:
        if not self._inits:
            raise Refused(UNINITIALIZED)
        return read_state(self._folder)

    def _look_up(self, handle: Any) -> tuple[StubState, int, StubGpu]:
        state = self._state()
        number = ctypes.cast(handle, ctypes.c_void_p).value or 0
        for index, gpu in enumerate(state.gpus):
            if gpu.uuid == self._handles[number - 1]:
                time.sleep(gpu.hang_ms / 1000)
                if gpu.crash:
                    os.kill(os.getpid(), 11)
                if gpu.err:
                    raise Refused(gpu.err)
                return state, index, gpu
        raise Refused(GPU_IS_LOST)

    def _give_handle(self, uuid: str, out: Any) -> None:
        if uuid not in self._handles:
            self._handles.append(uuid)
        ctypes.c_void_p.from_buffer(out._obj).value = self._handles.index(uuid) + 1

    def _nvmlInitWithFlags(self, flags: int) -> None:  # noqa: N802 - these are the names in the library
        state = read_state(self._folder)
        time.sleep(state.init_hang_ms / 1000)
        if state.init_err:
            raise Refused(state.init_err)
        self._inits += 1

    def _nvmlShutdown(self) -> None:  # noqa: N802
        self._inits -= 1

    def _nvmlSystemGetDriverVersion(self, out: Any, size: Any) -> None:  # noqa: N802
        out.value = self._state().driver.encode()

    def _nvmlDeviceGetCount_v2(self, out: Any) -> None:  # noqa: N802
        out._obj.value = len(_of_parent(self._state(), -1))

    def _nvmlDeviceGetHandleByIndex_v2(self, index: Any, out: Any) -> None:  # noqa: N802
        cards = _of_parent(self._state(), -1)
        if index.value >= len(cards):
            raise Refused(INVALID_ARGUMENT)
        if cards[index.value].err:
            raise Refused(cards[index.value].err)
        self._give_handle(cards[index.value].uuid, out)

    def _nvmlDeviceGetHandleByUUID(self, uuid: Any, out: Any) -> None:  # noqa: N802
        for gpu in self._state().gpus:
            if gpu.uuid.encode() == uuid.value:
                if gpu.err:
                    raise Refused(gpu.err)
                return self._give_handle(gpu.uuid, out)
        raise Refused(NOT_FOUND)

    def _nvmlDeviceGetUUID(self, handle: Any, out: Any, size: Any) -> None:  # noqa: N802
        out.value = self._look_up(handle)[2].uuid.encode()

    def _nvmlDeviceGetName(self, handle: Any, out: Any, size: Any) -> None:  # noqa: N802
        out.value = self._look_up(handle)[2].name.encode()

    def _nvmlDeviceGetPciInfo_v3(self, handle: Any, out: Any) -> None:  # noqa: N802
        out._obj.busId = self._look_up(handle)[2].pci.encode()

    def _nvmlDeviceGetCudaComputeCapability(self, handle: Any, major: Any, minor: Any) -> None:  # noqa: N802
        parts = self._look_up(handle)[2].cc.split(".")
        major._obj.value, minor._obj.value = int(parts[0]), int(parts[1])

    def _memory(self, handle: Any, out: Any, *, is_v2: bool) -> None:
        state, index, gpu = self._look_up(handle)
        if is_v2 and state.old_driver:
            raise Refused(FUNCTION_NOT_FOUND)
        if is_v2 and out._obj.version != MEMORY_V2:
            raise Refused(ARGUMENT_VERSION_MISMATCH)
        if gpu.memerr:
            raise Refused(gpu.memerr)
        used = gpu.used + gpu.gfx + sum(size for _, size in self._held(state, index))
        out._obj.total = gpu.total
        out._obj.free = max(0, gpu.total - gpu.reserved - used)
        out._obj.used = used if is_v2 else gpu.total - out._obj.free
        if is_v2:
            out._obj.reserved = gpu.reserved

    def _nvmlDeviceGetMemoryInfo(self, handle: Any, out: Any) -> None:  # noqa: N802
        self._memory(handle, out, is_v2=False)

    def _nvmlDeviceGetMemoryInfo_v2(self, handle: Any, out: Any) -> None:  # noqa: N802
        self._memory(handle, out, is_v2=True)

    def _held(self, state: StubState, index: int, *, living_only: bool = False) -> list[tuple[int, int]]:
        """On a card that is cut into MIG instances its own figures are those of all instances."""
        devices = [i for i, gpu in enumerate(state.gpus) if i == index or gpu.parent == index]
        held = [allocations(self._folder, device, living_only=living_only) for device in devices]
        return [one for of_device in held for one in of_device]

    def _processes(self, handle: Any, count: Any, out: Any, *, is_v3: bool) -> None:
        state, index, gpu = self._look_up(handle)
        if is_v3 and state.old_driver:
            raise Refused(FUNCTION_NOT_FOUND)
        if gpu.procerr:
            raise Refused(gpu.procerr)
        sizes: dict[int, int] = {}
        for pid, size in [] if state.hide_pids else self._held(state, index, living_only=True):
            sizes[pid] = ALL_ONES if gpu.procna else 0 if gpu.proczero else sizes.get(pid, 0) + size
        _fill(sizes, count, out)

    def _nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any, count: Any, out: Any) -> None:  # noqa: N802
        self._processes(handle, count, out, is_v3=True)

    def _nvmlDeviceGetComputeRunningProcesses_v2(self, handle: Any, count: Any, out: Any) -> None:  # noqa: N802
        self._processes(handle, count, out, is_v3=False)

    def _nvmlDeviceGetGraphicsRunningProcesses_v3(self, handle: Any, count: Any, out: Any) -> None:  # noqa: N802
        gpu = self._look_up(handle)[2]
        _fill({1: gpu.gfx} if gpu.gfx else {}, count, out)

    def _nvmlDeviceGetUtilizationRates(self, handle: Any, out: Any) -> None:  # noqa: N802
        gpu = self._look_up(handle)[2]
        if gpu.parent >= 0 or gpu.utilerr:
            raise Refused(gpu.utilerr or NOT_SUPPORTED)
        out._obj.gpu = gpu.util

    def _nvmlDeviceGetTemperature(self, handle: Any, sensor: Any, out: Any) -> None:  # noqa: N802
        gpu = self._look_up(handle)[2]
        if gpu.temperr:
            raise Refused(gpu.temperr)
        out._obj.value = gpu.temp

    def _nvmlDeviceGetTemperatureV(self, handle: Any, out: Any) -> None:  # noqa: N802
        state, _, gpu = self._look_up(handle)
        if state.old_driver or gpu.temperr:
            raise Refused(gpu.temperr or FUNCTION_NOT_FOUND)
        out._obj.temperature = gpu.temp

    def _nvmlDeviceGetMigMode(self, handle: Any, current: Any, pending: Any) -> None:  # noqa: N802
        current._obj.value = pending._obj.value = self._look_up(handle)[2].mig

    def _nvmlDeviceGetMaxMigDeviceCount(self, handle: Any, out: Any) -> None:  # noqa: N802
        self._look_up(handle)
        out._obj.value = 7

    def _nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: Any, out: Any) -> None:  # noqa: N802
        state, parent, _ = self._look_up(handle)
        instances = _of_parent(state, parent)
        if index.value >= len(instances):
            raise Refused(NOT_FOUND)
        self._give_handle(instances[index.value].uuid, out)


def _of_parent(state: StubState, parent: int) -> list[StubGpu]:
    return [gpu for gpu in state.gpus if gpu.parent == parent]


def _fill(sizes: dict[int, int], count: Any, out: Any) -> None:
    """The driver's protocol: asked without room for all, it says how much room it takes."""
    room = count._obj.value if out is not None else 0
    count._obj.value = len(sizes)
    if len(sizes) > room:
        raise Refused(INSUFFICIENT_SIZE)
    for i, (pid, size) in enumerate(sizes.items()):
        out[i].pid, out[i].usedGpuMemory = pid, size

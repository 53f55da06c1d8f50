"""The machine's own memory as a device: what its processes may still take, cgroups and hot model pages
accounted for."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from router.memory.devices.cgroup import memory_limits
from router.memory.devices.kernel_files import text
from router.memory.devices.process_memory import HostUse, Processes
from router.memory.devices.types import HOST, DeviceInfo

_KIB: Final = re.compile(r"^(MemTotal|MemAvailable):\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class HostReading:
    """The host device, and what the asked process trees hold of it."""

    device: DeviceInfo
    use: HostUse


def memory_of_machine() -> tuple[int, int]:
    """(total, available) in bytes, of the machine as a whole. Swap counts as nothing: a model in swap serves
    nobody."""
    told = dict(_KIB.findall(text("/proc/meminfo") or ""))
    total, available = (int(told.get(name, 0)) << 10 for name in ("MemTotal", "MemAvailable"))
    return total, min(total, available)  # a container may be shown its own size and the machine's rest


class HostMemory:
    """Reads the host. Blocking: call it in a thread.

    free = available - evictable file-backed pages of the given processes, where available = min(MemAvailable,
    and for each cgroup limit: limit - (used - reclaimable)). The pages are taken off because the kernel
    counts them as available, while evicting weights that are mapped from a file means to read them from disk
    again for every token.
    """

    def __init__(
        self,
        root: Path = Path("/"),
        memory: Callable[[], tuple[int, int]] = memory_of_machine,
    ) -> None:
        self._root = root
        self._memory = memory
        self._processes = Processes(root)

    def trees(self, pids: Collection[int]) -> dict[int, frozenset[int]]:
        return self._processes.trees(pids)

    def read(self, trees: Mapping[int, Collection[int]], loading: Collection[int] = ()) -> HostReading:
        """Processes first, memory second: an allocation in between then errs to the safe side."""
        use = self._processes.use(trees, loading)
        total, available = self._memory()
        limits = memory_limits(self._root)
        total = min([total, *(limit.limit_bytes for limit in limits)])
        available = min([available, *(limit.available_bytes for limit in limits)])
        free = max(0, min(available - use.hot_bytes, total))
        return HostReading(host_device(total, free), use)


def host_device(total: int, free: int | None, error: str | None = None) -> DeviceInfo:
    return DeviceInfo(HOST, HOST, HOST, "", total, free, error=error, pool=HOST, name=HOST)

"""One sample of all devices at a time, shared by everybody who waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from router.devices.blocking import BlockingRead, Late
from router.devices.host import HostMemory, host_device
from router.devices.types import HOST, DeviceInfo, Sample


@dataclass(slots=True)
class _Flight:
    """A sample that has not begun: whoever comes now boards it, and all share the result."""

    now: float
    pids: set[int] = field(default_factory=set)
    loading: set[int] = field(default_factory=set)
    wake: bool = False
    landed: asyncio.Future[Sample] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Devices:
    """All devices of this machine. An async context manager: it owns the child process that speaks to the
    NVIDIA driver.

    `list_devices` returns what `llama-server --list-devices` prints (stdout and stderr); it is asked seldom,
    and only where no GPU was found in another way. `enabled` switches off sources by name: "nvml", "amd",
    "list_devices".
    """

    def __init__(
        self,
        *,
        list_devices: Callable[[], Awaitable[str]] | None = None,
        probe_timeout_seconds: float = 2.0,
        enabled: Mapping[str, bool] | None = None,
        root: Path = Path("/"),
    ) -> None:
        self.latest: Sample | None = None
        self._host = HostMemory(root)
        self._read_host = BlockingRead("host-memory", self._host.read, probe_timeout_seconds)
        self._read_trees = BlockingRead("process-trees", self._host.trees, probe_timeout_seconds)
        self._last_host = host_device(0, None)
        self._boarding: _Flight | None = None
        self._turn = asyncio.Lock()
        self._tasks = asyncio.TaskGroup()
        self._flying: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._flying:
            task.cancel()
        await self._tasks.__aexit__(None, None, None)

    async def sample(
        self,
        pids: Collection[int] = (),
        *,
        now: float,
        wake: bool = True,
        loading: Collection[int] = (),
    ) -> Sample:
        """A sample that begins after this call, of all devices and of the process trees of `pids`. Never
        raises for a device.

        Callers that wait at the same time share one sample with all their pids in it. `now` is the caller's
        clock. With `wake=False` (a status page, a poll while idle) the NVIDIA driver is not opened, and not
        kept open, for this call. `loading`: those of the pids that have not become ready; their file-backed
        pages are left out (see `host_use`).
        """
        flight = self._boarding
        if flight is None:
            flight = self._boarding = _Flight(now)
            task = self._tasks.create_task(self._fly(flight), name="devices-sample")
            self._flying.add(task)
            task.add_done_callback(self._flying.discard)
        flight.now = max(flight.now, now)
        flight.pids.update(pids)
        flight.loading.update(loading)
        flight.wake = flight.wake or wake
        return await asyncio.shield(flight.landed)

    async def _fly(self, flight: _Flight) -> None:
        try:
            async with self._turn:
                self._boarding = None  # it begins: who comes later must not be given figures from before
                self.latest = await self._measure(flight)
            flight.landed.set_result(self.latest)
        except asyncio.CancelledError:
            flight.landed.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - the task ends here; those who wait get what was raised
            flight.landed.set_exception(error)
            flight.landed.exception()

    async def _measure(self, flight: _Flight) -> Sample:
        """Processes first, memory second, per device; the host last, because unified GPUs live in its
        memory."""
        notes: list[str] = []
        trees: Mapping[int, frozenset[int]]
        try:
            trees = await self._read_trees(sorted(flight.pids))
        except Late as late:
            notes.append(f"host: the list of processes gave {late}")
            trees = {pid: frozenset({pid}) for pid in flight.pids}
        used: dict[int, dict[str, int]] = {pid: {} for pid in flight.pids}
        devices: dict[str, DeviceInfo] = {}
        attributed: dict[str, bool] = {}
        try:
            host = await self._read_host(trees, flight.loading)
            self._last_host = host.device
            attributed[HOST] = host.use.is_complete
            for pid, size in host.use.used.items():
                used[pid][HOST] = size
            devices[HOST] = host.device
        except Late as late:
            devices[HOST] = host_device(self._last_host.total_bytes, None, f"reading memory gave {late}")
            attributed[HOST] = False
        return Sample(flight.now, devices, used, attributed, tuple(notes))

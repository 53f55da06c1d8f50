"""One sample of all devices at a time, shared by everybody who waits for it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from router.memory.devices.amd import Amd
from router.memory.devices.blocking import BlockingRead, Late
from router.memory.devices.host import HostMemory, HostReading, host_device
from router.memory.devices.listed import Listed
from router.memory.devices.nvidia import Nvidia
from router.memory.devices.probe_line import LineTiming
from router.memory.devices.types import HOST, DeviceInfo, Found, Sample, Trees
from router.tasks import Tasks

#: The sources that `enabled` can switch off.
SOURCES: Final = ("nvml", "amd", "list_devices")


@dataclass(slots=True)
class SampleRequest:
    """A sample that has not begun: callers that come now join it, and all share the result."""

    #: The latest clock of the callers, in seconds.
    now: float
    #: Whose process trees to measure, and which of them are not ready yet.
    pids: set[int] = field(default_factory=set)
    loading: set[int] = field(default_factory=set)
    #: Whether the NVIDIA driver may be opened for it.
    wake: bool = False
    result: asyncio.Future[Sample] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Devices:
    """All devices of this machine. An async context manager: it owns the child process that speaks to the
    NVIDIA driver.

    `list_devices` returns what `llama-server --list-devices` prints (stdout, better with stderr); it is asked
    at most every `list_interval_seconds`, ever more seldom while it lists none, and only where no GPU was
    found in another way. `enabled` switches sources off by name (`SOURCES`).

    `probe_timeout_seconds` bounds how long any source may hold up a sample. Only the opening of the NVIDIA
    driver, the first time and after a rest, is waited for longer (`start_patience_seconds`); it may take
    `start_timeout_seconds` in all, in the background. `idle_seconds` without need: the driver is closed.
    `renew_seconds`: sessions with a driver that fails begin at most that often.

    `environ`, `root`, `probe_argv` and `host` are for tests: the environment whose masks are obeyed, where
    /proc and /sys are, what to run in the place of the probe, and what reads the machine's own memory.
    """

    def __init__(
        self,
        *,
        list_devices: Callable[[], Awaitable[str]] | None = None,
        probe_timeout_seconds: float = 2.0,
        enabled: Mapping[str, bool] | None = None,
        start_timeout_seconds: float = 60.0,
        start_patience_seconds: float = 15.0,
        idle_seconds: float = 60.0,
        renew_seconds: float = 30.0,
        list_interval_seconds: float = 10.0,
        environ: Mapping[str, str] | None = None,
        root: Path = Path("/"),
        probe_argv: Sequence[str] | None = None,
        host: HostMemory | None = None,
    ) -> None:
        self.latest: Sample | None = None
        self._tasks = Tasks()
        #: The samples that are taken or wait for their turn, two at most.
        self._samples = Tasks()
        #: The sample that new callers join.
        self._next: SampleRequest | None = None
        self._turn = asyncio.Lock()
        environ = os.environ if environ is None else environ
        is_on = dict.fromkeys(SOURCES, True) | dict(enabled or {})
        assert set(is_on) == set(SOURCES), f"unknown among {sorted(is_on)}: there are {SOURCES}"
        timing = LineTiming(
            probe_timeout_seconds, start_timeout_seconds, start_patience_seconds, idle_seconds, renew_seconds
        )
        self._nvidia: Nvidia | None = None
        if is_on["nvml"]:
            self._nvidia = Nvidia(self._tasks, environ=environ, argv=probe_argv, timing=timing, root=root)
        amd = Amd(environ, root) if is_on["amd"] else None
        self._read_amd = BlockingRead("amd", amd.read, probe_timeout_seconds) if amd else None
        self._listed: Listed | None = None
        if list_devices is not None and is_on["list_devices"]:
            self._listed = Listed(self._tasks, list_devices, interval_seconds=list_interval_seconds)
        host = host or HostMemory(root)
        self._read_host = BlockingRead("host-memory", host.read, probe_timeout_seconds)
        self._read_trees = BlockingRead("process-trees", host.trees, probe_timeout_seconds)
        self._last_amd = Found()
        self._last_host = host_device(0, None)

    @property
    def probe_pids(self) -> list[int]:
        """The child processes it has now: usually one, none while the driver is closed."""
        return self._nvidia.line.pids if self._nvidia is not None else []

    async def __aenter__(self) -> Self:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._samples.cancel()
        if self._nvidia is not None:
            await self._nvidia.line.close()
        if self._listed is not None:
            await self._listed.close()
        await self._tasks.__aexit__()

    async def sample(
        self,
        pids: Collection[int] = (),
        *,
        now: float,
        wake: bool = True,
        loading: Collection[int] = (),
    ) -> Sample:
        """A sample that begins after this call, of all devices and of the process trees of `pids`.

        Never raises for what a device or a driver does: that is an error of the device, or a note. Callers
        that wait at the same time share one sample with all their pids in it. `now` is the caller's clock.
        With `wake=False` (a status page, a poll while idle) the NVIDIA driver is not opened, nor kept open,
        where none of the pids works on it. `loading`: those of the pids that are not ready yet; their
        file-backed pages are left out (see `Processes.use`).
        """
        request = self._next
        if request is None:
            request = self._next = SampleRequest(now)
            self._samples.create_task(self._take(request), name="devices-sample")
        request.now = max(request.now, now)
        request.pids.update(pids)
        request.loading.update(loading)
        request.wake = request.wake or wake
        return await asyncio.shield(request.result)

    async def _take(self, request: SampleRequest) -> None:
        try:
            async with self._turn:
                self._next = None  # it begins: a later caller must not be given figures from before
                self.latest = await self._measure(request)
            request.result.set_result(self.latest)
        except asyncio.CancelledError:
            request.result.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - the task ends here; those who wait get what was raised
            request.result.set_exception(error)
            request.result.exception()

    async def _measure(self, request: SampleRequest) -> Sample:
        """The host last, because unified GPUs live in its memory: processes first, memory second."""
        notes: list[str] = []
        trees: Trees
        try:
            trees = await self._read_trees(sorted(request.pids))
        except Late as late:
            notes.append(f"host: the tree of processes gave {late}")
            trees = {pid: frozenset({pid}) for pid in request.pids}
        gpus = list(await asyncio.gather(self._sample_nvidia(trees, request.wake), self._sample_amd(trees)))
        if self._listed is not None and not any(found.devices for found in gpus):
            gpus.append(await self._listed.sample())
        host = self._last_host
        reading: HostReading | None = None
        try:
            reading = await self._read_host(trees, request.loading)
            host = self._last_host = reading.device
        except Late as late:
            host = host_device(host.total_bytes, None, f"reading its memory gave {late}")
        notes += (note for found in gpus for note in found.notes)
        warnings: list[str] = []
        if not any(found.devices for found in gpus):
            warnings += (warning for found in gpus for warning in found.warnings)
        return Sample(request.now, *_merged(host, reading, gpus, request.pids), tuple(notes), tuple(warnings))

    async def _sample_nvidia(self, trees: Trees, wake: bool) -> Found:
        return Found() if self._nvidia is None else await self._nvidia.sample(trees, wake=wake)

    async def _sample_amd(self, trees: Trees) -> Found:
        if self._read_amd is None:
            return Found()
        try:
            self._last_amd = await self._read_amd(trees)
        except Late as late:
            return self._last_amd.unhealthy(f"amdgpu: {late}", f"amdgpu: {late}")
        return self._last_amd


def _merged(
    host: DeviceInfo, reading: HostReading | None, gpus: Sequence[Found], pids: Collection[int]
) -> tuple[dict[str, DeviceInfo], dict[int, dict[str, int]], dict[str, bool]]:
    """(devices, used, attributed) of all sources. What is held of one pool through several devices is added
    up."""
    devices = {HOST: host}
    attributed = {HOST: reading is not None and reading.use.is_complete}
    used: dict[int, dict[str, int]] = {pid: {} for pid in pids}
    if reading is not None:
        for pid, size in reading.use.used.items():
            used[pid][HOST] = size
    for found in gpus:
        attributed |= found.attributed
        for pid, sizes in found.used.items():
            for pool, size in sizes.items():
                used[pid][pool] = used[pid].get(pool, 0) + size
        for device, info in found.devices.items():
            devices[device] = _on_host(info, host) if info.pool == HOST else info
            if info.pool == HOST and not found.attributed.get(device, False):
                attributed[HOST] = False
    return devices, used, attributed


def _on_host(info: DeviceInfo, host: DeviceInfo) -> DeviceInfo:
    """A GPU without memory of its own has what the host has, up to a limit of its own where it has one."""
    total = min(info.total_bytes or host.total_bytes, host.total_bytes)
    if info.free_bytes is None:
        return replace(info, total_bytes=total)
    if host.free_bytes is None:
        return replace(info, total_bytes=total, free_bytes=None, error=host.error)
    own_free = info.free_bytes if info.total_bytes else host.free_bytes
    return replace(info, total_bytes=total, free_bytes=min(own_free, host.free_bytes))

"""NVIDIA GPUs: what the probe reads, made into devices that stay who they are when one is lost or asleep."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from router.memory.devices.attribution import Attribution, Listing
from router.memory.devices.found import Found, Trees, all_unhealthy, unhealthy
from router.memory.devices.power import all_asleep
from router.memory.devices.probe import ProbeFailed
from router.memory.devices.probe_line import LineTiming, ProbeLine
from router.memory.devices.protocol import GpuReading, Reading
from router.memory.devices.types import HOST, DeviceInfo
from router.memory.devices.visible import Candidate, visible
from router.tasks import Spawner


def probe_argv() -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", "router.memory.devices.nvml_probe")


def probe_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """So that the probe is the very code that runs here, installed or not, whatever the working directory."""
    own = str(Path(__file__).resolve().parents[2])
    path = [own, environ["PYTHONPATH"]] if environ.get("PYTHONPATH") else [own]
    return {**environ, "PYTHONPATH": os.pathsep.join(path)}


class Nvidia:
    """All NVIDIA devices of this machine that the router may use. Not for two callers at once."""

    def __init__(
        self,
        tasks: Spawner,
        *,
        environ: Mapping[str, str],
        argv: Sequence[str] | None = None,
        timing: LineTiming | None = None,
        root: Path = Path("/"),
    ) -> None:
        self.line = ProbeLine(tasks, argv or probe_argv(), probe_environ(environ), timing or LineTiming())
        self._environ = environ
        self._root = root
        self._known: dict[str, DeviceInfo] = {}
        self._allowed: frozenset[str] | None = None
        self._is_resolved = False
        self._last = Found()
        self._attribution = Attribution()
        self._session = 0

    async def sample(self, trees: Trees, *, wake: bool = True) -> Found:
        """Every device ever seen, with an error where it cannot be used now. Never raises for what a driver
        does.

        While the driver is closed for want of use it is not opened for a look (`wake` False), and not at all
        while all the GPUs are powered down: nobody runs anything on them then, so what was free is free
        still.
        """
        is_needed = wake or self._has_work(trees)
        if self.line.is_resting:
            asleep = all_asleep([device.pci for device in self._known.values()], self._root)
            if asleep or not is_needed:
                return self._from_memory(trees, asleep=asleep)
        try:
            reading = await self.line.ask(keep=is_needed)
        except ProbeFailed as failed:
            return self._without_answer(f"NVML: {failed}")
        self._last = self._from_reading(reading, trees)
        if not self._last.devices and self._allowed is None:
            self._last = replace(self._last, warnings=self._unused("it lists no device"))
        return self._last

    def _has_work(self, trees: Trees) -> bool:
        """Is there a process that is new, or that held memory of these devices when last seen?"""
        return any(pid not in self._last.used or self._last.used[pid] for pid in trees)

    # --- the driver answered --------------------------------------------------------------------------------

    def _from_reading(self, reading: Reading, trees: Trees) -> Found:
        notes: list[str] = [f"NVML: {broken}" for broken in reading.broken]
        notes += self._resolve_visible(reading)
        gpus = {
            f"cuda:{gpu.uuid}": gpu
            for gpu in reading.gpus
            if self._allowed is None or gpu.uuid in self._allowed
        }
        devices = {device: self._device(device, gpu) for device, gpu in gpus.items()}
        self._known |= {device: info for device, info in devices.items() if info.error is None}
        missing = "; ".join(reading.broken) or "the driver does not list it any more"
        for device, info in self._known.items():
            devices.setdefault(device, unhealthy(info, missing))
        if reading.broken or any(info.error is not None for info in devices.values()):
            self.line.renew()
        else:
            self.line.is_well()
        attributed, doubts = self._judge(gpus, trees)
        for device in devices:
            attributed.setdefault(device, False)
        return Found(devices, _used(gpus, attributed, trees), attributed, (*notes, *doubts))

    def _device(self, device: str, gpu: GpuReading) -> DeviceInfo:
        known = self._known.get(device)
        if gpu.error is not None and known is not None:
            return unhealthy(known, gpu.error)
        return DeviceInfo(
            id=device,
            kind="cuda",
            label=f"cuda:{gpu.index} {gpu.name}",
            uuid=gpu.uuid,
            total_bytes=max(0, gpu.total_bytes - gpu.reserved_bytes),
            free_bytes=None if gpu.error is not None else gpu.free_bytes,
            reserved_bytes=gpu.reserved_bytes,
            utilisation_percent=gpu.utilisation_percent,
            temperature_celsius=gpu.temperature_celsius,
            error=gpu.error,
            pool=HOST if gpu.unified else device,
            name=gpu.name,
            pci=gpu.pci,
            driver=self.line.driver,
            compute_capability=gpu.compute_capability,
        )

    def _resolve_visible(self, reading: Reading) -> list[str]:
        """Indices mean something only while every card answers: they are resolved once, and kept as UUIDs."""
        if self._is_resolved:
            return []
        found = visible(self._environ, [Candidate(gpu.uuid, gpu.index, gpu.name) for gpu in reading.gpus])
        self._allowed = found.uuids
        self._is_resolved = not reading.broken
        return [found.note] if found.note else []

    def _judge(self, gpus: Mapping[str, GpuReading], trees: Trees) -> tuple[dict[str, bool], list[str]]:
        if self._session != self.line.session:
            self._session = self.line.session
            self._attribution = Attribution()
        well = {device: gpu for device, gpu in gpus.items() if gpu.error is None}
        ours = frozenset[int]().union(*trees.values())
        attributed = self._attribution.judge({device: _listing(gpu) for device, gpu in well.items()}, ours)
        doubts = [
            f"{gpu.name} ({device}): what each process uses cannot be told"
            + (f": {gpu.process_error}" if gpu.process_error else "")
            for device, gpu in well.items()
            if not attributed[device]
        ]
        return attributed, doubts

    # --- it did not, or was not asked -----------------------------------------------------------------------

    def _without_answer(self, why: str) -> Found:
        found = all_unhealthy(Found(self._known), why, why)
        if not found.devices:
            self._last = replace(self._last, warnings=self._unused(why))
            found = replace(found, warnings=self._last.warnings)
        return found

    def _unused(self, why: str) -> tuple[str, ...]:
        """That there is a driver is the kernel's word; nothing where the environment hides the GPUs."""
        is_hidden = self._environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles")
        driver = (self._root / "proc/driver/nvidia/version", self._root / "dev/nvidiactl")
        if is_hidden or not any(path.exists() for path in driver):
            return ()
        warning = f"models run on the CPU: the NVIDIA driver is loaded, but cannot be used ({why})"
        return (f"{warning}; see docs/troubleshooting.md",)

    def _from_memory(self, trees: Trees, *, asleep: bool) -> Found:
        """What was told last, less what processes held that are gone since."""
        used = {pid: sizes for pid, sizes in self._last.used.items() if pid in trees}
        gone = [sizes for pid, sizes in self._last.used.items() if pid not in trees]
        devices = {}
        for device, info in self._last.devices.items():
            back = sum(sizes.get(device, 0) for sizes in gone)
            free = None if info.free_bytes is None else min(info.total_bytes, info.free_bytes + back)
            devices[device] = replace(
                info, free_bytes=free, utilisation_percent=None, temperature_celsius=None, asleep=asleep
            )
        why = "the GPUs sleep" if asleep else "the driver is closed, nothing needs it"
        notes = (f"NVML: {why}; figures are the last ones",)
        return Found(devices, used, self._last.attributed, notes, self._last.warnings)


def _listing(gpu: GpuReading) -> Listing:
    sizes: dict[int, int | None] | None = None
    if gpu.processes is not None:
        sizes = {process.pid: process.bytes for process in gpu.processes}
    taken = None if gpu.unified else gpu.total_bytes - gpu.reserved_bytes - gpu.free_bytes
    return Listing(sizes, taken, gpu.graphics_bytes)


def _used(
    gpus: Mapping[str, GpuReading], attributed: Mapping[str, bool], trees: Trees
) -> dict[int, dict[str, int]]:
    used: dict[int, dict[str, int]] = {pid: {} for pid in trees}
    for device, gpu in gpus.items():
        if not attributed[device]:
            continue
        pool = HOST if gpu.unified else device
        sizes = {process.pid: process.bytes or 0 for process in gpu.processes or ()}
        for pid, tree in trees.items():
            held = sum(size for member, size in sizes.items() if member in tree)
            if held:
                used[pid][pool] = used[pid].get(pool, 0) + held
    return used

"""NVIDIA GPUs: what the probe reads, as devices that keep their identity when one is lost or asleep."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from router.memory.devices.attribution import Attribution, Listing
from router.memory.devices.kernel_files import all_asleep
from router.memory.devices.probe import ProbeFailed
from router.memory.devices.probe_line import LineTiming, ProbeLine
from router.memory.devices.protocol import GpuReading, Reading
from router.memory.devices.types import HOST, DeviceInfo, Found, Trees
from router.memory.devices.visible import visible
from router.tasks import Spawner


def probe_argv() -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", "router.memory.devices.nvml_probe")


def probe_environ(environ: Mapping[str, str]) -> dict[str, str]:
    """So that the probe is the very code that runs here, installed or not, whatever the working directory."""
    own = str(Path(__file__).resolve().parents[3])
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
        timing: LineTiming,
        root: Path = Path("/"),
    ) -> None:
        self.line = ProbeLine(tasks, argv or probe_argv(), probe_environ(environ), timing)
        self._environ = environ
        self._root = root
        #: Every device ever seen, as it was when it last answered.
        self._known: dict[str, DeviceInfo] = {}
        #: UUIDs that CUDA_VISIBLE_DEVICES leaves; None: all.
        self._allowed: frozenset[str] | None = None
        self._is_resolved = False
        self._last = Found()
        self._attribution = Attribution()
        #: The session with the driver that `_attribution` judges.
        self._session = 0

    async def sample(self, trees: Trees, *, wake: bool = True) -> Found:
        """Every device ever seen, with an error where it cannot be used now. Never raises for what a driver
        does.

        While the driver is closed for want of use it is not opened for a status page (`wake` False), and not
        at all while all the GPUs are powered down: no process uses them then, so what was free is free still.
        """
        # A process that is new, or that held memory of these devices when last seen, needs figures.
        is_needed = wake or any(pid not in self._last.used or self._last.used[pid] for pid in trees)
        if self.line.is_resting:
            asleep = all_asleep([device.pci for device in self._known.values()], self._root)
            if asleep or not is_needed:
                return self._from_memory(trees, asleep=asleep)
        try:
            reading = await self.line.ask(keep=is_needed)
        except ProbeFailed as failed:
            found = Found(self._known).unhealthy(f"NVML: {failed}", f"NVML: {failed}")
            if not found.devices:
                self._last = replace(self._last, warnings=self._unused(f"NVML: {failed}"))
                found = replace(found, warnings=self._last.warnings)
            return found
        self._last = self._from_reading(reading, trees)
        if not self._last.devices and self._allowed is None:
            self._last = replace(self._last, warnings=self._unused("it lists no device"))
        return self._last

    def _from_reading(self, reading: Reading, trees: Trees) -> Found:
        notes = (*(f"NVML: {broken}" for broken in reading.broken), *self._resolve_visible(reading))
        gpus = {
            f"cuda:{gpu.uuid}": gpu
            for gpu in reading.gpus
            if self._allowed is None or gpu.uuid in self._allowed
        }
        devices = {device: self._device(device, gpu) for device, gpu in gpus.items()}
        self._known |= {device: info for device, info in devices.items() if info.error is None}
        missing = "; ".join(reading.broken) or "the driver does not list it any more"
        for device, info in self._known.items():
            devices.setdefault(device, info.unhealthy(missing))
        if reading.broken or any(info.error is not None for info in devices.values()):
            self.line.renew()
        else:
            self.line.is_well()
        if self._session != self.line.session:
            self._session, self._attribution = self.line.session, Attribution()
        listings = {device: _listing(gpu) for device, gpu in gpus.items() if gpu.error is None}
        found = self._attribution.found(devices, listings, trees)
        return replace(found, notes=(*notes, *found.notes))

    def _device(self, device: str, gpu: GpuReading) -> DeviceInfo:
        known = self._known.get(device)
        if gpu.error is not None and known is not None:
            return known.unhealthy(gpu.error)
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
        self._allowed, doubt = visible(self._environ, reading.gpus)
        self._is_resolved = not reading.broken
        return [doubt] if doubt else []

    def _unused(self, why: str) -> tuple[str, ...]:
        """Why models run on the CPU, where the kernel shows that there is a driver; nothing where the
        environment hides the GPUs."""
        is_hidden = self._environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles")
        driver = (self._root / "proc/driver/nvidia/version", self._root / "dev/nvidiactl")
        if is_hidden or not any(path.exists() for path in driver):
            return ()
        warning = f"models run on the CPU: the NVIDIA driver is loaded, but cannot be used ({why})"
        return (f"{warning}; see docs/troubleshooting.md",)

    def _from_memory(self, trees: Trees, *, asleep: bool) -> Found:
        """The last figures, with what processes held that are gone since counted as free."""
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
    sizes = None if gpu.processes is None else {process.pid: process.bytes for process in gpu.processes}
    taken = None if gpu.unified else gpu.total_bytes - gpu.reserved_bytes - gpu.free_bytes
    return Listing(sizes, taken, gpu.graphics_bytes, gpu.process_error)

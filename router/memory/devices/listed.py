"""Devices that only llama-server knows (Vulkan, SYCL, ...), from what `llama-server --list-devices`
prints."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

from router.memory.devices.types import HOST, DeviceInfo, Found
from router.tasks import Spawner

#: `  NAME: DESCRIPTION (TOTAL MiB, FREE MiB free)`; descriptions have parentheses of their own, hence the
#: anchor.
_DEVICE: Final = re.compile(r"^  (\S+): (.*) \((\d+) MiB, (\d+) MiB free\)\s*$")

#: What the Vulkan backend says on stderr of a GPU that shares the machine's memory.
_VULKAN_UNIFIED: Final = re.compile(r"^ggml_vulkan: (\d+) = .*\| uma: 1 \|", re.MULTILINE)

#: The same card may be offered by several backends of one binary: the first of these is the one to use.
_PREFERENCE: Final = ("CUDA", "ROCm", "HIP", "MUSA", "SYCL", "CANN", "Vulkan", "OpenCL")

_MIB: Final = 1 << 20

#: After so many doublings the time between two questions that find nothing grows no more.
_DOUBLINGS: Final = 5


def parse_devices(text: str) -> list[DeviceInfo]:
    """The devices in the output (stdout, or stdout and stderr together), each card once. Nothing else is an
    error."""
    unified = {f"Vulkan{number}" for number in _VULKAN_UNIFIED.findall(text)}
    devices = []
    for line in text.splitlines():
        found = _DEVICE.match(line)
        if found is None or int(found[3]) == 0:
            continue  # BLAS and its like have no memory and are no place for a model
        name, description, total, free = found[1], found[2], int(found[3]) * _MIB, int(found[4]) * _MIB
        devices.append(
            DeviceInfo(
                id=f"list:{name}",
                kind="other",
                label=f"{name} {description}",
                uuid=name,
                total_bytes=total,
                free_bytes=min(free, total),
                pool=HOST if name in unified else f"list:{name}",
                name=description,
            )
        )
    return _each_card_once(devices)


def _each_card_once(devices: Iterable[DeviceInfo]) -> list[DeviceInfo]:
    """Of all entries with one description those of the preferred backend. Descriptions are all there is to go
    by, and a driver's name in parentheses is no part of the card's."""
    by_card: dict[str, list[DeviceInfo]] = {}
    for device in devices:
        by_card.setdefault(re.sub(r"\(.*?\)", "", device.name).strip().lower(), []).append(device)
    kept = []
    for same in by_card.values():
        best = min(_rank(device.uuid) for device in same)
        kept += [device for device in same if _rank(device.uuid) == best]
    return kept


def _rank(name: str) -> tuple[int, str]:
    backend = name.rstrip("0123456789")
    return (_PREFERENCE.index(backend) if backend in _PREFERENCE else len(_PREFERENCE), backend)


class Listed:
    """Asks seldom: on some backends every listing makes a context on every device, and takes its time. Where
    there was never a device it asks ever more seldom, up to 32 times: most such machines will never have
    one."""

    def __init__(
        self,
        tasks: Spawner,
        list_devices: Callable[[], Awaitable[str]],
        *,
        interval_seconds: float = 10.0,
        timeout_seconds: float = 15.0,
    ) -> None:
        self._tasks = tasks
        self._list_devices = list_devices
        self._interval_seconds = interval_seconds
        self._timeout_seconds = timeout_seconds
        self._running: asyncio.Task[None] | None = None
        self._next = 0.0
        self._in_vain = 0
        self._known: dict[str, DeviceInfo] = {}
        self._error: str | None = None

    async def sample(self) -> Found:
        """What was listed last; waits only where nothing was listed yet. Nothing is told of processes
        here."""
        is_first = self._next == 0.0
        now = asyncio.get_running_loop().time()
        if self._running is None and now >= self._next:
            self._next = now + self._interval_seconds
            self._running = self._tasks.create_task(self._refresh(), name="list-devices")
        if self._running is not None and is_first:
            await asyncio.wait({self._running}, timeout=self._timeout_seconds)
        notes = (f"--list-devices: {self._error}",) if self._error else ()
        return Found(dict(self._known), {}, dict.fromkeys(self._known, False), notes)

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                text = await self._list_devices()
        except Exception as error:  # noqa: BLE001 - the task ends here; whatever it was, the list is old
            late = f"no answer for {self._timeout_seconds:.0f} s"
            self._error = late if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            self._known = {key: info.unhealthy(self._error) for key, info in self._known.items()}
        else:
            found = {device.id: device for device in parse_devices(text)}
            gone = {key: info for key, info in self._known.items() if key not in found}
            self._known = found | {key: info.unhealthy("not listed any more") for key, info in gone.items()}
            self._error = None
            self._in_vain = 0 if self._known else min(self._in_vain + 1, _DOUBLINGS)
            self._next += self._interval_seconds * (2**self._in_vain - 1)
        finally:
            self._running = None

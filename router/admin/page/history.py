"""The last minutes of every device's memory, for a line on the page.

It looks at what was measured anyway and measures nothing itself, so that a sleeping GPU is left asleep."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple

from router.scheduler.types import DeviceId
from router.scheduler.views import Snapshot

KEPT_SECONDS: Final = 600.0
EVERY_SECONDS: Final = 2.0


class Point(NamedTuple):
    """Bytes at a Unix time in whole seconds; `free` is None while the device could not be measured."""

    at: int
    ours: int
    free: int | None


class History:
    """A bounded line for each device."""

    def __init__(self) -> None:
        self._lines: dict[DeviceId, deque[Point]] = {}

    def note(self, snapshot: Snapshot, at: float) -> None:
        for device in snapshot.devices:
            line = self._lines.setdefault(device.id, deque(maxlen=int(KEPT_SECONDS / EVERY_SECONDS)))
            line.append(Point(int(at), device.used, device.free))
        for gone in self._lines.keys() - {device.id for device in snapshot.devices}:
            del self._lines[gone]

    def lines(self) -> Mapping[DeviceId, tuple[Point, ...]]:
        return {device: tuple(line) for device, line in self._lines.items()}

"""What each process holds of each device by the driver's own list, and whether that list can be believed.

The list lies in several ways: it cannot be had at all; sizes are missing (WDDM, WSL) or zero (containers
since driver 560); pids are another namespace's, or hidden, so that ours never appear. Believing "our process
uses nothing" makes the rest of its reservation count twice; that is safe but wastes memory, so the scheduler
must know, and go by what free memory did instead.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from router.memory.devices.types import DeviceInfo, Found, Trees

#: Memory on a device that no list explains may be this much and still be the driver's own.
UNEXPLAINED_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True)
class Listing:
    """The processes of one device: size per pid (None: not told), or no list, and the `error` that says why.
    `taken_bytes` is all that is used; None where the device cannot say (unified memory)."""

    sizes: Mapping[int, int | None] | None
    taken_bytes: int | None
    graphics_bytes: int = 0
    error: str | None = None

    @property
    def unexplained_bytes(self) -> int:
        if self.taken_bytes is None or self.sizes is None:
            return 0
        return max(0, self.taken_bytes - self.graphics_bytes - sum(size or 0 for size in self.sizes.values()))


class Attribution:
    """Judges sample after sample of one session with the driver."""

    def __init__(self) -> None:
        #: One of ours was listed with a size: then the list knows our pids, and an absent one is really
        #: absent.
        self._has_shown_ours = False
        #: Unexplained bytes per device while we had no process at all: the driver's, and those it hides of
        #: others.
        self._background: dict[str, int] = {}

    def found(
        self, devices: Mapping[str, DeviceInfo], listings: Mapping[str, Listing], trees: Trees
    ) -> Found:
        """The devices with what each process tree holds of them, where the list can be believed; a device
        without a listing is one that gives no figures now."""
        believed = self.judge(listings, frozenset[int]().union(*trees.values()))
        used: dict[int, dict[str, int]] = {pid: {} for pid in trees}
        doubts: list[str] = []
        for device, listing in listings.items():
            info = devices[device]
            if not believed[device]:
                why = f": {listing.error}" if listing.error else ""
                doubts.append(f"{info.label} ({device}): what each process uses cannot be told{why}")
                continue
            for pid, tree in trees.items():
                held = sum(size or 0 for member, size in (listing.sizes or {}).items() if member in tree)
                if held:
                    used[pid][info.pool] = used[pid].get(info.pool, 0) + held
        return Found(devices, used, dict.fromkeys(devices, False) | believed, tuple(doubts))

    def judge(self, listings: Mapping[str, Listing], ours: Collection[int]) -> dict[str, bool]:
        """Per device: can the sizes of `ours` (all pids of all our process trees) be believed?"""
        if not ours:
            self._background = {device: listing.unexplained_bytes for device, listing in listings.items()}
        if any((listing.sizes or {}).get(pid) for listing in listings.values() for pid in ours):
            self._has_shown_ours = True
        return {device: self._believes(device, listing, ours) for device, listing in listings.items()}

    def _believes(self, device: str, listing: Listing, ours: Collection[int]) -> bool:
        if listing.sizes is None:
            return False
        if any(not listing.sizes[pid] for pid in ours if pid in listing.sizes):
            return False
        if not ours or self._has_shown_ours:
            return True
        return listing.unexplained_bytes - self._background.get(device, 0) <= UNEXPLAINED_BYTES

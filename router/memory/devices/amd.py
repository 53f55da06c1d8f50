"""AMD GPUs, by what the kernel writes in sysfs: no library, nothing to wake, microseconds.

Blocking: call it in a thread. A card's identity is its unique id, or its PCI address where it has none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from router.descriptors import is_out_of_files
from router.memory.devices.amd_processes import bytes_per_process
from router.memory.devices.attribution import Attribution, Listing
from router.memory.devices.found import Found, Trees, unhealthy
from router.memory.devices.kernel_files import lines, number, numbered, text
from router.memory.devices.power import all_asleep
from router.memory.devices.types import HOST, DeviceInfo
from router.memory.devices.visible import visible_amd

_VENDOR: Final = "0x1002"


@dataclass(frozen=True, slots=True)
class _Node:
    """A GPU in the compute driver's topology; `ordinal` is its number to ROCm."""

    ordinal: int
    gpu_id: str
    gfx: str


@dataclass(frozen=True, slots=True)
class _Card:
    path: Path
    pci: str
    unique_id: str
    node: _Node | None

    @property
    def id(self) -> str:
        return f"rocm:{self.unique_id or self.pci}"

    @property
    def uuid(self) -> str:
        """For ROCR_VISIBLE_DEVICES: cards without a unique id have no other name there than their number."""
        if self.unique_id:
            return f"GPU-{self.unique_id.zfill(16)}"
        return str(self.node.ordinal) if self.node is not None else "0"


class Amd:
    """All AMD devices of this machine that the router may use."""

    def __init__(self, environ: Mapping[str, str], root: Path = Path("/")) -> None:
        self._environ = environ
        self._root = root
        self._known: dict[str, DeviceInfo] = {}
        self._attribution = Attribution()

    def read(self, trees: Trees) -> Found:
        """Every device ever seen, with an error where it cannot be used now. Processes first, memory
        second."""
        cards = self._visible(_cards(self._root))
        pids = frozenset[int]().union(*trees.values())
        sizes: dict[str, dict[int, int] | None] = {}
        devices: dict[str, DeviceInfo] = {}
        for place, card in enumerate(cards):
            gpu_id = card.node.gpu_id if card.node is not None else None
            heap = "gtt" if _prefers_host(card) else "vram"
            sizes[card.id] = bytes_per_process(self._root, card.pci, gpu_id, heap, pids)
            devices[card.id] = self._device(card, place)
        for device, info in self._known.items():
            devices.setdefault(device, unhealthy(info, "the driver does not list it any more"))
        return self._found(devices, sizes, trees, pids)

    def _visible(self, cards: list[_Card]) -> list[_Card]:
        return [cards[i] for i in visible_amd(self._environ, [card.uuid for card in cards])]

    def _device(self, card: _Card, place: int) -> DeviceInfo:
        asleep = all_asleep([card.pci], self._root)
        is_on_host = _prefers_host(card)
        heap = "gtt" if is_on_host else "vram"
        gfx = card.node.gfx if card.node is not None else ""
        name = text(card.path / "product_name") or f"AMD {gfx or 'GPU'}"
        info = DeviceInfo(
            id=card.id,
            kind="rocm",
            label=f"rocm:{place} {name}",
            uuid=card.uuid,
            total_bytes=0,
            free_bytes=None,
            reserved_bytes=0,
            utilisation_percent=None if asleep else number(card.path / "gpu_busy_percent"),
            temperature_celsius=None if asleep else _temperature(card.path),
            error=None,
            pool=HOST if is_on_host else card.id,
            name=name,
            pci=card.pci,
            compute_capability=gfx,
            asleep=asleep,
        )
        total = number(card.path / f"mem_info_{heap}_total")
        used = number(card.path / f"mem_info_{heap}_used")
        if total is None or used is None:
            return unhealthy(self._known.get(card.id, info), "the driver does not tell its memory")
        self._known[card.id] = replace(info, total_bytes=total, free_bytes=max(0, total - used))
        return self._known[card.id]

    def _found(
        self,
        devices: Mapping[str, DeviceInfo],
        sizes: Mapping[str, Mapping[int, int] | None],
        trees: Trees,
        pids: frozenset[int],
    ) -> Found:
        listings = {
            device: Listing(sizes[device], info.total_bytes - info.free_bytes)
            for device, info in devices.items()
            if info.free_bytes is not None
        }
        attributed = self._attribution.judge(listings, pids)
        used: dict[int, dict[str, int]] = {pid: {} for pid in trees}
        for device, listing in listings.items():
            if not attributed[device]:
                continue
            pool = devices[device].pool
            for pid, tree in trees.items():
                held = sum(size or 0 for member, size in (listing.sizes or {}).items() if member in tree)
                if held:
                    used[pid][pool] = used[pid].get(pool, 0) + held
        doubts = tuple(
            f"{devices[device].label} ({device}): what each process uses cannot be told"
            for device, believed in attributed.items()
            if not believed
        )
        return Found(devices, used, {d: attributed.get(d, False) for d in devices}, doubts)


def _prefers_host(card: _Card) -> bool:
    """Is it an APU whose allocations go to the machine's own memory (the GTT) rather than to its carve-out?

    The rule is the kernel's own (`apu_prefer_gtt`, since 6.10): it is an APU, and the carve-out is smaller
    than the GTT. With a large carve-out that is the pool, and what GTT could add is left to the host: one
    device, one pool. The layout of `gpu_metrics` tells an APU: revision 2 and 3 are theirs, 1 is that of
    cards.
    """
    vram, gtt = number(card.path / "mem_info_vram_total"), number(card.path / "mem_info_gtt_total")
    if vram is None or gtt is None or vram >= gtt:
        return False
    try:
        with (card.path / "gpu_metrics").open("rb") as metrics:
            header = metrics.read(4)
    except OSError as error:
        if is_out_of_files(error):
            raise
        return False
    return len(header) == 4 and header[2] in (2, 3)


def _cards(root: Path) -> list[_Card]:
    """In ROCm's order, and those it does not know behind them."""
    nodes = _nodes(root)
    cards: dict[str, _Card] = {}
    drm = root / "sys/class/drm"
    for entry in sorted(drm.iterdir()) if drm.is_dir() else ():
        path = entry / "device"
        if not re.fullmatch(r"card\d+", entry.name) or text(path / "vendor") != _VENDOR:
            continue
        if not (path / "mem_info_vram_total").exists():
            continue  # not driven by amdgpu
        pci = _pci(path)
        unique_id = (text(path / "unique_id") or "").removeprefix("0x").lower()
        # Some devices that have none say zero.
        cards[pci] = _Card(path, pci, unique_id if unique_id.strip("0") else "", nodes.get(pci))
    return sorted(cards.values(), key=lambda card: (card.node.ordinal if card.node else len(nodes), card.pci))


def _nodes(root: Path) -> dict[str, _Node]:
    """The GPUs of the compute topology by PCI address. `location_id` is bus, device and function."""
    topology = root / "sys/class/kfd/kfd/topology/nodes"
    found: dict[str, _Node] = {}
    for entry in (topology / str(name) for name in sorted(numbered(topology))):
        gpu_id = text(entry / "gpu_id")
        if gpu_id in (None, "", "0"):
            continue  # a CPU
        values = _properties(entry / "properties")
        location, domain = values.get("location_id", 0), values.get("domain", 0)
        pci = f"{domain:04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7:x}"
        found[pci] = _Node(len(found), str(gpu_id), _gfx(values.get("gfx_target_version", 0)))
    return found


def _properties(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _gfx(version: int) -> str:
    """110001 is gfx1101; minor and stepping are hexadecimal digits (90010 is gfx90a)."""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}" if version else ""


def _pci(path: Path) -> str:
    for line in lines(path / "uevent"):
        key, _, value = line.partition("=")
        if key == "PCI_SLOT_NAME":
            return value.strip().lower()
    return path.resolve().name


def _temperature(path: Path) -> int | None:
    for sensor in sorted(path.glob("hwmon/hwmon*/temp1_input")):
        millidegrees = number(sensor)
        if millidegrees is not None:
            return millidegrees // 1000
    return None

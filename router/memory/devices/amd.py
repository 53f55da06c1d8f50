"""AMD GPUs, by what the kernel writes in sysfs: no library, nothing to wake, microseconds.

Blocking: call it in a thread. A card's identity is its unique id, or its PCI address where it has none.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from router.descriptors import is_out_of_files
from router.memory.devices.attribution import Attribution, Listing
from router.memory.devices.kernel_files import all_asleep, lines, number, numbered, numbers, text
from router.memory.devices.types import HOST, DeviceInfo, Found, Trees
from router.memory.devices.visible import visible_amd

_VENDOR: Final = "0x1002"

#: fdinfo keys of a heap, the new name and the one it replaced; sizes are in KiB.
_FDINFO_KEYS: Final = ("drm-resident-{heap}", "drm-memory-{heap}")


@dataclass(frozen=True, slots=True)
class _Node:
    """A GPU in the compute driver's topology; `ordinal` is its number to ROCm, `gpu_id` its name there."""

    ordinal: int
    gpu_id: str
    gfx: str


@dataclass(frozen=True, slots=True)
class _Card:
    """A card of the amdgpu driver; `heap` is the one that models go to: `vram`, or `gtt`, the host's own
    memory."""

    path: Path
    pci: str
    unique_id: str
    node: _Node | None
    heap: str

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
        cards = _cards(self._root)
        visible = visible_amd(self._environ, [card.uuid for card in cards])
        pids = frozenset[int]().union(*trees.values())
        devices: dict[str, DeviceInfo] = {}
        listings: dict[str, Listing] = {}
        for place, card in enumerate(cards[i] for i in visible):
            sizes = _bytes_per_process(self._root, card, pids)
            info = devices[card.id] = self._device(card, place)
            if info.free_bytes is not None:
                listings[card.id] = Listing(sizes, info.total_bytes - info.free_bytes)
        for device, info in self._known.items():
            devices.setdefault(device, info.unhealthy("the driver does not list it any more"))
        return self._attribution.found(devices, listings, trees)

    def _device(self, card: _Card, place: int) -> DeviceInfo:
        asleep = all_asleep([card.pci], self._root)
        gfx = card.node.gfx if card.node is not None else ""
        name = text(card.path / "product_name") or f"AMD {gfx or 'GPU'}"
        info = DeviceInfo(
            id=card.id,
            kind="rocm",
            label=f"rocm:{place} {name}",
            uuid=card.uuid,
            total_bytes=0,
            free_bytes=None,
            utilisation_percent=None if asleep else number(card.path / "gpu_busy_percent"),
            temperature_celsius=None if asleep else _temperature(card.path),
            pool=HOST if card.heap == "gtt" else card.id,
            name=name,
            pci=card.pci,
            compute_capability=gfx,
            asleep=asleep,
        )
        total = number(card.path / f"mem_info_{card.heap}_total")
        used = number(card.path / f"mem_info_{card.heap}_used")
        if total is None or used is None:
            return self._known.get(card.id, info).unhealthy("the driver does not tell its memory")
        self._known[card.id] = replace(info, total_bytes=total, free_bytes=max(0, total - used))
        return self._known[card.id]


# --- the cards ---


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
        slots = (
            line.removeprefix("PCI_SLOT_NAME=")
            for line in lines(path / "uevent")
            if line.startswith("PCI_SLOT_NAME=")
        )
        pci = next((slot.strip().lower() for slot in slots), path.resolve().name)
        unique_id = (text(path / "unique_id") or "").removeprefix("0x").lower()
        # Some devices that have none say zero.
        unique_id = unique_id if unique_id.strip("0") else ""
        cards[pci] = _Card(path, pci, unique_id, nodes.get(pci), "gtt" if _prefers_host(path) else "vram")
    return sorted(cards.values(), key=lambda card: (card.node.ordinal if card.node else len(nodes), card.pci))


def _nodes(root: Path) -> dict[str, _Node]:
    """The GPUs of the compute topology by PCI address. `location_id` is bus, device and function."""
    topology = root / "sys/class/kfd/kfd/topology/nodes"
    found: dict[str, _Node] = {}
    for entry in (topology / str(name) for name in sorted(numbered(topology))):
        gpu_id = text(entry / "gpu_id")
        if gpu_id in (None, "", "0"):
            continue  # a CPU
        values = numbers(entry / "properties")
        location, domain = values.get("location_id", 0), values.get("domain", 0)
        pci = f"{domain:04x}:{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7:x}"
        found[pci] = _Node(len(found), str(gpu_id), _gfx(values.get("gfx_target_version", 0)))
    return found


def _prefers_host(path: Path) -> bool:
    """Is it an APU whose allocations go to the machine's own memory (the GTT) rather than to its carve-out?

    The rule is the kernel's own (`apu_prefer_gtt`, since 6.10): it is an APU, and the carve-out is smaller
    than the GTT. With a large carve-out that is the pool, and what GTT could add is left to the host: one
    device, one pool. The layout of `gpu_metrics` tells an APU: revision 2 and 3 are theirs, 1 is that of
    cards.
    """
    vram, gtt = number(path / "mem_info_vram_total"), number(path / "mem_info_gtt_total")
    if vram is None or gtt is None or vram >= gtt:
        return False
    try:
        with (path / "gpu_metrics").open("rb") as metrics:
            header = metrics.read(4)
    except OSError as error:
        if is_out_of_files(error):
            raise
        return False
    return len(header) == 4 and header[2] in (2, 3)


def _gfx(version: int) -> str:
    """110001 is gfx1101; minor and stepping are hexadecimal digits (90010 is gfx90a)."""
    return f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}" if version else ""


def _temperature(path: Path) -> int | None:
    for sensor in sorted(path.glob("hwmon/hwmon*/temp1_input")):
        millidegrees = number(sensor)
        if millidegrees is not None:
            return millidegrees // 1000
    return None


# --- what each process holds ---


def _bytes_per_process(root: Path, card: _Card, pids: Collection[int]) -> dict[int, int] | None:
    """Bytes by pid: of all who compute (by the compute driver's own list), and of `pids` also what they hold
    through a render node (Vulkan). None where there is no source at all.

    A ROCm process stands in both, with the same memory: the larger figure is taken.
    """
    sizes: dict[int, int] = {}
    listing = root / "sys/class/kfd/kfd/proc"
    has_source = card.heap == "vram" and card.node is not None and listing.is_dir()
    if has_source and card.node is not None:
        for pid in numbered(listing):
            held = number(listing / str(pid) / f"vram_{card.node.gpu_id}")
            if held is not None:
                sizes[pid] = held
    for pid in pids:
        clients = dict(_clients(root / "proc" / str(pid), card.pci, card.heap))
        if clients:
            has_source = True
            sizes[pid] = max(sizes.get(pid, 0), sum(clients.values()))
    return sizes if has_source or not pids else None


def _clients(process: Path, pci: str, heap: str) -> Iterator[tuple[str, int]]:
    """(client, bytes) for every render node the process has open on that card. Duplicated descriptors are one
    client."""
    for fd in numbered(process / "fd"):
        try:
            target = (process / "fd" / str(fd)).readlink()
        except OSError:
            continue  # closed meanwhile, or not ours to read
        if not str(target).startswith("/dev/dri/"):
            continue
        told = lines(process / "fdinfo" / str(fd))
        values = {key: value.strip() for key, _, value in (line.partition(":") for line in told)}
        if values.get("drm-pdev", "").lower() == pci:
            size = max(_kib(values.get(key.format(heap=heap), "")) for key in _FDINFO_KEYS)
            yield values.get("drm-client-id", str(fd)), size


def _kib(text: str) -> int:
    number, _, unit = text.partition(" ")
    scale = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20}.get(unit.strip(), 0)
    return int(number) * scale if number.isdigit() else 0

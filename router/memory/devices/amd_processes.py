"""What each process holds on an AMD GPU: by the compute driver's own list, and by what open render nodes
tell."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from router.memory.devices.kernel_files import lines, number, numbered

#: fdinfo keys of a heap, the new name and the one it replaced; sizes are in KiB.
_KEYS: Final = ("drm-resident-{heap}", "drm-memory-{heap}")


def bytes_per_process(
    root: Path, pci: str, gpu_id: str | None, heap: str, pids: Collection[int]
) -> dict[int, int] | None:
    """Bytes by pid: of everybody who computes (`gpu_id` is the compute driver's name of the card), and of
    `pids` also what they hold through a render node (Vulkan). None where there is no source at all.

    A ROCm process stands in both, with the same memory: the larger figure is taken.
    """
    sizes: dict[int, int] = {}
    listing = root / "sys/class/kfd/kfd/proc"
    has_source = heap == "vram" and gpu_id is not None and listing.is_dir()
    if has_source:
        for pid in numbered(listing):
            held = number(listing / str(pid) / f"vram_{gpu_id}")
            if held is not None:
                sizes[pid] = held
    for pid in pids:
        clients = dict(_clients(root / "proc" / str(pid), pci, heap))
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
            size = max(_kib(values.get(key.format(heap=heap), "")) for key in _KEYS)
            yield values.get("drm-client-id", str(fd)), size


def _kib(text: str) -> int:
    number, _, unit = text.partition(" ")
    scale = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20}.get(unit.strip(), 0)
    return int(number) * scale if number.isdigit() else 0

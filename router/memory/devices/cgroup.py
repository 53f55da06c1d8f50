"""What the control groups of this process leave it of the machine's memory (v1 and v2, its own group and all
ancestors)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from router.memory.devices.kernel_files import lines, number, numbers


@dataclass(frozen=True, slots=True)
class Limit:
    """One group that has a limit: `available_bytes` is the limit less what cannot be reclaimed (may be
    negative)."""

    path: str
    limit_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class _Flavour:
    """The file names of one version. v1 calls the figures that include descendants `total_*`; v2 always
    includes them."""

    limits: tuple[str, ...]
    usage: str
    reclaimable: tuple[str, ...]


_V2 = _Flavour(
    ("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file", "slab_reclaimable")
)
_V1 = _Flavour(
    ("memory.limit_in_bytes",), "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
)


def memory_limits(root: Path = Path("/")) -> list[Limit]:
    """Every limit that binds this process, its own group first. Empty where there is none, or no cgroups at
    all.

    Page cache is not counted as used, because the kernel gives it back before it kills anybody: without that,
    a model that was merely read from disk would look like memory in use. `memory.high` counts as a limit:
    beyond it everything crawls.
    """
    own_v1, own_v2 = _own_groups(root)
    limits: list[Limit] = []
    for flavour, mount_root, mount_point in _mounts(root):
        own = own_v2 if flavour is _V2 else own_v1
        if own is None:
            continue
        for directory in _own_and_ancestors(own, mount_root, mount_point, root):
            bounds = [value for name in flavour.limits if (value := number(directory / name)) is not None]
            usage = number(directory / flavour.usage)
            if bounds and usage is not None:
                stat = numbers(directory / "memory.stat")
                held = max(0, usage - sum(stat.get(key, 0) for key in flavour.reclaimable))
                limits.append(Limit(str(directory), min(bounds), min(bounds) - held))
    return limits


def _own_groups(root: Path) -> tuple[str | None, str | None]:
    """The paths of this process in the v1 memory hierarchy and in the v2 one."""
    v1 = v2 = None
    for line in lines(root / "proc/self/cgroup"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            v2 = path
        elif "memory" in controllers.split(","):
            v1 = path
    return v1, v2


def _mounts(root: Path) -> list[tuple[_Flavour, str, str]]:
    """(version, the group that is mounted, where), from mountinfo: `... root mountpoint opts - type source
    superopts`."""
    found = []
    for line in lines(root / "proc/self/mountinfo"):
        left, dash, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if not dash or len(fields) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2":
            found.append((_V2, fields[3], fields[4]))
        elif kind[0] == "cgroup" and "memory" in kind[2].split(","):
            found.append((_V1, fields[3], fields[4]))
    return found


def _own_and_ancestors(own: str, mount_root: str, mount_point: str, root: Path) -> list[Path]:
    """The directories from the own group up to the mount point.

    In a container without a cgroup namespace the own path is the host's and its beginning is what is mounted;
    with one, a path outside of the namespace begins with `/..`. What cannot be seen is left out: the mount
    point stands for it.
    """
    top = root / mount_point.lstrip("/")
    path, mounted = (list(filter(None, group.split("/"))) for group in (own, mount_root))
    below = path[len(mounted) :] if path[: len(mounted)] == mounted and ".." not in path else []
    return [top.joinpath(*below[:depth]) for depth in range(len(below), -1, -1)]

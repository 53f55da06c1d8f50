"""What processes hold of the machine's own memory, told cheaply: from counters and maps, never by walking
page tables."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

#: A mapped file: (device, inode) as the kernel prints them. The same file has the same key in every process.
FileKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Resident bytes of one process: private, file-backed, and which part of the latter is locked
    (`mlock`)."""

    anonymous_bytes: int
    file_bytes: int
    locked_bytes: int
    mapped: Mapping[FileKey, int] = field(default_factory=dict)

    def file_shares(self) -> dict[FileKey, int]:
        """Resident bytes per mapped file. The kernel counts them per process only, so they are shared out by
        mapped size."""
        mapped = sum(self.mapped.values())
        if mapped <= self.file_bytes:
            return dict(self.mapped)
        return {key: self.file_bytes * size // mapped for key, size in self.mapped.items()}


@dataclass(frozen=True, slots=True)
class HostUse:
    """What several process trees hold together. Every file that more than one of them has mapped is counted
    once, for the process with the most of it. `hot_bytes` is the evictable file-backed part: the kernel calls
    it available, and it is not."""

    used: Mapping[int, int]
    hot_bytes: int
    is_complete: bool


def process_trees(pids: Collection[int], root: Path = Path("/")) -> dict[int, frozenset[int]]:
    """Each pid with all its living descendants; a pid that is gone has an empty tree."""
    return {pid: frozenset(_tree(pid, root)) for pid in pids}


def host_use(
    trees: Mapping[int, Collection[int]], loading: Collection[int] = (), root: Path = Path("/")
) -> HostUse:
    """Reads what the trees hold now. For those in `loading` the file-backed part is left out altogether.

    A child that loads streams its whole file through a mapping that it drops again when the weights went to a
    GPU. Counting those pages would make the host look full for the time of each load. Where they stay
    (weights on the CPU) leaving them out of both `used` and `hot_bytes` changes nothing: free is higher by as
    many bytes as what is still promised to the child.
    """
    used: dict[int, int] = {}
    holders: dict[FileKey, tuple[int, int]] = {}
    locked = 0
    is_complete = True
    for pid, tree in trees.items():
        for member in tree:
            try:
                memory = read_process(member, root)
            except PermissionError:
                is_complete = False
                continue
            if memory is None:
                continue
            used[pid] = used.get(pid, 0) + memory.anonymous_bytes
            if pid in loading:
                continue
            # Locked pages left the lists that MemAvailable is made of: they are used, but not to be
            # subtracted again.
            locked += min(memory.locked_bytes, memory.file_bytes)
            for key, share in memory.file_shares().items():
                if share > holders.get(key, (0, 0))[0]:
                    holders[key] = (share, pid)
    for share, pid in holders.values():
        used[pid] = used.get(pid, 0) + share
    resident = sum(share for share, _ in holders.values())
    return HostUse(used, max(0, resident - locked), is_complete)


def read_process(pid: int, root: Path = Path("/")) -> ProcessMemory | None:
    """One process, or None when it is gone. Raises PermissionError where it is somebody else's, or cannot be
    told apart (a system without /proc knows only a resident size)."""
    if not (root / "proc").exists():
        raise PermissionError("resident memory cannot be told apart here")
    base = root / "proc" / str(pid)
    try:
        status = _status(base / "status")
        mapped = _mapped_files((base / "maps").read_text(errors="replace").splitlines())
    except (FileNotFoundError, ProcessLookupError):
        return None
    return ProcessMemory(status.get("RssAnon", 0), status.get("RssFile", 0), status.get("VmLck", 0), mapped)


def _status(path: Path) -> dict[str, int]:
    """The `Key:  N kB` lines of /proc/PID/status, in bytes. A zombie has none: its memory is gone already."""
    sizes = {}
    for line in path.read_text(errors="replace").splitlines():
        key, _, rest = line.partition(":")
        value, _, unit = rest.strip().partition(" ")
        if unit == "kB" and value.isdigit():
            sizes[key] = int(value) << 10
    return sizes


def _mapped_files(lines: Iterable[str]) -> dict[FileKey, int]:
    """Mapped bytes per file: `start-end perms offset dev inode path`. Memory with a name but no disk behind
    it is no file."""
    mapped: dict[FileKey, int] = {}
    for line in lines:
        fields = line.split(maxsplit=5)
        if len(fields) < 6 or fields[4] == "0" or fields[5].startswith(("/dev/", "/memfd:", "/SYSV", "[")):
            continue
        start, _, end = fields[0].partition("-")
        key = (fields[3], fields[4])
        mapped[key] = mapped.get(key, 0) + int(end, 16) - int(start, 16)
    return mapped


def _tree(pid: int, root: Path) -> set[int]:
    found: set[int] = set()
    todo = [pid]
    while todo:
        current = todo.pop()
        if current in found:
            continue
        children = _children(current, root)
        if children is not None:
            found.add(current)
            todo.extend(children)
    return found


def _children(pid: int, root: Path) -> list[int] | None:
    """The children of a living process; None when it is gone.

    The kernel keeps a list per thread: to read those few is far cheaper than to look at every process of the
    machine.
    """
    try:
        threads = list((root / "proc" / str(pid) / "task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return None if (root / "proc").exists() else _children_by_psutil(pid)
    except PermissionError:
        return _children_by_psutil(pid)
    lists = [text for thread in threads if (text := _text(thread / "children")) is not None]
    if not lists:  # a kernel without CONFIG_PROC_CHILDREN, or the process ended just now
        return _children_by_psutil(pid)
    return [int(child) for text in lists for child in text.split()]


def _children_by_psutil(pid: int) -> list[int] | None:
    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return []


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None

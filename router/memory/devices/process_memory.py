"""What processes hold of the machine's own memory, told cheaply: from counters, never by walking page tables.

`smaps` would be exact, but it walks every page of a model under the process's memory lock: a third of a
second and a stalled child for 100 GiB. The counters of `status` cost microseconds at any size, and `maps`
says which files.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from router.memory.devices.kernel_files import text

#: A mapped file: (device, inode) as the kernel prints them. The same file has the same key in every process.
FileKey = tuple[str, str]

_SIZES: Final = re.compile(r"^(VmSize|VmLck|RssAnon|RssFile):\s*(\d+) kB$", re.MULTILINE)

#: `start-end perms offset dev inode path`, where there is an inode. A CUDA process has thousands of other
#: lines.
_MAPPING: Final = re.compile(
    r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ (\S+) ([1-9]\d*) +(?!/dev/|/memfd:|/SYSV|\[)\S", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Resident bytes of one process: private, file-backed, and how much is locked (`mlock`)."""

    anonymous_bytes: int
    file_bytes: int
    locked_bytes: int
    mapped: Mapping[FileKey, int] = field(default_factory=dict)

    def file_shares(self) -> dict[FileKey, int]:
        """Resident bytes per mapped file. The kernel counts them per process, so they are shared out by
        size."""
        mapped = sum(self.mapped.values())
        if mapped <= self.file_bytes:
            return dict(self.mapped)
        return {key: self.file_bytes * size // mapped for key, size in self.mapped.items()}


@dataclass(frozen=True, slots=True)
class HostUse:
    """What several process trees hold together.

    A file that more than one of them has mapped is counted once, for the process with the most of it.
    `hot_bytes` is the evictable file-backed part: the kernel calls it available, and it is not.
    """

    used: Mapping[int, int]
    hot_bytes: int
    is_complete: bool


class Processes:
    """Reads /proc, and remembers what does not change between two samples. Not for two threads at once."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._proc = root / "proc"
        #: Whether this kernel has CONFIG_PROC_CHILDREN, as those of the distributions do.
        self._has_lists = (self._proc / "thread-self/children").exists()
        #: Virtual size and mapped bytes per file, by pid.
        self._maps: dict[int, tuple[int, Mapping[FileKey, int]]] = {}

    def trees(self, pids: Collection[int]) -> dict[int, frozenset[int]]:
        """Each pid with all its living descendants; a pid that is gone has an empty tree."""
        return {pid: frozenset(self._tree(pid)) for pid in pids}

    def use(self, trees: Mapping[int, Collection[int]], loading: Collection[int] = ()) -> HostUse:
        """What the trees hold now. For those in `loading` the file-backed part is left out altogether.

        A child that loads streams its whole file through a mapping that it drops again when the weights went
        to a GPU. Counting those pages would make the host look full for the time of each load. Where they
        stay (weights on the CPU) leaving them out of both `used` and `hot_bytes` changes nothing: free is
        higher by as many bytes as what is still promised to the child.
        """
        used: dict[int, int] = {}
        holders: dict[FileKey, tuple[int, int]] = {}
        locked = 0
        is_complete = True
        for pid, tree in trees.items():
            for member in tree:
                try:
                    memory = self.read(member)
                except PermissionError:
                    is_complete = False
                    continue
                if memory is None:
                    continue
                used[pid] = used.get(pid, 0) + memory.anonymous_bytes
                # Locked pages left the lists MemAvailable is made of: they are not to be taken off again.
                pinned = min(memory.locked_bytes, memory.file_bytes)
                if pid in loading:
                    used[pid] += pinned
                    continue
                locked += pinned
                for key, share in memory.file_shares().items():
                    if share > holders.get(key, (0, 0))[0]:
                        holders[key] = (share, pid)
        for share, pid in holders.values():
            used[pid] = used.get(pid, 0) + share
        self._forget_others({member for tree in trees.values() for member in tree})
        resident = sum(share for share, _ in holders.values())
        return HostUse(used, max(0, resident - locked), is_complete)

    def read(self, pid: int) -> ProcessMemory | None:
        """One process, or None when it is gone.

        Raises PermissionError where it is somebody else's.
        """
        base = self._proc / str(pid)
        try:
            sizes = {
                key: int(size) << 10
                for key, size in _SIZES.findall((base / "status").read_text(errors="replace"))
            }
            mapped = self._mapped(pid, sizes.get("VmSize", 0), base)
        except (FileNotFoundError, ProcessLookupError):
            return None
        return ProcessMemory(sizes.get("RssAnon", 0), sizes.get("RssFile", 0), sizes.get("VmLck", 0), mapped)

    def _mapped(self, pid: int, virtual_bytes: int, base: Path) -> Mapping[FileKey, int]:
        """Mapped bytes per file. Nothing is mapped or unmapped without a change of the virtual size, but for
        a swap of equals: a child that only serves is not asked for its maps again."""
        known = self._maps.get(pid)
        if known is not None and known[0] == virtual_bytes:
            return known[1]
        mapped: dict[FileKey, int] = {}
        for start, end, device, inode in _MAPPING.findall((base / "maps").read_text(errors="replace")):
            key = (device, inode)
            mapped[key] = mapped.get(key, 0) + int(end, 16) - int(start, 16)
        self._maps[pid] = (virtual_bytes, mapped)
        return mapped

    def _forget_others(self, pids: Collection[int]) -> None:
        self._maps = {pid: known for pid, known in self._maps.items() if pid in pids}

    def _tree(self, pid: int) -> set[int]:
        found: set[int] = set()
        todo = [pid]
        while todo:
            current = todo.pop()
            if current in found:
                continue
            children = self._children(current)
            if children is not None:
                found.add(current)
                todo.extend(children)
        return found

    def _children(self, pid: int) -> list[int] | None:
        """The children of a living process; None when it is gone.

        The kernel keeps a list per thread: to read those is far cheaper than to read every process there is.
        A kernel without lists has no descendants counted: llama-server starts none.
        """
        tasks = self._proc / str(pid) / "task"
        try:
            threads = [entry.name for entry in tasks.iterdir()]
        except (FileNotFoundError, ProcessLookupError):
            return None
        except PermissionError:
            return []
        lists = [told for thread in threads if (told := text(f"{tasks}/{thread}/children")) is not None]
        if not lists and self._has_lists:
            return None  # the process ended just now
        return [int(child) for told in lists for child in told.split()]

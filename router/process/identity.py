"""Which process is which: whether a pid is still the one that was meant, and who was left behind."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from router.descriptors import is_out_of_files

#: Every child carries its socket path under this name, and so does what it forks. It finds what escaped the
#: child's session (a double fork), and children of a router that died before it could write a record.
MARKER: Final = "LLAMA_ROUTER_CHILD"

_PROC: Final = Path("/proc")
_HAS_PROC: Final = (_PROC / "self/stat").exists()


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that cannot be mistaken for another: pids are reused within seconds on a busy machine.

    `start_time` is in clock ticks since boot (/proc/<pid>/stat, field 22), so `boot_id` belongs to it.
    """

    pid: int
    start_time: int
    boot_id: str


def identify(pid: int, *, also_zombie: bool = False) -> Identity | None:
    """The identity of a process; None if there is none, or only its zombie and that does not count.

    Raises OSError where it cannot be told, because no file can be opened any more: that is not its end.
    """
    stat = _stat(pid) if _HAS_PROC else _stat_from_psutil(pid)
    if stat is None or (stat.state in "ZX" and not also_zombie):
        return None
    return Identity(pid, stat.start_time, boot_id())


def is_alive(identity: Identity) -> bool:
    """Whether exactly this process still runs."""
    return identify(identity.pid) == identity


@functools.cache
def boot_id() -> str:
    """Differs after every boot of the machine."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        import psutil  # here and below: 1 MiB of this process, for systems without /proc

        return str(int(psutil.boot_time()))


def argv_hash(pid: int) -> str | None:
    """A hash of the command line as the kernel has it (a script's begins with its interpreter), or None."""
    try:
        cmdline = (_PROC / str(pid) / "cmdline").read_bytes() if _HAS_PROC else _cmdline_from_psutil(pid)
    except OSError:
        return None
    return hashlib.sha256(cmdline).hexdigest() if cmdline else None


def find_marked(prefix: str) -> dict[Identity, str]:
    """Live processes of this user whose marker begins with `prefix`, and the marker. A thread's work.

    Raises OSError where no file can be opened any more: who is not seen then may be there.
    """
    found: dict[Identity, str] = {}
    wanted = os.fsencode(f"{MARKER}={prefix}")
    for pid in _pids():
        try:
            environ = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
        except OSError as error:
            if is_out_of_files(error):
                raise
            continue  # gone, or somebody else's
        marker = next((entry for entry in environ if entry.startswith(wanted)), None)
        identity = identify(pid) if marker is not None else None
        if marker is not None and identity is not None:
            found[identity] = os.fsdecode(marker).partition("=")[2]
    return found


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    major_faults: int
    start_time: int
    cpu_seconds: float = 0.0


def _stat(pid: int) -> _Stat | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError as error:
        if is_out_of_files(error):
            raise
        return None
    # The command's name stands in brackets and may hold brackets: the third field follows the last one.
    fields = text.rpartition(")")[2].split()
    cpu_seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return _Stat(fields[0], int(fields[9]), int(fields[19]), cpu_seconds)


def _stat_from_psutil(pid: int) -> _Stat | None:
    import psutil

    try:
        process = psutil.Process(pid)
        state = "Z" if process.status() == psutil.STATUS_ZOMBIE else "R"
        return _Stat(state, 0, int(process.create_time() * 100))
    except (OSError, psutil.Error):
        return None


def _cmdline_from_psutil(pid: int) -> bytes:
    import psutil

    try:
        return b"\0".join(os.fsencode(arg) for arg in psutil.Process(pid).cmdline())
    except psutil.Error as error:
        raise ProcessLookupError(pid) from error


def _pids() -> Iterator[int]:
    if not _HAS_PROC:
        return
    with os.scandir(_PROC) as entries:
        for entry in entries:
            if entry.name.isdigit():
                yield int(entry.name)


@dataclass(frozen=True, slots=True)
class Progress:
    """High-water marks of what a process has done so far; all only grow while it works."""

    resident_bytes: int = 0
    io_bytes: int = 0
    major_faults: int = 0
    cpu_seconds: float = 0.0


def progress(pid: int) -> Progress:
    """What the process has read and touched so far; zeros where the system does not tell.

    Raises OSError where no file can be opened any more: that is not a process that stands still.

    CPU time alone proves little: a driver that waits for a dead GPU spins. What sockets receive is not in
    `rchar`, so our own health probes do not look like progress.
    """
    try:
        resident_pages = int((_PROC / str(pid) / "statm").read_text().split()[1])
        io = dict(line.split(": ") for line in (_PROC / str(pid) / "io").read_text().splitlines())
        stat = _stat(pid)
        io_bytes = int(io["rchar"]) + int(io["wchar"]) + int(io["read_bytes"])
    except (OSError, ValueError, LookupError) as error:
        if is_out_of_files(error):
            raise
        return Progress()
    resident_bytes = resident_pages * os.sysconf("SC_PAGESIZE")
    if stat is None:
        return Progress(resident_bytes, io_bytes)
    return Progress(resident_bytes, io_bytes, stat.major_faults, stat.cpu_seconds)

"""What /proc tells of a process: its identity, its command line, its marker, and its progress."""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from router.descriptors import is_out_of_files

#: The environment variable with the socket path of a child, which all that the child forks inherits. By it a
#: router finds what has escaped the session of a child (a double fork), and the children of a router that
#: died before it could write a record.
MARKER: Final = "LLAMA_ROUTER_CHILD"

_PROC: Final = Path("/proc")


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
    fields = _stat(pid)
    if not fields or (fields[0] in "ZX" and not also_zombie):
        return None
    return Identity(pid, int(fields[19]), boot_id())


@functools.cache
def boot_id() -> str:
    """Differs after every boot of the machine."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def argv_hash(pid: int) -> str | None:
    """A hash of the command line as the kernel has it (a script's begins with its interpreter), or None."""
    try:
        cmdline = (_PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return None
    return hashlib.sha256(cmdline).hexdigest() if cmdline else None


def find_marked(prefix: str) -> dict[Identity, str]:
    """Live processes of this user whose marker begins with `prefix`, and the marker. A thread's work.

    Raises OSError where no file can be opened any more: who is not seen then may be there.
    """
    found: dict[Identity, str] = {}
    wanted = os.fsencode(f"{MARKER}={prefix}")
    with os.scandir(_PROC) as processes:
        for process in processes:
            try:
                environ = (_PROC / process.name / "environ").read_bytes().split(b"\0")
            except OSError as error:
                if is_out_of_files(error):
                    raise
                continue  # it has exited, or is another user's, or no process
            marker = next((entry for entry in environ if entry.startswith(wanted)), None)
            if marker is not None and (identity := identify(int(process.name))) is not None:
                found[identity] = os.fsdecode(marker).partition("=")[2]
    return found


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
        fields = _stat(pid)
        return Progress(
            resident_bytes=resident_pages * os.sysconf("SC_PAGESIZE"),
            io_bytes=int(io["rchar"]) + int(io["wchar"]) + int(io["read_bytes"]),
            major_faults=int(fields[9]),
            cpu_seconds=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        )
    except (OSError, ValueError, LookupError) as error:
        if is_out_of_files(error):
            raise
        return Progress()


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the third (the state) on, as proc(5) numbers them; none where there
    is no such process.
    """
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError as error:
        if is_out_of_files(error):
            raise
        return []
    # The command's name stands in brackets and may hold brackets: the third field follows the last one.
    return text.rpartition(")")[2].split()

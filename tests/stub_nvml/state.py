"""The folder the stub NVML library reads: devices in one file, allocations in a locked file per process.

No dependency and no import from this project: a fake llama-server may load this file by its path.

    FOLDER/devices      what there is, and its faults; replaced atomically, read again on every call
    FOLDER/alloc/PID.N  "DEVICE BYTES" lines. Its owner holds flock(LOCK_EX) on it for life, so memory comes
    back
                        exactly when the kernel has closed the owner's files, as with the real driver: at once
                        after SIGKILL, before anybody has reaped the zombie
    FOLDER/dead/...     what is reported as used for `lag_ms` longer, after its owner died
    FOLDER/takings      where it exists: every allocation made or refused, in order (see `Taking`)
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

#: Names the folder, for the stub library and for whoever allocates.
FOLDER_VARIABLE = "LLAMA_ROUTER_STUB_NVML"

_serial = itertools.count()


@dataclass(frozen=True)
class StubGpu:
    """One device. `err`, `memerr`, `procerr`: the NVML status that all calls, the memory calls, the process
    list return.

    `index` and `parent` are set for MIG instances only: `parent` is the index of the card it is cut from.
    """

    uuid: str
    name: str = "NVIDIA Stub"
    pci: str = "00000000:01:00.0"
    total: int = 24 << 30
    reserved: int = 512 << 20
    used: int = 0  # by nobody that can be listed
    gfx: int = 0  # by a process that only the graphics list knows
    util: int = 0
    temp: int = 40
    cc: str = "8.6"
    err: int = 0
    memerr: int = 0
    procerr: int = 0
    utilerr: int = 0
    temperr: int = 0
    procna: int = 0  # per-process figures are all-ones, as under WDDM
    proczero: int = 0  # and zero, as in some containers
    hang_ms: int = 0  # every call on it takes that long
    crash: int = 0  # every call on it is a segmentation fault
    mig: int = 0  # MIG mode is on
    parent: int = -1


@dataclass(frozen=True)
class StubState:
    """Everything the library can be told."""

    gpus: tuple[StubGpu, ...] = ()
    driver: str = "570.86.15"
    init_err: int = 0
    init_hang_ms: int = 0
    lag_ms: int = 0
    hide_pids: int = 0  # the process list is empty
    old_driver: int = 0  # no memory v2, no process list v3


_GLOBALS = ("driver", "init_err", "init_hang_ms", "lag_ms", "hide_pids", "old_driver")
_GPU_KEYS = tuple(StubGpu.__dataclass_fields__)


class StubNvml:
    """Writes the folder. `gpu(i, err=15)` changes one device, `change(init_err=9)` the rest; both are atomic
    for readers."""

    def __init__(self, folder: Path, *gpus: StubGpu) -> None:
        self.folder = folder
        (folder / "alloc").mkdir(parents=True, exist_ok=True)
        (folder / "dead").mkdir(exist_ok=True)
        self.state = StubState(gpus=gpus)
        self._write()

    def change(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)
        self._write()

    def gpu(self, index: int, **changes: Any) -> None:
        gpus = list(self.state.gpus)
        gpus[index] = replace(gpus[index], **changes)
        self.change(gpus=tuple(gpus))

    def _write(self) -> None:
        lines = [f"{key}={getattr(self.state, key)}" for key in _GLOBALS]
        for gpu in self.state.gpus:
            lines += ["gpu\t" + "\t".join(f"{key}={getattr(gpu, key)}" for key in _GPU_KEYS)]
        temporary = self.folder / f".devices.{os.getpid()}.{next(_serial)}"
        temporary.write_text("\n".join([*lines, ""]))
        temporary.rename(self.folder / "devices")


def read_state(folder: str | os.PathLike[str]) -> StubState:
    """What the folder says now."""
    values: dict[str, Any] = {}
    gpus = []
    for line in (Path(folder) / "devices").read_text().splitlines():
        head, *items = line.split("\t")
        if head == "gpu":
            gpus.append(StubGpu(**_typed(StubGpu, items)))
        else:
            values |= _typed(StubState, [head])
    return StubState(gpus=tuple(gpus), **values)


def _typed(kind: type, items: list[str]) -> dict[str, Any]:
    """key=value texts as the fields of a dataclass: the annotations are texts, "str" or "int"."""
    typed: dict[str, Any] = {}
    for item in items:
        key, _, value = item.partition("=")
        typed[key] = int(value) if kind.__annotations__[key] == "int" else value
    return typed


class Allocation:
    """Memory that a living process holds. Its end (or `close`) gives everything back."""

    def __init__(self, folder: Path, pid: int | None = None) -> None:
        folder = Path(folder)
        self.pid = os.getpid() if pid is None else pid
        self._folder = folder
        self.held: dict[int, int] = {}
        name = f"{self.pid}.{os.getpid()}-{next(_serial)}"
        hidden = folder / "alloc" / f".{name}"
        self._fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        self._path = folder / "alloc" / name
        self._write({})
        # Locked before it has its name: a reader that finds it unlocked may conclude that its owner is dead.
        hidden.rename(self._path)

    def set(self, held: Mapping[int | str, int]) -> None:
        """From now on exactly this: device (index or UUID) -> bytes. Does not ask whether it fits."""
        wanted = self._by_index(held)
        with _folder_lock(self._folder):
            before = dict(self.held)
            self._write(wanted)
            for index, size in wanted.items():
                _note_taking(self._folder, self.pid, index, size - before.get(index, 0), is_granted=True)

    def try_set(self, held: Mapping[int | str, int]) -> bool:
        """The same where all of it fits beside everybody else; else nothing changes and the answer is
        False."""
        wanted = self._by_index(held)
        with _folder_lock(self._folder):
            more = {index: size - self.held.get(index, 0) for index, size in wanted.items()}
            for index, size in more.items():
                if size > free_bytes(self._folder, index):
                    _note_taking(self._folder, self.pid, index, size, is_granted=False)
                    return False
            self._write(wanted)
            for index, size in more.items():
                _note_taking(self._folder, self.pid, index, size, is_granted=True)
        return True

    def close(self) -> None:
        """Gives everything back now (late, where the folder says `lag_ms`), as the end of the process
        does."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _by_index(self, held: Mapping[int | str, int]) -> dict[int, int]:
        uuids = [gpu.uuid for gpu in read_state(self._folder).gpus]
        return {uuids.index(k) if isinstance(k, str) else k: v for k, v in held.items()}

    def _write(self, held: Mapping[int, int]) -> None:
        # `end` tells a reader where the text stops if an older, longer one is still behind it.
        text = "".join(f"{index} {size}\n" for index, size in held.items()) + "end\n"
        os.pwrite(self._fd, text.encode(), 0)
        self.held = dict(held)


def hold_allocation(
    folder: str | os.PathLike[str], held: Mapping[int | str, int], pid: int | None = None
) -> Allocation:
    """Device memory for the calling process (or in the name of `pid`) until `.close()` or its death. `.set()`
    changes it."""
    allocation = Allocation(Path(folder), pid)
    allocation.set(held)
    return allocation


@dataclass(frozen=True, slots=True)
class Taking:
    """A process took `size` more bytes of a device (or was refused them) at `at`, CLOCK_MONOTONIC in seconds.

    `free_after` is what was then left free by anybody's account; below 0 by what was missing where it was
    refused. Noted under the lock that every allocation takes, so that between two of them free memory can
    only have grown."""

    at: float
    pid: int
    device: int
    size: int
    free_after: int
    is_granted: bool


def keep_takings(folder: Path) -> None:
    """From now on they are noted."""
    (folder / "takings").touch()


def read_takings(folder: Path) -> list[Taking]:
    """All that were noted, in order."""
    found = []
    for line in (folder / "takings").read_text().splitlines():
        at, *numbers, is_granted = line.split(" ")
        pid, device, size, free_after = map(int, numbers)
        found.append(Taking(float(at), pid, device, size, free_after, is_granted == "granted"))
    return found


def _note_taking(folder: Path, pid: int, index: int, size: int, *, is_granted: bool) -> None:
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(folder / "takings", os.O_WRONLY | os.O_APPEND)
        with os.fdopen(fd, "w") as file:
            left = free_bytes(folder, index) - (0 if is_granted else size)
            word = "granted" if is_granted else "refused"
            file.write(f"{time.monotonic():.6f} {pid} {index} {size} {left} {word}\n")


def free_bytes(folder: str | os.PathLike[str], index: int) -> int:
    """What is free on a device now, late returns counted as used: what an allocation is measured against."""
    gpu = read_state(folder).gpus[index]
    held = sum(size for _, size in allocations(folder, index))
    return gpu.total - gpu.reserved - gpu.used - gpu.gfx - held


def allocations(
    folder: str | os.PathLike[str], index: int, *, living_only: bool = False
) -> list[tuple[int, int]]:
    """(pid, bytes) on a device; pid 0 for what a dead process held and is not yet reported as free."""
    folder = Path(folder)
    lag_ms = read_state(folder).lag_ms
    now_ms = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000_000
    found = []
    for path in sorted((folder / "alloc").iterdir()):
        if path.name.startswith("."):
            continue
        with contextlib.suppress(FileNotFoundError):
            if not _is_dead(path):
                found += [(int(path.name.partition(".")[0]), size) for size in _held(path, index)]
            elif lag_ms:
                path.rename(folder / "dead" / f"{now_ms}.{path.name}")
            else:
                path.unlink()
    for path in sorted((folder / "dead").iterdir()):
        with contextlib.suppress(FileNotFoundError):
            if now_ms - int(path.name.partition(".")[0]) >= lag_ms:
                path.unlink()
            elif not living_only:
                found += [(0, size) for size in _held(path, index)]
    return found


def _held(path: Path, index: int) -> Iterator[int]:
    for line in path.read_text().splitlines():
        if line == "end":
            return
        device, _, size = line.partition(" ")
        if int(device) == index:
            yield int(size)


def _is_dead(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


class Stranger:
    """A real process that is none of ours and holds memory: a game, a ComfyUI. `close` kills it."""

    def __init__(self, folder: str | os.PathLike[str], held: Mapping[int | str, int]) -> None:
        pairs = [f"{device}={size}" for device, size in held.items()]
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-E", __file__, os.fspath(folder), *pairs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"holding\n", "the stranger did not start"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


def _be_a_stranger(folder: str, pairs: list[str]) -> None:
    held: dict[int | str, int] = {}
    for pair in pairs:
        device, _, size = pair.rpartition("=")
        held[int(device) if device.isdigit() else device] = int(size)
    keep = hold_allocation(folder, held)
    print("holding", flush=True)
    sys.stdin.read()
    keep.close()


if __name__ == "__main__":
    _be_a_stranger(sys.argv[1], sys.argv[2:])

"""For how long, and with how much memory, somebody may be at what `bench/proxy` asks of him: never the rest
of the run, and never the machine.

They bound work that is not done, and lie far above what the slowest needs: nobody is cut short who gets on.
"""

from __future__ import annotations

import contextlib
import select
import subprocess
import time
from collections.abc import Iterator
from typing import Final

import psutil

from bench.proxy_contestants import Contestant

#: For what takes the slowest some seconds: until all streams have begun, or all answers have come.
DEADLINE_SECONDS: Final = 60.0
#: In which no further stream has begun: the others wait for somebody to leave, and these streams have no end.
STALL_SECONDS: Final = 10.0
#: Who keeps what a slow reader has not taken yet takes all memory there is, until the kernel kills somebody:
#: llama.cpp's router was at 20 GiB then.
MEMORY_LIMIT_MIB: Final = min(4096, psutil.virtual_memory().total >> 22)
WATCH_SECONDS: Final = 0.25


class Failed(Exception):
    """A contestant has not done what was asked; `short` says so in a cell of the table. `is_final`: it would
    cost as much each time, so that it is not asked again."""

    def __init__(self, why: str, short: str = "failed", *, is_final: bool = False) -> None:
        super().__init__(why)
        self.short = short
        self.is_final = is_final


def check(contestant: Contestant) -> None:
    if contestant.has_died():
        raise Failed("its process has ended", "has died")
    taken = rss_mib(contestant.pids())
    if taken > MEMORY_LIMIT_MIB:
        why = f"it had taken {taken:,.0f} MiB, and was stopped before it takes the machine's memory"
        raise Failed(why, f"over {MEMORY_LIMIT_MIB / 1024:.0f} GiB", is_final=True)


def output_of(client: subprocess.Popen[bytes], contestant: Contestant, seconds: float) -> bytes:
    """All that it still says. Raises Failed when it fails, is not over in time, or `check` does."""
    with _killed_unless_over(client):
        deadline = time.monotonic() + seconds
        said = None
        while said is None:
            try:
                said = client.communicate(timeout=WATCH_SECONDS)
            except subprocess.TimeoutExpired:
                _check_in_time(contestant, deadline, seconds)
    output, errors = said
    if client.returncode:
        check(contestant)
        lines = errors.decode(errors="replace").strip().splitlines()
        raise Failed(next((line for line in reversed(lines) if "Error: " in line), "its client failed"))
    return output


def line_of(client: subprocess.Popen[bytes], contestant: Contestant, seconds: float) -> bytes:
    """Its first line, within the same bounds."""
    assert client.stdout is not None, "a pipe"
    with _killed_unless_over(client):
        deadline = time.monotonic() + seconds
        while not select.select([client.stdout], [], [], WATCH_SECONDS)[0]:
            _check_in_time(contestant, deadline, seconds)
        return client.stdout.readline()


def _check_in_time(contestant: Contestant, deadline: float, seconds: float) -> None:
    check(contestant)
    if time.monotonic() > deadline:
        raise Failed(f"not over after {seconds:.0f} s", f"over {seconds:.0f} s", is_final=True)


@contextlib.contextmanager
def _killed_unless_over(client: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        client.kill()
        raise


def rss_mib(pids: tuple[int, ...]) -> float:
    return sum(status_kib(pid, "VmRSS") for pid in pids) / 1024


def peak_mib(pids: tuple[int, ...]) -> float:
    return sum(status_kib(pid, "VmHWM") for pid in pids) / 1024


def status_kib(pid: int, name: str) -> int:
    """Raises Failed for a process that has ended."""
    try:
        with open(f"/proc/{pid}/status") as file:
            found = next((line.split()[1] for line in file if line.startswith(f"{name}:")), None)
    except OSError:
        found = None
    if found is None:
        raise Failed(f"process {pid} has ended", "has died")
    return int(found)

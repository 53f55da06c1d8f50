"""What a child may leave behind, counted: processes, zombies, descriptors, sockets, tasks."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil

from router.process import Identity, find_marked, identify
from tests.deadline import DEADLINE_SECONDS
from tests.waiting import wait_until

#: What the fake needs to run, and nothing of the machine it runs on.
ENVIRON = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}


@contextlib.contextmanager
def leaves_nothing(folder: Path) -> Iterator[None]:
    """Asserts that at its end there is no child, zombie, descriptor or socket more than at its beginning."""
    descriptors = _descriptors()
    children = {child.pid for child in psutil.Process().children()}
    yield
    wait_until(lambda: not find_marked(f"{folder}/"), "a process of this test is still alive")
    left = [child for child in psutil.Process().children() if child.pid not in children]
    assert not left, f"children or zombies are left: {left}"
    wait_until(lambda: not _descriptors() - descriptors, "descriptors are left open")
    assert not list(folder.glob("*.sock")), "sockets are left"


def is_alive(identity: Identity) -> bool:
    """Whether exactly this process still runs."""
    return identify(identity.pid) == identity


def _descriptors() -> set[str]:
    """Open descriptors with what they are, so that a number used again is not taken for the same."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(f"{entry.name} -> {entry.readlink()}")
    return {name for name in found if "/proc/" not in name}


@contextlib.asynccontextmanager
async def owning_tasks() -> AsyncIterator[asyncio.TaskGroup]:
    """A task group that must be empty again in bounded time."""
    async with asyncio.timeout(DEADLINE_SECONDS), asyncio.TaskGroup() as tasks:
        yield tasks

"""A local host on a machine with two GPUs, as the stub of NVML tells, and the fake llama-server."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from router.config import DeviceConfig, MemoryConfig, StatePaths
from router.db.store import Store
from router.engines import Launch
from router.hosts.local import LocalHost
from router.memory.devices import Devices
from router.process import Health
from router.scheduler.types import Placement
from tests.fake_binary import FAKE
from tests.memory.devices.conftest import A, B, probe, stub
from tests.process.traces import ENVIRON, leaves_nothing
from tests.stub_nvml.state import StubNvml

__all__ = ["probe", "stub"]  # fixtures

MIB, GIB = 1 << 20, 1 << 30
FIRST, SECOND = f"local/cuda:{A.uuid}", f"local/cuda:{B.uuid}"
MEMORY = MemoryConfig(margin_mib=1024, devices={"host": DeviceConfig(margin_mib=64)})

Opener: TypeAlias = Callable[..., AbstractAsyncContextManager[LocalHost]]


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[StatePaths]:
    state = StatePaths(tmp_path / "state", tmp_path / "run")
    state.prepare()
    with leaves_nothing(state.runtime_dir):
        yield state


@pytest.fixture
async def store(paths: StatePaths) -> AsyncIterator[Store]:
    async with Store(paths.database) as opened:
        yield opened


@pytest.fixture
def open_host(paths: StatePaths, store: Store, probe: dict[str, Any]) -> Opener:
    """Each call is a router on the same state folder."""

    @contextlib.asynccontextmanager
    async def open_one(memory: MemoryConfig = MEMORY, **options: Any) -> AsyncIterator[LocalHost]:
        async with Devices(**probe) as devices, LocalHost(devices, store, paths, memory, **options) as host:
            yield host

    return open_one


@pytest.fixture
async def host(open_host: Opener) -> AsyncIterator[LocalHost]:
    async with open_host() as opened:
        yield opened


@pytest.fixture
def fake(stub: StubNvml) -> Callable[..., Launch]:
    """A Launch of the fake llama-server; what it takes is in MiB per visible device."""

    def launch(*flags: str, devices: tuple[str, ...] = (A.uuid,), **timing: Any) -> Launch:
        env = {
            **ENVIRON,
            "LLAMA_ROUTER_STUB_NVML": str(stub.folder),
            "CUDA_VISIBLE_DEVICES": ",".join(devices),
        }
        argv = (sys.executable, "-SE", str(FAKE), "--host", "{socket}", *flags)
        texts = ("out of memory",)
        return Launch(argv, env, Health(poll_seconds=0.01, **timing), out_of_memory_texts=texts)

    return launch


def on_first(size: int) -> Placement:
    return Placement("local", {FIRST: size}, (FIRST,))

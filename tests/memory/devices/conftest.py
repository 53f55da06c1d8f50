"""Machines to look at: the stub NVML library in a folder, and a probe that finds it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from router.memory.devices import Devices, Sample
from tests.stub_nvml.build import build, library_environment
from tests.stub_nvml.state import StubGpu, StubNvml
from tests.waiting import until

GIB = 1 << 30
MIB = 1 << 20

A = StubGpu(
    "GPU-aaaaaaaa-0000", "NVIDIA GeForce RTX 3090", "00000000:01:00.0", 24 * GIB, 400 * MIB, util=7, temp=41
)
B = StubGpu("GPU-bbbbbbbb-0000", "NVIDIA RTX A4000", "00000000:02:00.0", 16 * GIB, 300 * MIB, util=0, temp=35)

#: Long enough for a busy machine, far too short for the 30 s a stuck call takes.
DEADLINE_SECONDS = 20.0


@pytest.fixture
def stub(tmp_path: Path) -> StubNvml:
    return StubNvml(tmp_path / "stub", A, B)


def _options(stub: StubNvml, library: Path | None) -> dict[str, Any]:
    """The arguments of Devices that lead it to the stub; without a library to the form that needs no
    compiler."""
    environ = {k: v for k, v in os.environ.items() if not k.endswith("_VISIBLE_DEVICES")}
    options: dict[str, Any] = {
        "enabled": {"amd": False},
        "renew_seconds": 0.1,
        "environ": environ | library_environment(stub.folder, library),
    }
    if library is None:
        options["probe_argv"] = (sys.executable, "-P", "-m", "tests.stub_nvml.probe")
    return options


@pytest.fixture(params=["shared object", "no compiler"])
def each_probe(request: pytest.FixtureRequest, stub: StubNvml) -> dict[str, Any]:
    """Both forms of the stub, for what each of them must be able to show."""
    library = build() if request.param == "shared object" else None
    if library is None and request.param == "shared object":
        pytest.skip("no C compiler")
    return _options(stub, library)


@pytest.fixture
def probe(stub: StubNvml) -> dict[str, Any]:
    """The shared object, or where there is no compiler the other form."""
    return _options(stub, build())


@pytest.fixture
def shared_object(stub: StubNvml) -> dict[str, Any]:
    """For what only the real loader can show."""
    library = build()
    if library is None:
        pytest.skip("no C compiler")
    return _options(stub, library)


@pytest.fixture
async def open_devices() -> AsyncIterator[Callable[..., Awaitable[Devices]]]:
    """Opens Devices, closes them all, and then no child of theirs is left."""
    async with contextlib.AsyncExitStack() as stack:

        async def open_one(**options: Any) -> Devices:
            return await stack.enter_async_context(Devices(**options))

        yield open_one
    left = [child for child in psutil.Process().children() if "probe" in command_of(child)]
    assert not left, f"probes outlived their Devices: {left}"


def command_of(child: psutil.Process) -> str:
    try:
        return " ".join(child.cmdline())
    except psutil.NoSuchProcess:  # it ends just now: some other program that a test has run
        return ""


async def look(devices: Devices, *pids: int, **options: Any) -> Sample:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await devices.sample(pids, now=time.monotonic(), **options)


async def look_until(devices: Devices, is_so: Callable[[Sample], bool], *pids: int, **options: Any) -> Sample:
    """Samples until it is so. Fails with the last sample when that takes too long."""
    sample: Sample = await until(lambda: look(devices, *pids, **options), holds=is_so)
    return sample


@pytest.fixture
def children() -> Iterator[Callable[..., psutil.Popen]]:
    """Starts real processes that do nothing, and ends them with everything below them."""
    started: list[psutil.Popen] = []

    def start(*argv: str) -> psutil.Popen:
        started.append(psutil.Popen(argv or ("sleep", "600")))
        return started[-1]

    yield start
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            for member in [*process.children(recursive=True), process]:
                member.kill()
        process.wait()

"""One sample at a time, shared by all who wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from router.memory.devices import Devices
from router.memory.devices.host import HostMemory, HostReading
from tests.memory.devices.conftest import look, look_until
from tests.waiting import until

GIB = 1 << 30
HOST_ONLY: dict[str, Any] = {"enabled": {"nvml": False, "amd": False}}


class Gate(HostMemory):
    """A host whose reading waits until it may go on, and counts how often it was read."""

    def __init__(self) -> None:
        super().__init__(Path("/"), lambda: (64 * GIB, 40 * GIB))
        self.reads: list[frozenset[int]] = []
        self.open = threading.Event()
        self.open.set()

    def read(self, trees, loading=()) -> HostReading:
        self.reads.append(frozenset(trees))
        assert self.open.wait(60)
        return super().read({}, ())


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


async def test_callers_of_one_moment_share_one_sample_with_all_their_pids(open_devices, gate):
    devices = await open_devices(host=gate, **HOST_ONLY)
    one, two, three = await asyncio.gather(
        devices.sample([10], now=1.0), devices.sample([11, 12], now=2.0), devices.sample(now=1.5)
    )
    assert one is two is three
    assert gate.reads == [{10, 11, 12}]
    assert one.taken_at == 2.0
    assert set(one.used) == {10, 11, 12}
    assert devices.latest is one


async def test_who_comes_while_one_is_taken_gets_the_next_one(open_devices, gate):
    """What has begun may have looked before the caller's own change: it cannot be a proof of anything after
    it."""
    devices = await open_devices(host=gate, **HOST_ONLY)
    gate.open.clear()
    first = asyncio.create_task(devices.sample(now=1.0))
    await until(lambda: len(gate.reads) == 1)
    later = [asyncio.create_task(devices.sample([20 + i], now=2.0 + i)) for i in range(3)]
    await asyncio.sleep(0)
    gate.open.set()
    assert (await first).taken_at == 1.0
    samples = await asyncio.gather(*later)
    assert len({id(sample) for sample in samples}) == 1
    assert samples[0].taken_at == 4.0
    assert gate.reads == [frozenset(), {20, 21, 22}]


async def test_a_caller_who_leaves_takes_nothing_from_the_others(open_devices, gate):
    devices = await open_devices(host=gate, **HOST_ONLY)
    gate.open.clear()
    leaver = asyncio.create_task(devices.sample([1], now=1.0))
    stayer = asyncio.create_task(devices.sample([2], now=1.0))
    await until(lambda: len(gate.reads) == 1)
    leaver.cancel()
    gate.open.set()
    assert set((await stayer).used) == {1, 2}
    assert leaver.cancelled() or await asyncio.wait({leaver})


async def test_a_host_that_hangs_is_unhealthy_and_recovers(open_devices, gate):
    devices = await open_devices(host=gate, probe_timeout_seconds=0.1, **HOST_ONLY)
    healthy = await look(devices)
    gate.open.clear()
    sample = await look(devices)
    assert sample.devices["host"].free_bytes is None
    assert "no answer" in str(sample.devices["host"].error)
    assert sample.devices["host"].total_bytes == healthy.devices["host"].total_bytes
    assert not sample.attributed["host"]
    gate.open.set()
    await look_until(devices, lambda s: s.devices["host"].error is None)


async def test_leaving_while_a_sample_is_taken_ends_it(gate):
    async with Devices(host=gate, **HOST_ONLY) as devices:
        gate.open.clear()
        waiting = asyncio.create_task(devices.sample(now=1.0))
        await until(lambda: len(gate.reads) == 1)
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_a_source_that_does_not_exist_cannot_be_switched(gate):
    with pytest.raises(AssertionError, match="nvlm"):
        Devices(enabled={"nvlm": False})


async def test_this_very_machine_can_be_sampled(open_devices):
    sample = await look(await open_devices())
    assert sample.devices["host"].free_bytes is not None
    for device in sample.devices.values():
        assert device.free_bytes is None or 0 <= device.free_bytes <= device.total_bytes

"""What `llama-server --list-devices` prints, read."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.memory.devices.listed import parse_devices
from tests.deadline import FACTOR
from tests.memory.devices.conftest import look, look_until

MIB = 1 << 20

CUDA = """\
Available devices:
  CUDA0: NVIDIA GeForce RTX 3090 (24124 MiB, 23868 MiB free)
  CUDA1: NVIDIA RTX A4000 (16100 MiB, 15000 MiB free)
"""


def test_every_line_is_a_device_with_its_memory():
    first, second = parse_devices(CUDA)
    assert (first.id, first.kind, first.uuid) == ("list:CUDA0", "other", "CUDA0")
    assert first.label == "CUDA0 NVIDIA GeForce RTX 3090"
    assert (first.total_bytes, first.free_bytes) == (24124 * MIB, 23868 * MIB)
    assert first.pool == "list:CUDA0"
    assert second.id == "list:CUDA1"


@pytest.mark.parametrize("text", ["", "Available devices:\n  (none)\n", "Available devices:\n", "error\n"])
def test_no_device_is_no_error(text):
    assert parse_devices(text) == []


def test_what_has_no_memory_is_no_place_for_a_model():
    assert parse_devices("  BLAS: OpenBLAS (0 MiB, 0 MiB free)\n") == []


def test_a_card_that_two_backends_offer_is_taken_once_from_the_better_one():
    text = """\
Available devices:
  Vulkan0: AMD Radeon RX 7900 XTX (RADV NAVI31) (24560 MiB, 24500 MiB free)
  Vulkan1: AMD Radeon RX 7900 XTX (RADV NAVI31) (24560 MiB, 24500 MiB free)
  Vulkan2: Intel(R) Arc(tm) A770 Graphics (DG2) (16288 MiB, 16288 MiB free)
  ROCm0: AMD Radeon RX 7900 XTX (24560 MiB, 24400 MiB free)
  ROCm1: AMD Radeon RX 7900 XTX (24560 MiB, 24400 MiB free)
"""
    assert sorted(device.uuid for device in parse_devices(text)) == ["ROCm0", "ROCm1", "Vulkan2"]


def test_gpus_that_share_the_machines_memory_draw_from_its_pool():
    text = """\
ggml_vulkan: 0 = Intel(R) Iris(R) Xe Graphics (Intel open-source Mesa driver) | uma: 1 | fp16: 1 | warp size:
32 ggml_vulkan: 1 = NVIDIA GeForce RTX 3050 (NVIDIA) | uma: 0 | fp16: 1 | warp size: 32 Available devices:
  Vulkan0: Intel(R) Iris(R) Xe Graphics (15800 MiB, 15800 MiB free)
  Vulkan1: NVIDIA GeForce RTX 3050 (4096 MiB, 4000 MiB free)
"""
    assert [device.pool for device in parse_devices(text)] == ["host", "list:Vulkan1"]


names = st.from_regex(r"[A-Za-z]{1,8}[0-9]{1,2}", fullmatch=True)
descriptions = st.text("ab ()[]:,|MiB free 0123456789é日", min_size=1).map(str.strip)


@settings(deadline=None)
@given(st.dictionaries(names, st.tuples(descriptions, st.integers(1, 2**24), st.integers(0, 2**24))))
def test_whatever_a_description_holds_the_numbers_are_read_from_the_end(devices):
    # One description each, so that no two are taken for one card.
    lines = [f"  {n}: {d} #{n} ({t} MiB, {min(f, t)} MiB free)" for n, (d, t, f) in devices.items()]
    found = {device.uuid: device for device in parse_devices("\n".join(["Available devices:", *lines]))}
    for name, (_, total, free) in devices.items():
        if name in found:  # parentheses are no part of a card's name, so that some may still be one card
            assert found[name].total_bytes == total * MIB
            assert found[name].free_bytes == min(free, total) * MIB
    assert bool(found) == bool(devices)


@settings(deadline=None)
@given(st.text())
def test_any_text_is_read_without_an_error(text):
    for device in parse_devices(text):
        assert device.total_bytes > 0
        assert device.free_bytes is not None
        assert 0 <= device.free_bytes <= device.total_bytes


class Server:
    """Stands for the binary that is asked to list its devices."""

    def __init__(self) -> None:
        self.text = CUDA
        self.asked = 0
        self.error: Exception | None = None
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def __call__(self) -> str:
        self.asked += 1
        await self.goes_on.wait()
        if self.error is not None:
            raise self.error
        return self.text


NO_OTHER_SOURCE = {"enabled": {"nvml": False, "amd": False}}


async def test_where_no_gpu_is_found_in_another_way_the_list_is_asked(open_devices):
    server = Server()
    devices = await open_devices(list_devices=server, **NO_OTHER_SOURCE)
    sample = await look(devices)
    assert list(sample.devices) == ["host", "list:CUDA0", "list:CUDA1"]
    assert not sample.attributed["list:CUDA0"]


async def test_it_is_asked_seldom(open_devices):
    server = Server()
    devices = await open_devices(list_devices=server, **NO_OTHER_SOURCE)
    for _ in range(5):
        await look(devices)
    assert server.asked == 1


async def test_where_there_never_was_a_device_it_is_asked_ever_more_seldom(open_devices):
    server = Server()
    server.text = "Available devices:\n  (none)\n"
    devices = await open_devices(list_devices=server, list_interval_seconds=0.01, **NO_OTHER_SOURCE)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await look_until(devices, lambda _: server.asked == 6)
    assert loop.time() - begun >= 0.01 * (2 + 4 + 8 + 16 + 32)
    server.text = CUDA
    await look_until(devices, lambda sample: "list:CUDA0" in sample.devices)
    begun, asked = loop.time(), server.asked
    await look_until(devices, lambda _: server.asked == asked + 4)
    assert loop.time() - begun < 4 * 0.01 * 32 * FACTOR, "as often as at first"


async def test_where_a_gpu_was_found_it_is_not_asked(open_devices, probe):
    server = Server()
    sample = await look(await open_devices(list_devices=server, **probe))
    assert server.asked == 0
    assert not any(device.startswith("list:") for device in sample.devices)


async def test_when_it_fails_the_devices_stay_and_nothing_is_put_there(open_devices):
    server = Server()
    devices = await open_devices(list_devices=server, list_interval_seconds=0.0, **NO_OTHER_SOURCE)
    await look(devices)
    server.error = OSError("no such file")
    sample = await look_until(devices, lambda s: s.devices["list:CUDA0"].error is not None)
    assert sample.devices["list:CUDA0"].free_bytes is None
    assert sample.notes == ("--list-devices: no such file",)
    server.error = None
    server.text = CUDA.replace("  CUDA1", "  CUDA9")
    sample = await look_until(devices, lambda s: s.devices["list:CUDA0"].error is None)
    assert sample.devices["list:CUDA1"].error == "not listed any more"
    assert sample.notes == ()


async def test_a_list_that_takes_its_time_holds_up_only_the_first_sample(open_devices):
    server = Server()
    devices = await open_devices(list_devices=server, list_interval_seconds=0.0, **NO_OTHER_SOURCE)
    await look(devices)
    server.goes_on.clear()
    for _ in range(3):
        sample = await look(devices)
        assert sample.devices["list:CUDA0"].free_bytes == 23868 * MIB
    assert server.asked == 2

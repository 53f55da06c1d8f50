"""`vram`"""

from __future__ import annotations

import json

from tests.api.fake_pool import Instance
from tests.cli.conftest import Terminal


async def test_it_shows_each_device_and_who_holds_its_memory(terminal: Terminal):
    terminal.api.pool.instances["tiny#1"] = Instance("tiny#1", "tiny", "")
    heads, device, instance = (await terminal.run("vram")).output.splitlines()
    assert heads.split() == ["DEVICE", "TOTAL", "FREE", "OURS", "OTHERS", "PROMISED", "MARGIN", "ROOM"]
    assert device.startswith("cuda:GPU-5f3c NVIDIA H200  24.0 GiB  15.0 GiB  5.0 GiB  4.0 GiB  1.0 GiB")
    assert instance.strip() == "cuda:GPU-5f3c NVIDIA H200: tiny#1 (ready), 6.0 GiB, measured 5.0 GiB"
    assert terminal.api.pool.measured == 1, "a person wants to see what is, not what was"


async def test_as_json_it_is_in_bytes(terminal: Terminal):
    assert json.loads((await terminal.run("vram", "--json")).output)["devices"][0]["total"] == 24 << 30

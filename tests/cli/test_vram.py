"""`vram`"""

from __future__ import annotations

import json
from dataclasses import replace

from router.hosts import Measurement
from tests.admin.fake_pool import GPU, Instance
from tests.cli.conftest import Terminal


async def test_it_shows_each_device_and_who_holds_its_memory(terminal: Terminal):
    terminal.api.pool.instances["tiny#1"] = Instance("tiny#1", "tiny", "")
    heads, device, legend, _, _, instance = (await terminal.run("vram")).output.splitlines()
    assert heads.split() == ["DEVICE", "TOTAL", "FREE", "OURS", "OTHERS", "PROMISED", "MARGIN", "ROOM"]
    assert device.startswith("cuda:GPU-5f3c NVIDIA H200  24.0 GiB  15.0 GiB  5.0 GiB  4.0 GiB  1.0 GiB")
    assert device.endswith("  █████▒▒▒▒▓░·············")
    assert legend.startswith("█ models")
    figures = "6.0 GiB 6.0 GiB 5.0 GiB measured"
    assert " ".join(instance.split()) == f"tiny#1 ready cuda:GPU-5f3c NVIDIA H200 {figures}"
    assert terminal.api.pool.measured == 1, "a person wants to see what is, not what was"


async def test_a_device_that_takes_no_models_says_why(terminal: Terminal, monkeypatch):
    snapshot = terminal.api.pool.snapshot()
    (device,) = snapshot.devices
    sick = replace(device, free=None, others=None, room=None)
    monkeypatch.setattr(terminal.api.pool, "snapshot", lambda: replace(snapshot, devices=(sick,)))
    info = terminal.api.known.definitions.infos[GPU]
    lost = replace(info, free_bytes=None, error="the GPU is lost")
    terminal.api.pool.measurements["local"] = Measurement(
        1.0, {GPU: None}, notes=("NVML: a note",), infos={GPU: lost}
    )
    lines = (await terminal.run("vram")).output.splitlines()
    assert lines[1].startswith("cuda:GPU-5f3c NVIDIA H200 (not healthy)  24.0 GiB  -")
    assert lines[-2:] == [
        "! cuda:GPU-5f3c NVIDIA H200 takes no models: the GPU is lost",
        "! NVML: a note",
    ]


async def test_as_json_it_is_in_bytes(terminal: Terminal):
    assert json.loads((await terminal.run("vram", "--json")).output)["devices"][0]["total"] == 24 << 30

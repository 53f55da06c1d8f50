"""Who holds the memory."""

from __future__ import annotations

from dataclasses import replace

from router.api.vram import vram_body
from tests.api.conftest import Api
from tests.api.fake_pool import GIB, GPU, FakePool, Instance


async def test_a_device_is_shown_with_all_its_shares(api: Api):
    await api.start()
    await api.post("/models/load?wait=1", json={"model": "tiny"})
    (device,) = (await api.get("/vram")).json()["devices"]
    assert device.pop("instances") == [
        {
            "id": "tiny#1",
            "model": "tiny",
            "state": "ready",
            "reserved": 6 * GIB,
            "measured": 5 * GIB,
            "leases": 0,
        }
    ]
    assert device == {
        "id": GPU,
        "label": "NVIDIA H200",
        "healthy": True,
        "total": 24 * GIB,
        "free": 15 * GIB,
        "ours": 5 * GIB,
        "others": 4 * GIB,
        "reserved": 6 * GIB,
        "promised": GIB,
        "returning": 0,
        "margin": GIB,
        "room": 13 * GIB,
    }


async def test_it_is_answered_from_memory_unless_a_measurement_is_asked_for(api: Api):
    await api.start()
    await api.get("/vram")
    assert api.pool.measured == 0
    await api.get("/vram?measure=1")
    assert api.pool.measured == 1


def test_an_unhealthy_device_has_no_free_figure_and_no_room():
    snapshot = FakePool().snapshot()
    sick = replace(snapshot.devices[0], free=None, others=None, room=None)
    (device,) = vram_body(replace(snapshot, devices=(sick,)))["devices"]
    assert (device["healthy"], device["free"], device["room"]) == (False, None, None)


def test_an_instance_is_shown_on_the_devices_it_uses_only():
    pool = FakePool()
    pool.instances["tiny#1"] = Instance("tiny#1", "tiny", "")
    snapshot = pool.snapshot()
    other = replace(snapshot.devices[0], id="local/cuda:GPU-other")
    here, there = vram_body(replace(snapshot, devices=(*snapshot.devices, other)))["devices"]
    assert (len(here["instances"]), len(there["instances"])) == (1, 0)

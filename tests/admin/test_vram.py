"""Who holds the memory, and what a load would need."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from router.admin.plan import shown_room
from router.admin.vram import vram_body
from router.errors import ModelTooLarge, NoRoom
from router.hosts import Measurement
from router.memory.devices import DeviceInfo
from router.memory.estimate.learning import FootprintStatus
from router.models.definitions import DefinedModel
from router.scheduler.ledger import UNBOUNDED
from router.scheduler.types import Device
from router.scheduler.views import DeviceView
from tests.admin.conftest import Api, info_of
from tests.admin.fake_pool import GIB, GPU, FakePool, Instance

HOST = "local/host"
HOST_VIEW = DeviceView(HOST, "host", 64 * GIB, GIB, 60 * GIB, 0, 0, 0, 0, 4 * GIB, 59 * GIB)


def shown(*args: Any) -> Any:
    return msgspec.to_builtins(vram_body(*args))


def unknown(_: str) -> None:
    """Nothing was learned of any instance."""


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
        "error": None,
        "total": 24 * GIB,
        "free": 15 * GIB,
        "ours": 5 * GIB,
        "others": 4 * GIB,
        "reserved": 6 * GIB,
        "promised": GIB,
        "returning": 0,
        "margin": GIB,
        "room": 13 * GIB,
        "utilisation_percent": None,
        "temperature_celsius": None,
        "asleep": False,
        "shared_with": [],
    }


async def test_it_is_answered_from_memory_unless_a_measurement_is_asked_for(api: Api):
    await api.start()
    for path in ("/vram", "/vram/plan", "/vram?model=tiny"):
        await api.get(path)
    assert api.pool.measured == 0
    for path in ("/vram?measure=1", "/vram/plan?measure=1", "/vram?model=tiny&measure=1"):
        await api.get(path)
    assert api.pool.measured == 3


def found(device: DeviceView, **said: Any) -> Measurement:
    """What a host told of the device last."""
    info: DeviceInfo = replace(info_of(_device_of(device)), **said)
    return Measurement(1.0, {device.id: info.free_bytes}, notes=("NVML: a note",), infos={device.id: info})


def _device_of(view: DeviceView) -> Device:
    return Device(view.id, view.total, view.margin, view.label)


def test_an_unhealthy_device_has_no_free_figure_and_no_room_and_says_why():
    snapshot = FakePool().snapshot()
    sick = replace(snapshot.devices[0], free=None, others=None, room=None)
    snapshot = replace(snapshot, devices=(sick,))
    (device,) = shown(snapshot, unknown, [found(sick, free_bytes=None, error="the GPU is lost")])["devices"]
    assert (device["healthy"], device["free"], device["room"]) == (False, None, None)
    assert device["error"] == "the GPU is lost"
    (device,) = shown(snapshot, unknown, [])["devices"]
    assert device["error"] == "it has not been measured"


def test_what_else_is_known_of_a_device_is_told_with_the_notes_of_the_measurement():
    snapshot = FakePool().snapshot()
    measured = found(snapshot.devices[0], utilisation_percent=7, temperature_celsius=41, asleep=True)
    body = shown(snapshot, unknown, [measured])
    (device,) = body["devices"]
    assert (device["utilisation_percent"], device["temperature_celsius"], device["asleep"]) == (7, 41, True)
    assert body["notes"] == ["NVML: a note"]


def test_a_gpu_without_memory_of_its_own_is_named_where_it_draws_from():
    snapshot = replace(FakePool().snapshot(), devices=(HOST_VIEW,))
    host = found(HOST_VIEW)
    unified = replace(host.infos[HOST], id="cuda:GPU-1", label="cuda:0 GB10", pool="host")
    measured = replace(host, infos={**host.infos, "local/cuda:GPU-1": unified})
    (device,) = shown(snapshot, unknown, [measured])["devices"]
    assert device["shared_with"] == ["cuda:0 GB10"]


def test_without_a_memory_check_the_room_is_no_absurd_number():
    unchecked = replace(FakePool().snapshot().devices[0], margin=0, room=UNBOUNDED)
    assert shown_room(unchecked, unchecked.room) == unchecked.total


def test_an_instance_is_shown_on_the_devices_it_uses_only():
    pool = FakePool()
    pool.instances["tiny#1"] = Instance("tiny#1", "tiny", "")
    snapshot = pool.snapshot()
    other = replace(snapshot.devices[0], id="local/cuda:GPU-other")
    here, there = shown(replace(snapshot, devices=(*snapshot.devices, other)), unknown, [])["devices"]
    assert (len(here["instances"]), len(there["instances"])) == (1, 0)


async def test_a_loaded_model_tells_prediction_and_measurement_and_how_sure_they_are(api: Api):
    await api.start()
    await api.post("/models/load?wait=1", json={"model": "tiny"})
    (model,) = (await api.get("/vram")).json()["models"]
    assert (model["predicted"], model["reserved"], model["measured"]) == (6 * GIB, 6 * GIB, 5 * GIB)
    assert model["confidence"] == "measured", "nobody learns, but this one was seen"
    api.pool.standing_of["tiny#1"] = FootprintStatus(
        "proven", {GPU: 7 * GIB}, {GPU: 5 * GIB + 1}, {GPU: 6 * GIB}
    )
    (model,) = (await api.get("/vram")).json()["models"]
    assert (model["confidence"], model["predicted"]) == ("proven", 7 * GIB)
    assert model["devices"] == {
        GPU: {
            "predicted": 7 * GIB,
            "reserved": 6 * GIB,
            "measured": 5 * GIB,
            "peak": 5 * GIB + 1,
        }
    }


# --- one model ---


def definition(api: Api, name: str = "tiny") -> DefinedModel:
    return api.known.definitions.by_name[name]


def summed(terms: list[dict[str, Any]]) -> Mapping[str, int]:
    sums: dict[str, int] = defaultdict(int)
    for term in terms:
        sums[term["device"]] += term["bytes"]
    return sums


async def asked(api: Api, path: str) -> Any:
    api.pool.host_view = HOST_VIEW
    answer = await api.get(path)
    assert answer.status == 200, answer.body
    return answer.json()


async def test_a_load_is_told_term_by_term_for_every_placement(api: Api):
    await api.start()
    body = await asked(api, "/vram?model=small")
    assert (body["model"], body["text"]) == ("tiny", "tiny is not loaded.")
    estimates = [one for one in definition(api).estimates if not one.is_fallback]
    assert [place["devices"] for place in body["placements"]] == [list(one.devices) for one in estimates]
    for place, estimate in zip(body["placements"], estimates, strict=True):
        assert place["footprint"] == place["predicted"] == dict(estimate.footprint)
        assert summed(place["terms"]) == place["footprint"]
        assert {"weights", "kv", "compute"} <= {term["kind"] for term in place["terms"]}
        assert all(term["explanation"] for term in place["terms"])
        assert place["missing_now"] == place["missing_if_empty"] == {}


async def test_the_terms_add_up_also_where_measurements_have_corrected_them(api: Api):
    await api.start()
    booked = [
        {device: size - 5 for device, size in one.footprint.items()} for one in definition(api).estimates
    ]
    api.pool.standings_of["tiny"] = tuple(
        FootprintStatus("proven", one.footprint, {}, reserved)
        for one, reserved in zip(definition(api).estimates, booked, strict=True)
    )
    place = (await asked(api, "/vram?model=tiny"))["placements"][0]
    assert (place["confidence"], place["footprint"]) == ("proven", booked[0])
    assert summed(place["terms"]) == booked[0]
    assert place["terms"][-1]["kind"] == "learned" and place["terms"][-1]["bytes"] == -5


async def test_what_a_request_would_do_now_is_told(api: Api):
    await api.start()
    placement = definition(api).model.placements[0]
    api.pool.explanation = {"would": "start", "placement": placement, "would_evict": ("other#1",)}
    body = await asked(api, "/vram?model=tiny")
    assert (body["would"], body["chosen"], body["would_evict"]) == ("start", 0, ["other#1"])
    assert (body["missing"], body["refusal"]) == ({}, None)
    assert api.pool.explained == [("tiny", None)]


async def test_what_is_missing_is_what_the_scheduler_misses_or_what_the_nearest_placement_lacks(api: Api):
    await api.start()
    api.pool.explanation = {"would": "wait", "shortfall": {GPU: 5}}
    assert (await asked(api, "/vram?model=tiny"))["missing"] == {GPU: 5}
    refusal = ModelTooLarge("needs 90.0 GiB; cuda:0 has 24.0 GiB")
    api.pool.explanation = {"would": "refuse", "refusal": refusal}
    small = replace(HOST_VIEW, others=64 * GIB, room=0)
    api.pool.host_view = small
    answer = (await api.get("/vram?model=tiny")).json()
    assert answer["refusal"] == {"status": 422, "code": "model_too_large", "message": refusal.message}
    need = definition(api).estimates[0].footprint[HOST]
    assert answer["missing"] == {HOST: need}
    api.pool.explanation = {"would": "refuse", "refusal": NoRoom("full")}
    api.pool.host_view = replace(HOST_VIEW, room=1)
    answer = (await api.get("/vram?model=tiny")).json()
    assert answer["missing"] == {HOST: need - 1}


async def test_another_context_is_counted_and_asked_for_instead(api: Api):
    await api.start()
    body = await asked(api, "/vram?model=tiny&ctx_size=1024")
    assert {place["ctx_size"] for place in body["placements"]} == {1024}
    assert body["placements"][0]["bytes"] > sum(definition(api).estimates[0].footprint.values())
    ((name, overrides),) = api.pool.explained
    assert name == "tiny" and overrides is not None
    assert dict(overrides.placements[0].footprint) == body["placements"][0]["footprint"]


async def test_a_model_that_is_unknown_or_cannot_be_loaded_is_an_error(api: Api):
    await api.start()
    for path in ("/vram?model=", "/vram/plan?model="):
        missing = await api.get(path + "tin")
        assert (missing.status, missing.error["code"]) == (404, "model_not_found")
        assert "did you mean 'tiny'" in missing.error["message"]
        broken = await api.get(path + "broken")
        assert (broken.status, broken.error["code"]) == (422, "model_unusable")
        assert "broken.gguf" in broken.error["message"]


@pytest.mark.parametrize("given", ["", "0", "-1", "8k", "1e3", "9" * 30, "٣"])
async def test_a_context_that_is_no_number_of_tokens_is_refused(api: Api, given: str):
    await api.start()
    for path in ("/vram", "/vram/plan"):
        answer = await api.get(path, params={"model": "tiny", "ctx_size": given})
        assert (answer.status, answer.error["code"]) == (400, "invalid_request")
        assert "ctx_size" in answer.error["message"]


# --- several models ---


async def test_without_names_there_is_a_line_for_every_model_that_is_not_hidden(api: Api):
    await api.start()
    body = await asked(api, "/vram/plan")
    rows = {row["model"]: row for row in body["models"]}
    assert rows.keys() == {"tiny", "other", "seeing", "broken"}
    assert "broken.gguf" in rows["broken"]["error"]
    estimate = definition(api).estimates[0]
    assert rows["tiny"]["bytes"] == sum(estimate.footprint.values())
    assert (rows["tiny"]["fits"], rows["tiny"]["ctx_size"], rows["tiny"]["loaded"]) == ("now", 512, False)
    assert body["together"] is None


async def test_a_row_says_when_there_is_room_only_without_what_is_loaded_or_never(api: Api):
    await api.start()
    fits = []
    for room, others in ((59, 4), (0, 4), (0, 64)):
        api.pool.host_view = replace(HOST_VIEW, room=room * GIB, others=others * GIB)
        (row,) = (await api.get("/vram/plan?model=tiny")).json()["models"]
        fits.append((row["fits"], bool(row["missing"])))
    assert fits == [("now", False), ("if empty", False), ("no", True)]


async def test_several_models_are_told_to_fit_together_with_what_is_left(api: Api):
    await api.start()
    body = await asked(api, "/vram/plan?model=tiny&model=other&model=small")
    together = body["together"]
    assert together["fits"] and together["exact"] and together["sets"] == []
    models = {one["model"]: one for one in together["all"]["models"]}
    assert models.keys() == {"tiny", "other"}, "an alias is the same model"
    assert not any(one["reduced"] for one in models.values())
    room = {device["id"]: device["room_if_empty"] for device in body["devices"]}
    for device, left in together["all"]["left"].items():
        taken = sum(one["footprint"].get(device, 0) for one in models.values())
        assert left == room[device] - taken and left >= 0
    assert "fit together" in together["text"]


async def test_models_that_do_not_fit_together_are_told_in_the_sets_that_do(api: Api):
    await api.start()
    need = definition(api).estimates[0].footprint[HOST]
    api.pool.host_view = replace(HOST_VIEW, others=63 * GIB - need - need // 2)
    together = (await api.get("/vram/plan?model=tiny&model=other")).json()["together"]
    assert (together["fits"], together["all"], together["exact"]) == (False, None, True)
    assert [[one["model"] for one in fit["models"]] for fit in together["sets"]] == [["tiny"], ["other"]]

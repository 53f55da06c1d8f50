"""Listing, loading and unloading models."""

from __future__ import annotations

import asyncio

import pytest

from router.errors import ModelTooLarge, SettingsConflict
from router.ids import Definition
from router.models.definitions import Definitions
from router.presets import Overrides
from router.scheduler.types import State
from tests.admin.conftest import Api
from tests.admin.fake_pool import Instance


async def test_both_lists_are_the_same_and_leave_hidden_models_out(api: Api):
    await api.start()
    answer = await api.get("/models")
    assert answer.json() == (await api.get("/v1/models")).json()
    assert answer.json()["object"] == "list"
    assert {model["id"] for model in answer.json()["data"]} == {"tiny", "other", "seeing", "broken"}


async def test_one_model_is_found_by_id_and_by_alias_with_a_slash(api: Api):
    await api.start()
    assert (await api.get("/v1/models/tiny")).json()["id"] == "tiny"
    assert (await api.get("/v1/models/org/tiny")).json()["id"] == "tiny"
    assert (await api.get("/v1/models/org%2Ftiny")).json()["id"] == "tiny"
    assert (await api.get("/v1/models/hidden")).json()["id"] == "hidden"
    missing = await api.get("/v1/models/tin")
    assert missing.status == 404
    assert "did you mean 'tiny'" in missing.error["message"]


async def test_loading_answers_when_the_load_has_begun(api: Api):
    await api.start()
    api.pool.load_gate = asyncio.Event()
    answer = await api.post("/models/load", json={"model": "small"})
    assert (answer.status, answer.json()["success"], answer.json()["id"]) == (200, True, "tiny")
    assert api.pool.waiting == 1, "it goes on although the request is over"
    api.pool.load_gate.set()


async def test_loading_with_wait_answers_when_the_model_is_ready(api: Api):
    await api.start()
    answer = await api.post("/models/load?wait=1", json={"model": "tiny"})
    assert answer.json()["status"]["value"] == "loaded"


async def test_loading_what_is_loaded_is_no_error(api: Api):
    await api.start()
    for _ in range(2):
        answer = await api.post("/models/load", json={"model": "tiny"})
        assert (answer.status, answer.json()["status"]["value"]) == (200, "loaded")


async def test_a_load_that_is_refused_at_once_says_so(api: Api):
    await api.start()
    for path in ("/models/load", "/models/load?wait=1"):
        api.pool.refusals = [ModelTooLarge("needs 90.0 GiB; cuda:0 has 24.0 GiB")]
        answer = await api.post(path, json={"model": "tiny"})
        assert (answer.status, answer.error["code"]) == (422, "model_too_large")


async def test_unloading_drains_unless_it_is_told_otherwise(api: Api):
    await api.start()
    await api.post("/models/load?wait=1", json={"model": "tiny"})
    answer = await api.post("/models/unload", json={"model": "small"})
    assert (answer.status, answer.json()["status"]["value"]) == (200, "unloaded")
    await api.post("/models/load?wait=1", json={"model": "tiny"})
    await api.post("/models/unload", json={"model": "tiny", "force": True, "deadline": 3})
    assert api.pool.unloads == [("tiny", False, None), ("tiny", True, 3.0)]


async def test_unloading_what_is_not_loaded_is_400_as_in_llama_cpp(api: Api):
    await api.start()
    answer = await api.post("/models/unload", json={"model": "tiny"})
    assert (answer.status, answer.error["code"]) == (400, "model_not_loaded")


async def test_a_wrong_body_is_answered_with_the_right_fields(api: Api):
    await api.start()
    for body in (b"", b"tiny", b"{}", b'{"model":"tiny","forced":true}', b'{"model":1}', b'{"model":"\xff"}'):
        answer = await api.post("/models/unload", data=body)
        assert answer.status == 400
        assert "model, force, deadline" in answer.error["message"] or "UTF-8" in answer.error["message"]
    assert not api.pool.unloads


async def test_a_list_may_ask_to_look_again(api: Api):
    await api.start()
    await api.get("/models?reload=0")
    assert api.reloads == 0
    assert (await api.get("/models?reload=1")).status == 200
    assert api.reloads == 1


async def test_a_list_shows_files_that_are_no_models_only_where_it_is_asked_for_all(api: Api):
    await api.start()
    name = "seeing/mmproj-seeing"
    assert name not in {row["id"] for row in (await api.get("/models")).json()["data"]}
    rows = {row["id"]: row for row in (await api.get("/models?all=1")).json()["data"]}
    assert "is no model but a projector" in rows[name]["status"]["error"]
    assert "hidden" not in rows
    assert name not in (await api.post("/models/load", data='{"model":"nothing"}')).error["message"]


async def test_a_list_shows_what_runs(api: Api):
    await api.start()
    api.pool.instances["tiny#4"] = Instance("tiny#4", "tiny", "", State.STARTING)
    shown = (await api.get("/v1/models/tiny")).json()
    assert shown["status"]["value"] == "loading"
    assert [one["id"] for one in shown["instances"]] == ["tiny#4"]


# --- other settings for one load ---


async def test_a_load_may_say_other_settings_and_how_long_it_stays(api: Api):
    await api.start(load_args=("--threads",))
    asked = {"ctx_size": 256, "cache_type_k": "q8_0", "args": ["-t", "2"]}
    body = {"model": "small", "ttl_seconds": 7, **asked}
    assert (await api.post("/models/load?wait=1", json=body)).status == 200
    assert api.varied == [("tiny", Overrides(ctx_size=256, cache_type_k="q8_0", args=("-t", "2")))]
    assert api.pool.overrides == [api.known.definitions.by_name["tiny"].model]
    assert api.pool.acquired[0].keep_alive == 7


async def test_a_load_without_other_settings_has_none(api: Api):
    await api.start()
    await api.post("/models/load?wait=1", json={"model": "tiny", "ctx_size": None})
    assert (api.varied, api.pool.overrides) == ([], [None])


async def test_an_unknown_setting_is_told_the_nearest(api: Api):
    await api.start()
    for wrong, near in (("context_size", "ctx_size"), ("device", "devices"), ("ttl", "ttl_seconds")):
        answer = await api.post("/models/load", json={"model": "tiny", wrong: 1})
        assert answer.status == 400
        assert f"did you mean {near}?" in answer.error["message"]
    assert not api.pool.acquired


async def test_only_options_that_the_configuration_allows_may_be_set(api: Api):
    await api.start(load_args=("--threads",))
    for args in (["--lora", "/etc/passwd"], ["--threads-batch", "2"]):
        answer = await api.post("/models/load", json={"model": "tiny", "args": args})
        assert answer.status == 400
        assert "server.load_args" in answer.error["message"]
    assert not api.pool.acquired


async def test_what_is_loaded_otherwise_is_409(api: Api):
    await api.start()
    api.pool.refusals = [SettingsConflict("tiny is loaded with other settings; unload it first")]
    answer = await api.post("/models/load", json={"model": "tiny", "ctx_size": 256})
    assert (answer.status, answer.error["code"]) == (409, "settings_conflict")


async def test_the_settings_of_a_load_are_shown_with_its_instance(api: Api):
    await api.start()
    await api.post("/models/load?wait=1", json={"model": "tiny"})
    (instance,) = api.pool.instances.values()
    instance.definition = Definition("3f", '{"ctx_size":256}')
    (shown,) = (await api.get("/v1/models/tiny")).json()["instances"]
    assert shown["settings"] == {"ctx_size": 256}


# --- all of them, and pins ---


async def test_all_are_unloaded_at_once_and_none_is_no_error(api: Api):
    await api.start()
    assert (await api.post("/models/unload-all")).json() == {"unloaded": [], "success": True}
    for name in ("tiny", "other"):
        await api.post("/models/load?wait=1", json={"model": name})
    answer = await api.post("/models/unload-all", json={"force": True})
    assert sorted(answer.json()["unloaded"]) == ["other", "tiny"]
    assert sorted(api.pool.unloads) == [("other", True, None), ("tiny", True, None)]


async def test_what_is_loaded_is_listed_hidden_ones_too(api: Api):
    await api.start()
    assert (await api.get("/models/loaded")).json() == {"data": [], "object": "list"}
    await api.post("/models/load?wait=1", json={"model": "hidden"})
    (row,) = (await api.get("/models/loaded")).json()["data"]
    assert (row["id"], row["status"]["value"]) == ("hidden", "loaded")


async def test_a_pin_is_set_and_taken_away_by_any_name(api: Api):
    await api.start()
    assert (await api.post("/models/pin", json={"model": "small"})).json()["id"] == "tiny"
    await api.post("/models/unpin", json={"model": "tiny"})
    await api.post("/models/pin", json={"model": "tiny", "pinned": None})
    assert api.pool.pins == [("tiny", True), ("tiny", False), ("tiny", None)]
    assert (await api.post("/models/pin", json={"model": "nobody"})).status == 404


async def test_a_thousand_lists_make_no_command_line_anew(api: Api, monkeypatch: pytest.MonkeyPatch):
    await api.start()
    await api.post("/models/load?wait=1", json={"model": "tiny"})
    await api.get("/models")
    monkeypatch.setattr(Definitions, "launch", None)
    (row,) = [m for m in (await api.get("/models")).json()["data"] if m["id"] == "tiny"]
    assert "--alias" in row["status"]["args"]

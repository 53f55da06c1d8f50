"""Listing, loading and unloading models."""

from __future__ import annotations

import asyncio

from router.core.types import State
from router.errors import ModelTooLarge
from tests.api.conftest import Api
from tests.api.fake_pool import Instance


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


async def test_a_list_shows_what_runs(api: Api):
    await api.start()
    api.pool.instances["tiny#4"] = Instance("tiny#4", "tiny", "", State.STARTING)
    shown = (await api.get("/v1/models/tiny")).json()
    assert shown["status"]["value"] == "loading"
    assert [one["id"] for one in shown["instances"]] == ["tiny#4"]

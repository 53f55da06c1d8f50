"""What a loaded model tells of itself: asked without loading it, and without keeping it loaded."""

from __future__ import annotations

import pytest

from router.core.types import State
from tests.api.conftest import Api
from tests.api.fake_pool import Instance
from tests.api.upstream import Connection, Received


async def say_what_was_asked(received: Received, connection: Connection) -> None:
    await connection.answer(received.line.encode(), head="Content-Type: text/plain")


@pytest.fixture
async def loaded(api: Api) -> Api:
    await api.start(script=say_what_was_asked, api_keys=("user",), admin_keys=("admin",))
    await api.post("/v1/completions", json={"model": "tiny"}, headers={"x-api-key": "user"})
    return api


USER = {"headers": {"x-api-key": "user"}}
ADMIN = {"headers": {"x-api-key": "admin"}}


@pytest.mark.parametrize("path", ["/props", "/slots", "/lora-adapters"])
async def test_a_look_passes_to_the_model_as_it_is_and_takes_no_lease(loaded: Api, path: str):
    answer = await loaded.get(f"{path}?model=small&x=1", **USER)
    assert answer.body == f"GET {path}?model=small&x=1 HTTP/1.1".encode()
    assert answer.headers["Content-Type"] == "text/plain"
    assert len(loaded.pool.acquired) == 1, "the completion before"


@pytest.mark.parametrize("path", ["/props", "/slots", "/lora-adapters"])
async def test_a_look_loads_nothing_unless_it_asks_for_it(loaded: Api, path: str):
    refused = await loaded.get(f"{path}?model=other", **USER)
    assert (refused.status, refused.error["code"]) == (400, "model_not_loaded")
    assert "?autoload=1" in refused.error["message"]
    assert (await loaded.get(f"{path}?model=other&autoload=0", **USER)).status == 400
    answer = await loaded.get(f"{path}?model=other&autoload=1", **USER)
    assert answer.body == f"GET {path}?model=other&autoload=1 HTTP/1.1".encode()
    assert loaded.pool.acquired[-1].model == "other"


async def test_of_a_model_that_loads_it_is_said_that_it_loads(loaded: Api):
    loaded.pool.instances["other#9"] = Instance("other#9", "other", "", State.STARTING)
    answer = await loaded.get("/slots?model=other", **USER)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")


async def test_a_look_needs_a_model_that_there_is(loaded: Api):
    assert (await loaded.get("/slots", **USER)).status == 400
    assert (await loaded.get("/slots?model=", **USER)).status == 400
    assert (await loaded.get("/slots?model=nobody", **USER)).status == 404


async def test_a_model_that_is_gone_at_that_moment_is_no_crash(loaded: Api):
    (instance,) = loaded.pool.instances.values()
    instance.socket = "/nowhere/at/all.sock"
    answer = await loaded.get("/slots?model=tiny", **USER)
    assert (answer.status, answer.error["code"]) == (502, "upstream_failed")


async def test_without_a_model_props_are_those_of_llama_cpps_router(loaded: Api):
    props = (await loaded.get("/props", **USER)).json()
    assert (props["role"], props["models_autoload"], props["max_instances"]) == ("router", True, 0)
    assert props["default_generation_settings"] == {"params": None, "n_ctx": 0}
    assert len(loaded.pool.acquired) == 1


async def test_head_is_answered_like_get_without_a_body(loaded: Api):
    for path in ("/props", "/props?model=tiny", "/slots?model=tiny"):
        answer = await loaded.call("HEAD", path, **USER)
        assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/props?model=tiny", b"{}"),
        ("/lora-adapters?model=tiny", b'[{"id":0,"scale":0.5}]'),
        ("/slots/0?action=erase&model=tiny", b""),
        ("/slots/0?action=erase", b'{"model":"tiny"}'),
    ],
)
async def test_what_changes_a_model_for_all_is_for_admins(loaded: Api, path: str, body: bytes):
    assert (await loaded.post(path, data=body, **USER)).status == 403
    answer = await loaded.post(path, data=body, **ADMIN)
    assert answer.body == f"POST {path} HTTP/1.1".encode()


@pytest.mark.parametrize("slot", ["-1", "1e9", "x", "9" * 10, "9" * 400, "%FF", "1.5"])
async def test_a_slot_that_is_no_number_is_refused_and_no_model_is_loaded_for_it(loaded: Api, slot: str):
    answer = await loaded.post(f"/slots/{slot}?action=erase&model=other", data=b"", **ADMIN)
    assert answer.status == 400
    assert "is no number of a slot" in answer.error["message"]
    assert "other" not in [one.model for one in loaded.pool.acquired]


async def test_an_array_without_a_model_in_the_query_says_what_is_missing(loaded: Api):
    answer = await loaded.post("/lora-adapters", data=b"[]", **ADMIN)
    assert answer.status == 400

"""What a loaded model tells of itself: asked without loading it, and without keeping it loaded."""

from __future__ import annotations

from typing import Any

import pytest

from router.scheduler.types import State
from tests.admin.conftest import Api
from tests.admin.fake_pool import Instance
from tests.admin.upstream import Connection, Received


async def say_what_was_asked(received: Received, connection: Connection) -> None:
    await connection.answer(received.line.encode(), head="Content-Type: text/plain")


@pytest.fixture
async def loaded(api: Api) -> Api:
    await api.start(script=say_what_was_asked, api_keys=("user",), admin_keys=("admin",))
    await api.post("/v1/completions", json={"model": "tiny"}, headers={"x-api-key": "user"})
    return api


USER = {"headers": {"x-api-key": "user"}}
ADMIN = {"headers": {"x-api-key": "admin"}}


LOOKS = [("/props", USER), ("/slots", ADMIN), ("/lora-adapters", USER)]


@pytest.mark.parametrize(("path", "who"), LOOKS)
async def test_a_look_passes_to_the_model_as_it_is_and_takes_no_lease(loaded: Api, path: str, who: Any):
    answer = await loaded.get(f"{path}?model=small&x=1", **who)
    assert answer.body == f"GET {path}?model=small&x=1 HTTP/1.1".encode()
    assert answer.headers["Content-Type"] == "text/plain"
    assert len(loaded.pool.acquired) == 1, "the completion before"


@pytest.mark.parametrize(("path", "who"), LOOKS)
async def test_a_look_loads_nothing_unless_it_asks_for_it(loaded: Api, path: str, who: Any):
    refused = await loaded.get(f"{path}?model=other", **who)
    assert (refused.status, refused.error["code"]) == (400, "model_not_loaded")
    assert "?autoload=1" in refused.error["message"]
    assert (await loaded.get(f"{path}?model=other&autoload=0", **who)).status == 400
    answer = await loaded.get(f"{path}?model=other&autoload=1", **who)
    assert answer.body == f"GET {path}?model=other&autoload=1 HTTP/1.1".encode()
    assert loaded.pool.acquired[-1].model == "other"


async def test_of_a_model_that_loads_it_is_said_that_it_loads(loaded: Api):
    loaded.pool.instances["other#9"] = Instance("other#9", "other", "", State.STARTING)
    answer = await loaded.get("/slots?model=other", **ADMIN)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")


async def test_a_look_needs_a_model_that_there_is(loaded: Api):
    assert (await loaded.get("/slots", **ADMIN)).status == 400
    assert (await loaded.get("/slots?model=", **ADMIN)).status == 400
    assert (await loaded.get("/slots?model=nobody", **ADMIN)).status == 404


async def test_a_model_that_is_gone_at_that_moment_is_no_crash(loaded: Api):
    (instance,) = loaded.pool.instances.values()
    instance.socket = "/nowhere/at/all.sock"
    answer = await loaded.get("/slots?model=tiny", **ADMIN)
    assert (answer.status, answer.error["code"]) == (502, "upstream_failed")


async def test_without_a_model_props_are_those_of_llama_cpps_router(loaded: Api):
    props = (await loaded.get("/props", **USER)).json()
    assert (props["role"], props["models_autoload"], props["max_instances"]) == ("router", True, 0)
    assert props["default_generation_settings"] == {"params": None, "n_ctx": 0}
    assert len(loaded.pool.acquired) == 1


async def test_head_is_answered_like_get_without_a_body(loaded: Api):
    for path in ("/props", "/props?model=tiny", "/slots?model=tiny"):
        answer = await loaded.call("HEAD", path, **ADMIN)
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


SLOTS = ("/slots?model=tiny", "/upstream/tiny/slots", "/upstream/tiny/%73lots", "/upstream/tiny//slots/0")
ELSEWHERE = {"X-Forwarded-For": "10.0.0.7"}


@pytest.mark.parametrize("path", SLOTS)
async def test_what_slots_show_needs_a_key_or_a_user_of_this_machine(api: Api, path: str):
    await api.start(script=say_what_was_asked)
    await api.post("/v1/completions", json={"model": "tiny"})
    assert (await api.get(path)).status == 200
    refused = await api.get(path, headers=ELSEWHERE)
    assert (refused.status, refused.error["code"]) == (403, "forbidden")
    assert "server.admin_keys" in refused.error["message"]
    assert (await api.get("/props?model=tiny", headers=ELSEWHERE)).status == 200


@pytest.mark.parametrize("path", SLOTS)
async def test_with_keys_slots_are_for_admins_from_anywhere(loaded: Api, path: str):
    assert (await loaded.get(path)).status == 401
    assert (await loaded.get(path, **USER)).status == 403
    assert (await loaded.get(path, headers=ADMIN["headers"] | ELSEWHERE)).status == 200


@pytest.mark.parametrize("status", [600, 999, 700])
async def test_a_status_that_is_none_is_not_passed_on_as_ours(api: Api, status: int):
    async def script(received: Received, connection: Connection) -> None:
        await connection.send(b"HTTP/1.1 %d Odd\r\nContent-Length: 2\r\n\r\nhi" % status)

    await api.start(script=script)
    await api.post("/models/load?wait=1", json={"model": "tiny"})
    for path in ("/slots?model=tiny", "/upstream/tiny/health"):
        answer = await api.get(path)
        assert (answer.status, answer.error["code"]) == (502, "upstream_failed"), path
    for headers in ({}, {"X-Router-Priority": "high"}):  # by the short way and by the long one
        answer = await api.post("/v1/chat/completions", json={"model": "tiny"}, headers=headers)
        assert (answer.status, answer.error["code"]) == (502, "upstream_failed")


async def test_a_child_says_nothing_in_the_routers_name(api: Api):
    async def script(received: Received, connection: Connection) -> None:
        head = "X-Router-Action: rejected\r\nX-Router-Load-Ms: 99\r\nX-Router-Evicted: x"
        await connection.answer(b"{}", head=head)

    await api.start(script=script)
    await api.post("/models/load?wait=1", json={"model": "tiny"})
    for headers in ({}, {"X-Router-Priority": "high"}):
        answer = await api.post("/v1/chat/completions", json={"model": "tiny"}, headers=headers)
        ours = [(k, v) for k, v in answer.headers.items() if k.lower().startswith("x-router-")]
        assert ours[0] == ("X-Router-Action", "already_loaded")
        assert [k for k, _ in ours] == ["X-Router-Action", "X-Router-Queue-Ms", "X-Router-Load-Ms"]

"""The requests in flight, and how an operator ends one."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from tests.admin.conftest import Api
from tests.admin.upstream import Connection, Received
from tests.waiting import until


async def endless(received: Received, connection: Connection) -> None:
    await connection.begin_stream()
    await connection.chunk(b'data: {"n": 1}\n\n')
    await connection.until_client_left()


async def in_flight(api: Api, count: int) -> list[dict[str, Any]]:
    """The list, once it has so many entries."""

    async def rows() -> list[dict[str, Any]]:
        return (await api.get("/requests")).json()["data"]

    return await until(rows, holds=lambda rows: len(rows) == count)


async def until_bytes(api: Api) -> dict[str, Any]:
    (row,) = await until(lambda: in_flight(api, 1), holds=lambda rows: rows[0]["bytes"])
    return row


async def test_what_is_in_flight_is_listed_with_its_model_state_and_bytes(api: Api):
    await api.start(script=endless)
    async with aiohttp.ClientSession() as client:
        asked = {"model": "small", "stream": True}
        async with client.post(api.url + "/v1/chat/completions", json=asked) as answer:
            assert answer.status == 200
            row = await until_bytes(api)
            assert (row["model"], row["state"], row["action"]) == ("tiny", "answering", "loaded")
            assert (row["method"], row["path"]) == ("POST", "/v1/chat/completions")
            assert (row["client"], row["bytes"]) == ("127.0.0.1", len(b'data: {"n": 1}\n\n'))
            assert row["instance"].startswith("tiny#")
            assert 0 <= row["age_seconds"] < 5
    assert await in_flight(api, 0) == []


async def test_the_routers_own_requests_are_not_listed(api: Api):
    await api.start()
    assert (await api.get("/requests")).json() == {"object": "list", "data": []}


async def test_ending_one_that_waits_answers_its_client_with_an_error(api: Api):
    await api.start()
    api.pool.load_gate = asyncio.Event()
    waiting = asyncio.create_task(api.post("/v1/completions", json={"model": "tiny"}))
    row = (await in_flight(api, 1))[0]
    assert (row["state"], row["action"], row["instance"]) == ("waiting", None, None)
    assert (await api.call("DELETE", f"/requests/{row['id']}")).json() == {"id": row["id"], "success": True}
    answer = await waiting
    assert (answer.status, answer.error["code"]) == (503, "request_ended")
    assert await in_flight(api, 0) == []
    assert api.pool.waiting == 0, "its place in the queue is free"


async def test_ending_one_in_mid_stream_ends_the_stream_with_an_error_event(api: Api):
    await api.start(script=endless)
    async with aiohttp.ClientSession() as client:
        asked = {"model": "tiny", "stream": True}
        async with client.post(api.url + "/v1/chat/completions", json=asked) as answer:
            row = await until_bytes(api)
            await api.call("DELETE", f"/requests/{row['id']}")
            body = await answer.read()
    assert b"request_ended" in body
    assert b"[DONE]" not in body
    assert await in_flight(api, 0) == []


async def test_ending_what_has_ended_is_404(api: Api):
    await api.start()
    for id_ in ("1", "999", "no-such", "a%2fb"):
        answer = await api.call("DELETE", f"/requests/{id_}")
        assert (answer.status, answer.error["code"]) == (404, "request_not_found")


async def test_only_an_admin_sees_and_ends_requests_of_others(api: Api):
    await api.start(api_keys=("user",), admin_keys=("boss",))
    user, boss = {"Authorization": "Bearer user"}, {"Authorization": "Bearer boss"}
    assert (await api.get("/requests", headers=user)).status == 403
    assert (await api.call("DELETE", "/requests/1", headers=user)).status == 403
    assert (await api.get("/requests", headers=boss)).status == 200

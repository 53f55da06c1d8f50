"""A stream that a client comes back to is found with whoever has it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.admin.conftest import Api
from tests.admin.upstream import Connection, Received
from tests.waiting import until

HAVING = {"conversation_id": "c1", "is_done": False, "total_bytes": 9, "started_at": 7, "completed_at": 0}


class Kept:
    """What each child keeps: path of its socket -> conversations."""

    def __init__(self) -> None:
        self.by_model: dict[str, list[dict[str, Any]]] = {}
        self.seen: list[str] = []

    async def answer(self, received: Received, connection: Connection) -> None:
        body = json.loads(received.body or b"{}")
        self.seen.append(received.line)
        if received.line.startswith("POST /v1/streams/lookup"):
            ids = body["conversation_ids"]
            ours = [one for ones in self.by_model.values() for one in ones if one["conversation_id"] in ids]
            await connection.answer(json.dumps(ours).encode())
        else:
            await connection.answer(received.line.encode())


@pytest.fixture
async def kept(api: Api) -> Kept:
    kept = Kept()
    await api.start(script=kept.answer)
    await api.post("/v1/completions", json={"model": "tiny"})
    return kept


async def test_it_is_followed_with_a_lease_of_its_owner(api: Api, kept: Kept):
    kept.by_model["tiny"] = [HAVING]
    answer = await api.get("/v1/stream?conv_id=c1&from=4")
    assert answer.body == b"GET /v1/stream?conv_id=c1&from=4 HTTP/1.1"
    assert [one.model for one in api.pool.acquired] == ["tiny", "tiny"]


@pytest.mark.parametrize("wrong", ["-1", "1e9", "", "x", "9" * 19, "9" * 400, "%FF", "\u0663", "1_0", "+1"])
async def test_a_first_byte_that_is_no_number_of_bytes_is_refused(api: Api, kept: Kept, wrong: str):
    kept.by_model["tiny"] = [HAVING]
    answer = await api.get(f"/v1/stream?conv_id=c1&from={wrong}")
    assert answer.status == 400
    assert "from is " in answer.error["message"]
    assert [one.model for one in api.pool.acquired] == ["tiny"], "and no model is held for it"


async def test_what_nobody_has_is_404_and_needs_a_name(api: Api, kept: Kept):
    answer = await api.get("/v1/stream?conv_id=c2")
    assert (answer.status, answer.error["code"]) == (404, "stream_not_found")
    assert (await api.get("/v1/stream")).status == 400
    assert (await api.call("DELETE", "/v1/stream")).status == 400


async def test_a_lookup_tells_of_those_that_were_named(api: Api, kept: Kept):
    kept.by_model["tiny"] = [HAVING, {**HAVING, "conversation_id": "c9"}]
    answer = await api.post("/v1/streams/lookup", json={"conversation_ids": ["c1", "c7"]})
    assert answer.json() == [HAVING]
    assert (await api.post("/v1/streams/lookup", json={"conversation_ids": ["x"] * 1001})).status == 400
    assert (await api.post("/v1/streams/lookup", data=b"[]")).status == 400


async def test_a_stop_reaches_its_owner_and_is_no_error_where_there_is_none(api: Api, kept: Kept):
    kept.by_model["tiny"] = [{**HAVING, "conversation_id": "a/b ?"}]
    assert (await api.call("DELETE", "/v1/stream?conv_id=a%2Fb%20%3F")).status == 204
    assert kept.seen[-1] == "DELETE /v1/stream?conv_id=a%2Fb%20%3F HTTP/1.1"
    assert (await api.call("DELETE", "/v1/stream?conv_id=nobody")).status == 204
    assert not kept.seen[-1].startswith("DELETE"), "nobody is bothered who does not have it"


async def test_a_child_that_is_gone_is_asked_in_vain_and_the_others_answer(api: Api, kept: Kept):
    await api.post("/v1/completions", json={"model": "other"})
    kept.by_model["tiny"] = [HAVING]
    api.pool.instances["other#3"].socket = "/nowhere.sock"
    answer = await api.post("/v1/streams/lookup", json={"conversation_ids": ["c1"]})
    assert answer.json() == [HAVING]


async def test_while_its_model_loads_a_follower_is_told_to_come_again_and_a_stop_calls_it_off(
    api: Api, kept: Kept
):
    api.pool.load_gate = asyncio.Event()
    asking = asyncio.create_task(
        api.post("/v1/completions", json={"model": "other"}, headers={"X-Conversation-Id": "c3"})
    )
    await until(lambda: api.pool.waiting)
    answer = await api.get("/v1/stream?conv_id=c3")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert (await api.call("DELETE", "/v1/stream?conv_id=c3")).status == 204
    refused = await asking
    assert (refused.status, refused.error["code"]) == (400, "stream_stopped")

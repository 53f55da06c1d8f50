"""Streams that a client comes back to, with the real llama-server behind them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.e2e.conftest import Start
from tests.make_gguf import make_llama
from tests.router_process import RouterProcess
from tests.waiting import until

pytestmark = pytest.mark.e2e

#: A model that takes its time: about a hundred tokens a second.
SLOW = {"model": "slow", "stream": True, "ignore_eos": True, "max_tokens": 2000}
NAMED = {"X-Conversation-Id": "c 1/2"}
HERE = "/v1/stream?conv_id=c%201%2F2"


def start(router: Start, *models: str) -> RouterProcess:
    up = router(*models, args=("--models-max", "1"))
    make_llama(up.models / "slow.gguf", approx_mib=150)
    return up


async def leave_in_the_middle(up: RouterProcess) -> bytes:
    """What was heard before."""
    body = SLOW | {"messages": [{"role": "user", "content": "hello"}]}
    async with up.client.post("/v1/chat/completions", json=body, headers=NAMED) as answer:
        assert answer.status == 200
        return await answer.content.readexactly(2000)


async def leases(up: RouterProcess) -> int:
    instances = (await up.get("/v1/models/slow"))["instances"]
    return sum(one["leases"] for one in instances)


async def lookup(up: RouterProcess) -> list[dict[str, Any]]:
    async with up.client.post("/v1/streams/lookup", json={"conversation_ids": ["c 1/2", "no"]}) as answer:
        assert answer.status == 200
        return list(await answer.json())


async def test_who_comes_back_reads_on_where_it_was_and_hears_the_end(router: Start):
    async with start(router) as up:
        heard = await leave_in_the_middle(up)
        (found,) = await lookup(up)
        assert (found["conversation_id"], found["is_done"]) == ("c 1/2", False)
        async with up.client.get(f"{HERE}&from=0") as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            again = await answer.content.readexactly(2000)
        assert again == heard, "byte for byte"
        async with up.client.get(f"{HERE}&from={2000}") as answer:
            further = await answer.content.readexactly(500)
        events = (again + further).decode().split("\n\n")
        assert all(json.loads(event.removeprefix("data: ")) for event in events[:-1])


async def test_while_it_goes_on_its_model_is_held_and_a_stop_ends_it(router: Start):
    async with start(router, "one") as up:
        await leave_in_the_middle(up)
        await until(lambda: up.get("/requests"), holds=lambda found: not found["data"])
        await until(lambda: leases(up), "the client's own lease is over", holds=lambda count: count == 1)
        other = asyncio.create_task(up.chat("one"))
        await asyncio.sleep(0)
        assert (await lookup(up))[0]["is_done"] is False
        async with up.client.delete(HERE) as answer:
            assert answer.status == 204
        assert (await other)[0] == 200, "the room was free for it"
        assert "Traceback" not in up.output


async def test_it_is_found_again_after_a_restart_of_the_router(router: Start):
    async with start(router) as up:
        await leave_in_the_middle(up)
        await up.restart()
        (found,) = await lookup(up)
        assert found["conversation_id"] == "c 1/2"
        async with up.client.delete(HERE) as answer:
            assert answer.status == 204

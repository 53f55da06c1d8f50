"""Clients that hang up, with the real llama-server: what it goes on to compute for no client is counted and
shown until that has ended."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import Any

import pytest

from tests.e2e.conftest import Start
from tests.make_gguf import make_llama
from tests.router_process import RouterProcess
from tests.waiting import until

pytestmark = pytest.mark.e2e

#: One slot less than the test has requests, or more; a model that generates some hundred tokens a second.
TWO_SLOTS = '[models."slow"]\nparallel = 2\nctx_size = 16384\n'
LONG = {"model": "slow", "ignore_eos": True, "n_predict": 2000, "prompt": "hello"}
#: Of the path that streams while another request is abandoned.
STREAM = LONG | {"stream": True}
CHAT = {
    "model": "slow",
    "ignore_eos": True,
    "max_tokens": 60,
    "messages": [{"role": "user", "content": "hi"}],
}
#: A prompt of several batches.
PROMPT = LONG | {"prompt": [5 + n % 90 for n in range(3000)], "n_predict": 4}

#: What is abandoned, each beside a stream to the same model.
ABANDONED = {
    "a plain chat": ("/v1/chat/completions", CHAT),
    "a plain completion": ("/completion", LONG | {"n_predict": 60}),
    "a plain message": ("/v1/messages", CHAT),
    "a plain response": ("/v1/responses", {"model": "slow", "input": "hi", "max_output_tokens": 60}),
    "a long prompt": ("/completion", PROMPT),
    "a long prompt of a stream": ("/completion", PROMPT | {"stream": True}),
    "a stream": ("/completion", STREAM),
}


def start(router: Start, *models: str, args: tuple[str, ...] = ()) -> RouterProcess:
    up = router(*models, args=args, config=TWO_SLOTS)
    make_llama(up.models / "slow.gguf", approx_mib=60, n_ctx_train=16384)
    return up


class Abandoning:
    """A connection that sends one request and is closed before the answer."""

    def __init__(self, up: RouterProcess) -> None:
        self._up = up

    async def ask(self, path: str, body: dict[str, Any], *, header: str = "") -> None:
        host, port = self._up.url.removeprefix("http://").split(":")
        self.reader, self.writer = await asyncio.open_connection(host, int(port))
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{header}Content-Length: {len(data)}\r\n\r\n"
        self.writer.write(head.encode() + data)

    async def leave(self) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()


async def rows(up: RouterProcess) -> list[dict[str, Any]]:
    return list((await up.get("/requests"))["data"])


async def leases(up: RouterProcess) -> int:
    return sum(one["leases"] for one in (await up.get("/v1/models/slow"))["instances"])


async def working(up: RouterProcess) -> int:
    """How many slots llama-server itself says are busy."""
    return sum(slot["is_processing"] for slot in await up.get("/slots?model=slow"))


async def until_state(up: RouterProcess, state: str, count: int = 1) -> None:
    await until(lambda: rows(up), holds=lambda found: [row["state"] for row in found].count(state) == count)


async def until_working(up: RouterProcess, count: int) -> None:
    await until(lambda: working(up), holds=lambda busy: busy == count)


async def until_none(up: RouterProcess) -> None:
    await until(lambda: rows(up), holds=lambda found: not found)


@pytest.mark.parametrize("header", ["", "X-Router-Priority: normal\r\n"], ids=["short way", "aiohttp's way"])
async def test_what_is_abandoned_beside_a_stream_is_shown_until_its_slot_is_idle(router: Start, header: str):
    async with start(router) as up:
        for what in ABANDONED:
            await abandon_beside_a_stream(up, what, header)
        assert "Traceback" not in up.output


async def abandon_beside_a_stream(up: RouterProcess, what: str, header: str) -> None:
    path, body = ABANDONED[what]
    beside, gone = Abandoning(up), Abandoning(up)
    await beside.ask("/completion", STREAM)
    await beside.reader.readuntil(b"data: ")
    await gone.ask(path, body, header=header)
    await until_working(up, 2)
    if what == "a stream":
        await gone.reader.readuntil(b"data: ")
    await gone.leave()
    async with asyncio.timeout(60):
        while len(await rows(up)) > 1:
            assert await leases(up) >= 1
    if what == "a stream":  # it ends with the token that is being computed
        await until_working(up, 1)
    assert await working(up) <= 1, f"{what} is not shown any more, and a slot works on it"
    assert [row["state"] for row in await rows(up)] == ["answering"]
    assert await leases(up) == 1
    await beside.leave()
    await until_working(up, 0)
    await until_state(up, "answering", 0)
    await until_state(up, "ending", 0)


async def test_a_plain_request_beside_a_stream_counts_as_busy_for_as_long_as_it_is_computed(router: Start):
    async with start(router) as up:
        beside, gone = Abandoning(up), Abandoning(up)
        await beside.ask("/completion", STREAM)
        await beside.reader.readuntil(b"data: ")
        await gone.ask("/v1/chat/completions", CHAT | {"max_tokens": 1500})
        await until_working(up, 2)
        await gone.leave()
        await until_state(up, "ending")
        assert await leases(up) == 2
        assert await working(up) == 2, "llama-server does not see that its client is gone"
        await beside.leave()
        await until_working(up, 0)
        await until_none(up)
        await until(lambda: leases(up), holds=lambda count: count == 0)


async def test_one_that_waited_for_a_slot_is_counted_and_the_model_is_not_evicted_under_it(router: Start):
    async with start(router, "other", args=("--models-max", "1")) as up:
        clients = [Abandoning(up) for _ in range(3)]
        for client in clients[:2]:
            await client.ask("/completion", STREAM)
            await client.reader.readuntil(b"data: ")
        await clients[2].ask("/v1/chat/completions", CHAT)
        await until_state(up, "answering", 3)
        await clients[2].leave()
        await until_state(up, "ending")
        assert await leases(up) == 3
        other = asyncio.create_task(up.chat("other"))
        await asyncio.sleep(0.3)  # in which it must not be loaded
        assert not other.done()
        for client in clients[:2]:
            await client.leave()
        status, _ = await other
        assert status == 200, "it drains: what nobody waits for ends within a second of silence"


async def test_all_that_hang_up_at_once_are_counted_until_no_slot_works(router: Start):
    async with start(router) as up:
        clients = [Abandoning(up) for _ in range(4)]  # llama-server has 6 threads for them and /slots
        for n, client in enumerate(clients):
            await client.ask("/completion", STREAM if n % 2 else LONG)
        await until_state(up, "answering", 4)
        await until_working(up, 2)
        for client in clients:
            await client.leave()
        await until_none(up)
        assert await working(up) == 0
        assert await leases(up) == 0


async def test_an_operator_who_ends_a_request_sees_that_it_is_still_computed(router: Start):
    async with start(router) as up:
        beside, ended = Abandoning(up), Abandoning(up)
        await beside.ask("/completion", STREAM)
        await beside.reader.readuntil(b"data: ")
        await ended.ask("/v1/chat/completions", CHAT | {"max_tokens": 1500})
        await until_working(up, 2)
        (row,) = [row for row in await rows(up) if row["path"] == "/v1/chat/completions"]
        begun = time.monotonic()
        async with up.client.delete(f"/requests/{row['id']}") as answer:
            assert answer.status == 200
        assert b" 503 " in await ended.reader.readline()
        assert time.monotonic() - begun < 5.0, "its client does not wait for that"
        await ended.leave()
        await until_state(up, "ending")
        assert await leases(up) == 2
        await beside.leave()
        await until_none(up)


async def test_embeddings_and_reranks_that_are_abandoned_are_counted_too(router: Start):
    async with router("embedding", config='[models."embedding"]\nparallel = 1\n') as up:
        many = {"model": "embedding", "input": ["one two three four five six seven eight nine"] * 2000}
        client = Abandoning(up)
        await client.ask("/v1/embeddings", many)
        await until_state(up, "answering")
        await client.leave()
        await until_none(up)
        slots = await up.get("/slots?model=embedding")
        assert not any(slot["is_processing"] for slot in slots)

"""`/models/sse` over a real socket: the snapshot, what happens, coming again, and the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from router.admin import CONTEXT, events
from router.scheduler.types import Pinned
from tests.admin.conftest import Api
from tests.deadline import DEADLINE_SECONDS
from tests.waiting import until


class Stream:
    """One client: `id` is that of the event it had last."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer
        self.id = ""

    async def next(self) -> dict[str, Any]:
        """The next event; comments are passed over."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while line := (await self.answer.content.readline()).decode():
                if line.startswith("id: "):
                    self.id = line[4:].strip()
                if line.startswith("data: "):
                    found: dict[str, Any] = json.loads(line[6:])
                    return found
        raise AssertionError("the stream has ended")


@asynccontextmanager
async def reading(api: Api, last_event_id: str | None = None) -> AsyncIterator[Stream]:
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    async with (
        aiohttp.ClientSession() as client,
        client.get(api.url + "/models/sse", headers=headers) as answer,
    ):
        yield Stream(answer)


def pin(api: Api, model: str) -> None:
    api.pool.journal.record(100.0, Pinned(model, True), [])


async def test_a_reader_gets_a_snapshot_and_then_what_happens(api: Api):
    await api.start()
    await api.post("/models/load?wait=1", json={"model": "tiny"})
    async with reading(api) as stream:
        assert stream.answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        first = await stream.next()
        assert first["event"] == "snapshot"
        shown = {one["id"]: one["status"] for one in first["data"]["models"]}
        assert shown == {"tiny": "loaded", "other": "unloaded", "seeing": "unloaded", "broken": "unloaded"}
        pin(api, "other")
        assert await stream.next() == {"model": "other", "event": "pin", "data": {"pinned": True}}


async def test_who_comes_again_misses_nothing(api: Api):
    await api.start()
    async with reading(api) as stream:
        await stream.next()
        pin(api, "tiny")
        await stream.next()
        id_ = stream.id
    pin(api, "other")
    async with reading(api, id_) as stream:
        assert (await stream.next())["model"] == "other"
        assert (await stream.next())["event"] == "snapshot"
    async with reading(api, "of-another-router") as stream:
        assert [(await stream.next())["event"] for _ in range(2)] == ["reset", "snapshot"]


async def test_a_quiet_stream_has_a_heartbeat(api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.001)
    await api.start()
    async with reading(api) as stream:
        await stream.next()
        async with asyncio.timeout(DEADLINE_SECONDS):
            while await stream.answer.content.readline() != b":\n":
                pass


async def test_a_client_that_takes_nothing_is_cut_off(api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(events, "STUCK_SECONDS", 0.05)
    await api.start()
    host, port = api.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1)
    writer.write(b"GET /models/sse HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await writer.drain()
    feed = api.app[CONTEXT].events
    readers = api.app[events.READERS]
    async with asyncio.timeout(20):
        await until(lambda: readers)
        while readers:
            for _ in range(1000):
                feed.ring.append(b'"' + b"x" * 5000 + b'"')
            await asyncio.sleep(0.001)
    writer.close()
    assert reader is not None


async def test_who_leaves_leaves_nothing_behind(api: Api):
    await api.start()
    readers = api.app[events.READERS]
    async with reading(api) as stream:
        await stream.next()
        assert len(readers) == 1
    async with asyncio.timeout(DEADLINE_SECONDS):
        while readers:
            pin(api, "tiny")
            await asyncio.sleep(0)


async def test_a_shutdown_is_the_last_event(api: Api):
    await api.start()
    async with reading(api) as stream:
        await stream.next()
        (handling,) = [task for task in asyncio.all_tasks() if "_handle_request" in repr(task.get_coro())]
        handling.cancel()  # as a shutdown does with all that would never end
        assert (await stream.next())["event"] == "shutdown"
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert await stream.answer.content.read() == b"\n"


async def test_too_many_readers_are_refused(api: Api, monkeypatch: pytest.MonkeyPatch):
    await api.start()
    monkeypatch.setattr(events, "READERS_MAX", 0)
    answer = await api.get("/models/sse")
    assert (answer.status, answer.error["code"]) == (503, "unavailable")


async def test_head_tells_the_kind_and_ends(api: Api):
    await api.start()
    answer = await api.call("HEAD", "/models/sse")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/event-stream; charset=utf-8")


async def test_statistics_are_told_per_model_and_in_sum(api: Api):
    await api.start()
    told = (await api.get("/models/stats")).json()
    assert told["total"]["requests"] == 0
    assert told["total"]["hit_rate"] is None
    assert told["models"] == {}

"""The page's files, and the state that they show."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

import router.admin.page.stream as page_stream
from router.scheduler.types import Cause, Exited, Stop, Tick
from router.scheduler.views import QueueView
from tests.admin.conftest import Api
from tests.deadline import DEADLINE_SECONDS


@asynccontextmanager
async def events(api: Api) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    async with aiohttp.ClientSession() as client, client.get(api.url + "/status/sse") as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"

        async def read() -> AsyncIterator[dict[str, Any]]:
            async for line in answer.content:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])

        yield read()


async def watched(api: Api) -> None:
    """As the router does from its start."""
    api._spawn(api.app_context.keep_history(), name="history")
    await asyncio.sleep(0)


async def test_the_state_tells_devices_models_and_requests(api: Api):
    await api.start()
    await api.post("/models/load?wait=1", json={"model": "tiny"})
    told = (await api.get("/status")).json()
    (device,) = told["state"]["devices"]
    assert device["label"] == "NVIDIA H200"
    models = {model["id"]: model for model in told["state"]["models"]}
    assert models["tiny"]["value"] == "loaded"
    assert models["tiny"]["measured"] == 5 << 30
    assert models["tiny"]["aliases"] == ["small", "org/tiny"]
    assert models["other"]["value"] == "unloaded"
    assert models["other"]["predicted"] > 0
    assert models["broken"]["error"]
    assert "hidden" not in models


@pytest.mark.parametrize("moment", [float("inf"), float("-inf"), float("nan")])
async def test_a_moment_that_never_comes_is_told_as_none(
    api: Api, moment: float, monkeypatch: pytest.MonkeyPatch
):
    await api.start()
    await api.post("/models/load?wait=1", json={"model": "tiny"})
    api.pool.queues = (QueueView("other", 1, 0.0, 0, "a reason", moment),)
    snapshot = api.pool.snapshot()
    shown = replace(snapshot, instances=tuple(replace(one, expires_at=moment) for one in snapshot.instances))
    monkeypatch.setattr(api.pool, "snapshot", lambda: shown)
    answer = await api.get("/status")
    models = {model["id"]: model for model in answer.json()["state"]["models"]}
    assert models["tiny"]["expires_at"] is None
    assert models["other"]["expected_seconds"] is None


async def test_who_asks_every_second_need_not_be_told_the_past(api: Api):
    await api.start()
    await watched(api)
    for number in range(3):
        api.pool.journal.record(1.0, Tick(), [Stop(f"tiny#{number}", Cause.EXPIRED)])
    whole = (await api.get("/status")).json()
    assert whole["history"]
    assert [one["id"] for one in whole["moments"]] == [1, 2, 3]
    assert (await api.get("/status?history=1&moments=9")).json().keys() == whole.keys()
    short = (await api.get("/status?history=0&moments=2")).json()
    assert "history" not in short
    assert [one["id"] for one in short["moments"]] == [2, 3]
    assert (await api.get("/status?moments=0")).json()["moments"] == []
    assert (await api.get("/status?moments=few")).status == 400


async def test_the_first_event_is_whole_and_the_next_tell_what_is_new(api: Api):
    await api.start()
    await watched(api)
    api.pool.journal.record(1.0, Tick(), [Stop("tiny#1", Cause.EXPIRED)])
    async with asyncio.timeout(20), events(api) as told:
        first = await anext(told)
        assert [one["text"] for one in first["moments"]] == ["tiny leaves after its idle time"]
        assert "history" in first
        api.pool.journal.record(2.0, Exited("tiny#1"), [])
        second = await anext(told)
        while not second["moments"]:
            second = await anext(told)
        assert [one["kind"] for one in second["moments"]] == ["gone"]
        assert "history" not in second
        models = {model["id"]: model for model in second["state"]["models"]}
        assert models["tiny"]["last"] == "tiny leaves after its idle time"


async def test_who_comes_back_is_told_everything_again(api: Api):
    await api.start()
    await watched(api)
    api.pool.journal.record(1.0, Tick(), [Stop("tiny#1", Cause.EXPIRED)])
    for _ in range(2):
        async with asyncio.timeout(20), events(api) as told:
            first = await anext(told)
            assert len(first["moments"]) == 1
            assert first["history"]


async def test_too_many_pages_are_told_so(api: Api, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(page_stream, "VIEWERS_MAX", 1)
    await api.start()
    async with events(api) as told:
        await anext(told)
        refused = await api.get("/status/sse")
        assert refused.status == 503
        assert refused.error["message"] == "1 pages look at the status already; close one"


async def test_the_page_is_public_and_its_state_is_not(api: Api):
    await api.start(api_keys=("user",), admin_keys=("admin",))
    page = await api.get("/")
    assert page.status == 200
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert (await api.get("/status")).status == 401
    assert (await api.get("/status/sse", headers={"Authorization": "Bearer user"})).status == 403
    assert (await api.get("/status", headers={"Authorization": "Bearer admin"})).status == 200


async def test_the_page_asks_nobody_else_and_runs_nothing_from_within_a_text(api: Api):
    await api.start()
    page = await api.get("/")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    for path in ("/", "/page/page.css", "/page/page.js", "/page/draw.js", "/page/talk.js"):
        text = (await api.get(path)).body.decode()
        assert "https://" not in text
        assert "innerHTML" not in text


async def test_a_file_that_is_known_is_not_sent_again(api: Api):
    await api.start()
    etag = (await api.get("/page/page.js")).headers["ETag"]
    again = await api.get("/page/page.js", headers={"If-None-Match": etag})
    assert (again.status, again.body) == (304, b"")


async def test_a_look_at_the_head_of_the_stream_ends(api: Api):
    await api.start()
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert (await api.call("HEAD", "/status/sse")).status == 200

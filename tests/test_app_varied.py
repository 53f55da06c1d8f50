"""What an operator said at run time, over the ends of routers: a load with other settings than the preset's,
and pins."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.make_gguf import make_llama
from tests.router_process import RouterProcess
from tests.test_app import binary

Start = Callable[..., RouterProcess]


@pytest.fixture
def router() -> Iterator[Start]:
    with tempfile.TemporaryDirectory(prefix="router-") as name:
        folder = Path(name)

        def make(config: str = "") -> RouterProcess:
            made = RouterProcess(folder, binary(folder), config=config)
            for model in ("tiny", "other"):
                make_llama(made.models / f"{model}.gguf", sparse=True)
            return made

        yield make


async def load(up: RouterProcess, **settings: Any) -> dict[str, Any]:
    async with up.client.post("/models/load?wait=1", json={"model": "tiny", **settings}) as answer:
        assert answer.status == 200, await answer.text()
        found: dict[str, Any] = await answer.json()
        return found


async def row(up: RouterProcess) -> dict[str, Any]:
    found: dict[str, Any] = await up.get("/v1/models/tiny")
    return found


def context_of(up: RouterProcess) -> str:
    """With which its process was really started."""
    (child,) = up.children()
    words = child.cmdline()
    return words[words.index("-c") + 1]


@pytest.mark.parametrize("way", ["restart", "kill"])
async def test_the_next_router_goes_on_with_it_and_loads_the_presets_own_next(router: Start, way: str):
    async with router() as up:
        await load(up, ctx_size=256)
        assert context_of(up) == "256"
        (before,) = up.children()
        if way == "restart":
            await up.restart()
        else:
            up.send(signal.SIGKILL)
            await up.until(up.has_ended, "it has ended")
            await up.start_again()
        (after,) = up.children()
        assert after.pid == before.pid
        shown = await row(up)
        assert shown["instances"][0]["settings"] == {"ctx_size": 256}
        assert (shown["meta"]["n_ctx"], shown["status"]["value"]) == (256, "loaded")
        assert shown["status"]["args"][shown["status"]["args"].index("-c") + 1] == "256"
        async with up.client.post("/models/unload", json={"model": "tiny"}) as answer:
            assert answer.status == 200
        assert (await up.chat("tiny"))[0] == 200
        assert context_of(up) != "256"
        assert (await row(up))["instances"][0]["settings"] is None


async def test_a_reload_of_a_changed_preset_ends_it(router: Start):
    async with router() as up:
        await load(up, ctx_size=256)
        await up.get("/models?reload=1")
        assert context_of(up) == "256", "nothing changed"
        up.config.write_text('[models."tiny"]\nbatch_size = 64\n')
        await up.get("/models?reload=1")
        await up.until(lambda: not up.children(), "it has left")


async def test_the_time_it_stays_is_that_of_the_load(router: Start):
    async with router("[scheduler]\nlinger = 0\n") as up:
        await load(up, ttl_seconds=0)
        await up.until(lambda: not up.children(), "it has left")
        assert (await load(up))["instances"][0]["expires_in_seconds"] is None


@pytest.mark.parametrize("way", ["restart", "kill"])
async def test_a_pin_outlives_the_router(router: Start, way: str):
    async with router('[models."other"]\npinned = true\n') as up:
        await up.chat("tiny")
        for path, model in (("/models/pin", "tiny"), ("/models/unpin", "other")):
            async with up.client.post(path, json={"model": model}) as answer:
                assert answer.status == 200
        if way == "restart":
            await up.restart()
        else:
            await _until_written(up)
            up.send(signal.SIGKILL)
            await up.until(up.has_ended, "it has ended")
            await up.start_again()
        pinned = {one["id"]: one["status"]["pinned"] for one in (await up.get("/models"))["data"]}
        assert pinned == {"tiny": True, "other": False}


async def test_who_reads_events_is_told_of_the_restart_and_comes_again(router: Start):
    async with router("[server]\nrestart_grace_seconds = 5\n") as up:
        async with aiohttp.ClientSession(up.url) as client, client.get("/models/sse") as answer:
            told = await _until(answer, "snapshot")
            await up.restart()
            await _until(answer, "shutdown")
        headers = {"Last-Event-ID": told["id"]}
        async with up.client.get("/models/sse", headers=headers) as answer:
            await _until(answer, "reset")
            await _until(answer, "snapshot")


async def _until(answer: aiohttp.ClientResponse, event: str) -> dict[str, Any]:
    id_ = ""
    async with asyncio.timeout(30):
        async for line in answer.content:
            if line.startswith(b"id: "):
                id_ = line[4:].decode().strip()
            if line.startswith(b"data: ") and (told := json.loads(line[6:]))["event"] == event:
                return {**told, "id": id_}
    raise AssertionError(f"it ended without {event}")


async def _until_written(up: RouterProcess) -> None:
    """What was said is in the database: it is written beside the answer."""

    def pins() -> int:
        with closing(sqlite3.connect(f"file:{up.state / 'router.sqlite'}?mode=ro", uri=True)) as database:
            return int(database.execute("SELECT count(*) FROM rows WHERE owner = 'pins'").fetchone()[0])

    await up.until(lambda: pins() == 2, "the pins are written")

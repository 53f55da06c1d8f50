"""The log of a model's llama-server over HTTP: its end, and what comes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from router.admin import log
from tests.admin.conftest import Api
from tests.waiting import until


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "LOOK_SECONDS", 0.001)


async def started(api: Api, tmp_path: Path, text: str) -> Path:
    """A loaded model and its log."""
    await api.post("/models/load?wait=1", json={"model": "tiny"})
    instance = next(iter(api.pool.instances))
    path = tmp_path / f"{instance}.log"
    path.write_text(text)
    api.pool.log_paths[instance] = path
    return path


async def test_the_last_lines_are_plain_text(api: Api, tmp_path: Path):
    await api.start()
    await started(api, tmp_path, "one\ntwo\nthree\n")
    answer = await api.get("/models/log?model=small&lines=2")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.body == b"two\nthree\n"
    assert (await api.get("/models/log?model=tiny&lines=0")).body == b""
    assert (await api.get("/models/log?model=tiny")).body == b"one\ntwo\nthree\n"


async def test_what_was_never_loaded_has_none_and_what_is_wrong_is_told(api: Api):
    await api.start()
    answer = await api.get("/models/log?model=tiny")
    assert (answer.status, answer.error["code"]) == (400, "model_not_loaded")
    assert (await api.get("/models/log")).status == 400
    assert (await api.get("/models/log?model=nobody")).status == 404
    for lines in ("-1", "x", "10001", "1e3", "\u0663"):
        assert (await api.get("/models/log", params={"model": "tiny", "lines": lines})).status == 400


async def test_only_an_admin_reads_it(api: Api):
    await api.start(api_keys=("user",), admin_keys=("boss",))
    assert (await api.get("/models/log?model=tiny", headers={"x-api-key": "user"})).status == 403


@pytest.mark.usefixtures("quick")
async def test_it_goes_on_with_what_comes_and_with_the_next_instance(api: Api, tmp_path: Path):
    await api.start()
    first = await started(api, tmp_path, "one\ntwo\n")
    url = api.url + "/models/log?model=tiny&lines=1&follow=1"
    async with asyncio.timeout(10), aiohttp.ClientSession() as client, client.get(url) as answer:
        name = first.name.removesuffix(".log")
        assert await answer.content.readline() == f"==> {name} <==\n".encode()
        assert await answer.content.readline() == b"two\n"
        with first.open("a") as file:
            file.write("three\n")
        assert await answer.content.readline() == b"three\n"
        api.pool.exit(name)
        second = await started(api, tmp_path, "born\nready\n")
        assert await answer.content.readline() == f"==> {second.stem} <==\n".encode()
        assert await answer.content.readline() == b"born\n"
        assert await answer.content.readline() == b"ready\n"


@pytest.mark.usefixtures("quick")
async def test_who_follows_leaves_nothing_behind(api: Api, tmp_path: Path):
    await api.start()
    await started(api, tmp_path, "one\n")
    followers = api.app[log.FOLLOWERS]
    async with asyncio.timeout(10), aiohttp.ClientSession() as client:
        async with client.get(api.url + "/models/log?model=tiny&follow=1") as answer:
            await answer.content.readline()
            assert len(followers) == 1
        await until(lambda: not followers)


async def test_too_many_who_follow_are_refused(api: Api, monkeypatch: pytest.MonkeyPatch):
    await api.start()
    monkeypatch.setattr(log, "FOLLOWERS_MAX", 0)
    answer = await api.get("/models/log?model=tiny&follow=1")
    assert answer.status == 503
    assert answer.headers["Retry-After"]


async def test_head_tells_the_kind_and_ends(api: Api):
    await api.start()
    answer = await api.call("HEAD", "/models/log?model=tiny&follow=1")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")

"""A model from the hub to its first words, and out again: the whole router and the real llama-server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.admin.upstream import free_port
from tests.e2e.conftest import SMALL
from tests.hub_stub import HubStub
from tests.make_gguf import make_llama
from tests.router_process import RouterProcess
from tests.waiting import is_healthy, until

pytestmark = pytest.mark.e2e

REPO = "org/tiny-GGUF"
MODEL = f"{REPO}:Q4_K_M"
CONFIG = "[server]\nshutdown_grace_seconds = 2.0\n[downloads]\nmin_free_mib = 0\n[child]\nctx_size = 512\n"


@pytest.fixture
async def hub(folder: Path) -> AsyncIterator[HubStub]:
    file = make_llama(folder / "tiny.gguf", name="tiny")
    async with HubStub().running() as made:
        made.add(REPO, {"tiny-Q4_K_M.gguf": file.read_bytes()})
        yield made


@pytest.fixture
def router(folder: Path, llama_server: Path, hub: HubStub) -> RouterProcess:
    """With a model of its own, so that there is something to start with."""
    (folder / "models").mkdir()
    make_llama(folder / "models" / "own.gguf", name="own")
    return RouterProcess(
        folder, llama_server, *SMALL, config=CONFIG, env=hub.environ(folder / "hf", HF_TOKEN="hf_secret")
    )


async def call(router: RouterProcess, method: str, path: str, body: Any = None) -> Any:
    async with router.client.request(method, path, json=body) as response:
        answer = await response.json()
        assert response.status == 200, answer
        return answer


async def names(router: RouterProcess) -> set[str]:
    return {one["id"] for one in (await router.get("/models"))["data"]}


async def state_of(router: RouterProcess, job: str) -> Any:
    return (await router.get(f"/models/downloads/{job}"))["state"]


async def until_finished(router: RouterProcess, job: str) -> None:
    under_way = ("queued", "downloading", "waiting")
    assert await until(lambda: state_of(router, job), holds=lambda it: it not in under_way) == "finished"


async def events(router: RouterProcess, heard: list[Any]) -> None:
    async with router.client.get("/models/sse") as response:
        async for line in response.content:
            if line.startswith(b"data: "):
                heard.append(json.loads(line[6:]))  # noqa: PERF401 - others read it meanwhile


async def test_a_model_is_looked_at_fetched_used_and_deleted(router, hub, folder):
    async with router:
        found = await call(router, "POST", "/models/verify-repo", {"repo": REPO})
        size = found["fetch"]["missing_bytes"]
        assert found["fetch"]["models"] == [MODEL] and size == (folder / "tiny.gguf").stat().st_size
        heard: list[Any] = []
        listening = asyncio.get_running_loop().create_task(events(router, heard))
        added = await call(router, "POST", "/models", {"model": REPO})
        await until_finished(router, added["job"])
        assert MODEL in await names(router), "without a restart"
        status, answer = await router.chat(MODEL)
        assert status == 200 and answer["choices"][0]["message"]["content"], answer
        kinds = [one["event"] for one in heard if one["model"] == REPO]  # as it was asked for
        assert kinds.index("download_progress") < kinds.index("download_finished")
        (progress,) = [one for one in heard if one["event"] == "download_progress"][-1]["data"][
            "progress"
        ].values()
        assert progress == {"done": size, "total": size}

        stream = asyncio.get_running_loop().create_task(router.events(MODEL, max_tokens=200, ignore_eos=True))
        await router.until(lambda: any(one["event"] == "status_change" for one in heard), "it is told of")
        await until(lambda: router.get("/requests"), holds=lambda found: found["data"])
        deleted = await call(router, "DELETE", f"/models?model={MODEL}")
        assert deleted["freed_bytes"] == size
        assert (await stream)[-1] == "[DONE]", "who is being served is served to the end"
        assert MODEL not in await names(router) and not list((folder / "hf" / "hub").glob("models--*"))
        assert (await router.chat(MODEL))[0] == 404
        await router.until(lambda: [one for one in heard if one["event"] == "model_remove"], "it is told of")
        listening.cancel()
    assert "hf_secret" not in router.output


async def asked_of_it(url: str, model: str) -> tuple[list[Any], list[tuple[int, Any]]]:
    """The news of a download, and what is answered to a request for it, to the same one again, and to those
    that make no sense."""
    heard: list[Any] = []
    answers = []
    async with aiohttp.ClientSession(url) as session, session.get("/models/sse") as news:
        for body in ({"model": model}, {"model": model}, {"model": "no repository"}, {}):
            async with session.post("/models", json=body) as response:
                answers.append((response.status, (await response.json()).get("success")))
            while body == {"model": model} and "download_finished" not in [one["event"] for one in heard]:
                line = await news.content.readline()
                if line.startswith(b"data: ") and json.loads(line[6:]).get("model") == model:
                    heard.append(json.loads(line[6:]))
        async with session.get("/models") as response:  # theirs looks for what has come only now
            await response.read()
        async with session.delete("/models", params={"model": f"{model}:Q4_K_M"}) as response:
            answers.append((response.status, (await response.json()).get("success")))
    return heard, answers


async def test_llama_cpps_router_tells_and_answers_the_same(router, hub, llama_server, folder):
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder), "LLAMA_CACHE": str(folder / "theirs")}
    port = free_port()
    theirs = subprocess.Popen(
        [llama_server, "--host", "127.0.0.1", "--port", str(port)],
        env={**environ, "HF_ENDPOINT": f"{hub.url}/"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        await until_it_answers(f"http://127.0.0.1:{port}")
        async with asyncio.timeout(60.0):
            their_news, their_answers = await asked_of_it(f"http://127.0.0.1:{port}", REPO)
    finally:
        theirs.kill()
        theirs.wait()
    async with router:
        async with asyncio.timeout(60.0):
            our_news, our_answers = await asked_of_it(router.url, REPO)
    assert our_answers == their_answers
    for kind in ("model_status", "download_progress", "download_finished"):
        their, our = ([one for one in news if one["event"] == kind][-1] for news in (their_news, our_news))
        told = our["data"]
        assert {key: told[key] for key in their.get("data", {})} == their.get("data", {}), kind
    assert our_news[0]["event"] == their_news[0]["event"]


async def until_it_answers(url: str) -> None:
    async with aiohttp.ClientSession(url) as session:
        await until(lambda: is_healthy(session))


async def test_a_router_that_was_killed_goes_on_with_its_downloads(router, hub):
    hub.faults.hold_after = 40_000
    async with router:
        job = (await call(router, "POST", "/models/download", {"repo": REPO}))["id"]
        async with asyncio.timeout(30.0):
            await hub.faults.holding.wait()
        await router.stop(signal.SIGKILL)
        hub.faults.hold_after = None
        hub.faults.go.set()
        await router.start_again()
        await until_finished(router, job)
        assert (await router.chat(MODEL))[0] == 200


async def test_a_router_that_is_replaced_hands_its_downloads_on(router, hub):
    hub.faults.hold_after = 40_000
    async with router:
        job = (await call(router, "POST", "/models/download", {"repo": REPO}))["id"]
        async with asyncio.timeout(30.0):
            await hub.faults.holding.wait()
        await router.restart()
        hub.faults.hold_after = None
        hub.faults.go.set()
        await until_finished(router, job)
        assert MODEL in await names(router)


async def test_no_child_gets_the_token(router, hub):
    async with router:
        await router.chat("own")
        (child,) = router.children()
        assert "HF_TOKEN" not in child.environ() and "hf_secret" not in str(child.environ())

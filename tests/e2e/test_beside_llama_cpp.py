"""llama.cpp's own router and ours over the same cache and presets: what its clients read is the same."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
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

DEADLINE_SECONDS = 60.0
MAIN, DRAFT = "org/main-GGUF", "org/draft-GGUF"
PRESETS = "org/presets"
COMMITS = {MAIN: "a" * 40, DRAFT: "b" * 40, PRESETS: "c" * 40}

SECTION = "[m]\nhf-repo = org/main-GGUF\nspec-draft-hf = org/draft-GGUF\n"
HUB_PRESET = """; both routers take this
[*]
top-k = 3

[first]
hf-repo = org/main-GGUF
ctx-size = 512
temp = 0.5

[second]
hf-repo = org/draft-GGUF:F32
ctx-size = 256
"""


class Cache:
    """A Hugging Face cache with two models, as both routers find it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "hub"
        self.contents: dict[str, dict[str, bytes]] = {}
        for seed, repo in enumerate((MAIN, DRAFT)):
            name = f"{repo.partition('/')[2].removesuffix('-GGUF')}-F32.gguf"
            file = make_llama(folder / name, name=name, seed=seed)
            self.add(repo, name, file.read_bytes())
            file.unlink()

    def add(self, repo: str, name: str, content: bytes) -> None:
        self.contents.setdefault(repo, {})[name] = content
        place = self.folder / f"models--{repo.replace('/', '--')}"
        snapshot = place / "snapshots" / COMMITS[repo]
        snapshot.mkdir(parents=True, exist_ok=True)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / "main").write_text(COMMITS[repo])
        (snapshot / name).write_bytes(content)


@pytest.fixture
def cache(folder: Path) -> Cache:
    return Cache(folder)


@asynccontextmanager
async def llama_cpp(binary: Path, cache: Cache, *args: str, **env: str) -> AsyncIterator[Any]:
    """llama.cpp's router, and what it answers to a GET."""
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LLAMA_")}
    process = await asyncio.create_subprocess_exec(
        *(str(binary), "--host", "127.0.0.1", "--port", str(port), "--threads", "1", *args),
        env={**kept, "HF_HUB_CACHE": str(cache.folder), **env},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            await until(lambda: is_healthy(session), holds=lambda it: it or process.returncode is not None)
            assert process.returncode is None, "llama-server has ended"
            yield lambda path: get(session, path)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def get(session: aiohttp.ClientSession, path: str) -> Any:
    async with session.get(path) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


@asynccontextmanager
async def ours(folder: Path, binary: Path, cache: Cache, *args: str) -> AsyncIterator[RouterProcess]:
    router = RouterProcess(folder, binary, *args, *SMALL, env={"HF_HUB_CACHE": str(cache.folder)})
    async with router:
        yield router


def ids(models: Mapping[str, Any]) -> set[str]:
    return {row["id"] for row in models["data"]}


async def test_props_have_the_keys_and_the_build_of_llama_cpps_router(folder, llama_server, cache):
    async with llama_cpp(llama_server, cache) as theirs:
        expected = await theirs("/props")
    async with ours(folder, llama_server, cache) as router:
        props = await router.get("/props")
    assert expected["role"] == props["role"] == "router"
    assert expected.keys() <= props.keys()
    kept = ("model_alias", "model_path", "default_generation_settings", "cors_proxy_enabled")
    assert {key: props[key] for key in kept} == {key: expected[key] for key in kept}
    assert expected["build_info"].startswith("b")
    assert props["build_info"].startswith(expected["build_info"])


@pytest.mark.parametrize(
    "text",
    [SECTION + "dedup-cache-models = 1\n", "[*]\ndedup-cache-models = 1\n" + SECTION],
    ids=["section", "all"],
)
async def test_dedup_cache_models_hides_the_main_model_and_its_draft(folder, llama_server, cache, text):
    presets = folder / "presets.ini"
    presets.write_text(text)
    async with llama_cpp(llama_server, cache, "--models-preset", str(presets)) as theirs:
        expected = ids(await theirs("/models"))
    assert "m" in expected and not any(one.startswith("org/") for one in expected)
    async with ours(folder, llama_server, cache, "--models-preset", str(presets)) as router:
        assert ids(await router.get("/models")) == expected
        body = {"model": f"{DRAFT}:F32", "content": "hello"}
        async with router.client.post("/tokenize", json=body) as answer:
            assert answer.status == 200, "it is only hidden from the list"
        presets.write_text(SECTION)
        assert f"{DRAFT}:F32" in ids(await router.get("/models?reload=1"))


async def test_a_preset_of_a_hub_repository_in_the_cache_is_served(folder, llama_server, cache):
    async with HubStub().running() as hub:  # b11434 does not look into the cache alone for it
        hub.add(PRESETS, {"preset.ini": HUB_PRESET.encode()}, commit=COMMITS[PRESETS])
        async with llama_cpp(llama_server, cache, "-hf", PRESETS, HF_ENDPOINT=hub.url) as theirs:
            expected = ids(await theirs("/models"))
    assert {"first", "second"} <= expected
    async with ours(folder, llama_server, cache) as router:
        assert {"first", "second"} <= ids(await router.get("/models"))
        body = {"model": "first", "prompt": "a", "max_tokens": 2}
        async with router.client.post("/v1/completions", json=body) as answer:
            assert answer.status == 200, await answer.text()
        settings = (await router.get("/props?model=first"))["default_generation_settings"]
        assert settings["n_ctx"] == 512
        assert (settings["params"]["temperature"], settings["params"]["top_k"]) == (0.5, 3)


async def test_a_preset_of_a_hub_repository_is_pulled_and_tells_what_it_runs(folder, llama_server, cache):
    async with HubStub().running() as hub:
        hub.add(PRESETS, {"preset.ini": HUB_PRESET.encode(), "README.md": b"presets"})
        env = {**hub.environ(folder / "hf"), "HF_HUB_CACHE": str(cache.folder)}
        router = RouterProcess(
            folder, llama_server, *SMALL, config="[downloads]\nmin_free_mib = 0\n", env=env
        )
        async with router:
            async with router.client.post("/models/download", json={"repo": PRESETS}) as answer:
                job = await answer.json()
                assert answer.status == 200, job
            told = await until(
                lambda: router.get(f"/models/downloads/{job['id']}"),
                holds=lambda told: told["state"] not in ("queued", "downloading"),
            )
            assert told["state"] == "finished", told
            assert told["models"] == ["first", "second"]
            assert "presets: first, second" in told["note"]
            assert f"llama-router pull {MAIN}" in told["note"]
            assert {"first", "second"} <= ids(await router.get("/models"))


async def test_a_preset_of_a_hub_repository_names_no_file_of_this_machine(folder, llama_server, cache):
    log = folder / "written-by-a-preset"
    text = f"[a]\nhf-repo = {MAIN}\nlog-prompts-dir = {folder}\nlog-file = {log}\n"
    cache.add(PRESETS, "preset.ini", text.encode())
    async with ours(folder, llama_server, cache) as router:
        async with router.client.post("/v1/completions", json={"model": "a", "prompt": "a"}) as answer:
            told = await answer.json()
        assert (answer.status, told["error"]["code"]) == (422, "model_unusable")
        assert "may not be set by a repository of the hub" in told["error"]["message"]
    assert not log.exists()
